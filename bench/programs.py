"""The programs of others that the bench starts, and where they are.

`make bench` and `make test` unpack those that this machine lacks beside the interpreter (deploy/setup/programs.sh).
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
    """Put them first in PATH, and the kernel's tools last."""
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if BESIDE not in path:
        os.environ["PATH"] = os.pathsep.join([BESIDE, *path])
    sbin.reach()


def missing(names: Iterable[str]) -> list[str]:
    """Those of the programs that are not there."""
    return [name for name in names if shutil.which(name) is None]


def nginx_paths(directory: Path) -> str:
    """Directives for nginx's http block: its temporary files, which are below /var else, stay in `directory`."""
    return " ".join(f"{name}_temp_path {directory}/{name};" for name in NGINX_PATHS)
