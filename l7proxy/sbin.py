"""Adds the sbin directories to PATH, so that nft, iptables and other kernel tools are found.

Debian has them only in the PATH of root's login shell: not in a user namespace, and not for root by `su` or cron.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Final

PLACES: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def reach(environment: MutableMapping[str, str] = os.environ) -> None:
    """Append those that PATH lacks. At the end, so that the user's own directories take precedence."""
    path = environment.get("PATH", os.defpath).split(os.pathsep)
    environment["PATH"] = os.pathsep.join([*path, *(place for place in PLACES if place not in path)])
