"""gRPC has one completion queue for a process. It may still notify the event loop of an earlier test, and if that is
closed, a running loop logs an error. So all tests that use gRPC share one loop.
"""

from __future__ import annotations

from typing import Final

import pytest

ONE_LOOP: Final = pytest.mark.asyncio(loop_scope="session")
