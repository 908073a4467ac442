"""Runs the distribution's tools and converts their failures into KernelError. The only place that does so."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from typing import BinaryIO, Final

from tproxy_rules.backend import KernelError

PACKAGES: Final = {
    "nft": "nftables",
    "iptables-restore": "iptables",
    "ip6tables-restore": "iptables",
    "iptables-save": "iptables",
    "ip6tables-save": "iptables",
    "ipset": "ipset",
    "ebtables-nft": "iptables",
    "ebtables": "iptables (Debian: ebtables)",
}
_TIMEOUT: Final = 120.0
"""Seconds. Applying 100 000 entries takes two."""
_MAX_LINES: Final = 4
"""Maximum number of error lines of a tool that are passed on."""


def run(command: Sequence[str], text: str | Iterable[str] = "") -> str:
    """The tool's output, or KernelError with the first lines of its error message. `text`: its input, whole or in
    pieces, which are not held in memory together."""
    tool = command[0]
    try:
        with _input((text,) if isinstance(text, str) else text) as given:
            done = subprocess.run(
                command, stdin=given, capture_output=True, text=True, timeout=_TIMEOUT, check=False, errors="replace"
            )
    except FileNotFoundError as error:
        raise KernelError(f"{tool} is not installed: install the package {PACKAGES.get(tool, tool)}") from error
    except PermissionError as error:
        raise KernelError(f"cannot run {tool}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{tool} did not finish within {_TIMEOUT:.0f} s") from error
    if done.returncode:
        raise KernelError(_complaint(tool, done.returncode, done.stderr or done.stdout))
    return done.stdout


def _input(pieces: Iterable[str]) -> BinaryIO:
    """A file in memory, which does not count as memory of this process."""
    file = os.fdopen(os.memfd_create("input"), "w+b")
    for piece in pieces:
        file.write(piece.encode())
    file.seek(0)
    return file


def _complaint(tool: str, code: int, said: str) -> str:
    lines = [line.strip()[:300] for line in said.splitlines() if line.strip().strip("^~")]
    if any("Operation not permitted" in line or "Permission denied" in line for line in lines):
        return f"{tool}: permission denied: run as root, or with CAP_NET_ADMIN in this network namespace"
    return f"{tool} failed with status {code}: " + "; ".join(lines[:_MAX_LINES])
