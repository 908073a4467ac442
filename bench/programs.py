"""The external programs that the bench starts, and their paths.

`make bench` and `make test` unpack those that this machine lacks next to the interpreter (deploy/setup/programs.sh).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from l7proxy import sbin

NGINX_PATHS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
BESIDE = str(Path(sys.executable).parent)


def reach() -> None:
    """Put the unpacked programs first in PATH, and the kernel's tools last."""
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if BESIDE not in path:
        os.environ["PATH"] = os.pathsep.join([BESIDE, *path])
    sbin.reach()


def missing(names: Iterable[str]) -> list[str]:
    """Those of the programs that are not installed."""
    return [name for name in names if shutil.which(name) is None]


def nginx_paths(directory: Path) -> str:
    """Directives for nginx's http block: keep its temporary files in `directory` instead of below /var."""
    return " ".join(f"{name}_temp_path {directory}/{name};" for name in NGINX_PATHS)
