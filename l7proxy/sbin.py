"""The kernel's tools live in /usr/sbin, and Debian gives it to the PATH of root's login shell only.

A user with a user namespace, and root by `su` or cron, may run nft and iptables and would not find them.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Final

PLACES: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def reach(environment: MutableMapping[str, str] = os.environ) -> None:
    """Put them last in PATH, where they are not in it: what the user chose goes before."""
    path = environment.get("PATH", os.defpath).split(os.pathsep)
    environment["PATH"] = os.pathsep.join([*path, *(place for place in PLACES if place not in path)])
