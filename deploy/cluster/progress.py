"""Lines that tell how far a long command is, each with the seconds since it began."""

from __future__ import annotations

import sys
import time
from typing import Final

_begun: Final = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - _begun:7.1f} s  {text}", file=sys.stderr, flush=True)
