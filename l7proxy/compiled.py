"""The hot modules as machine code (mypyc), when they have been built: all of them, and true to their sources, or none.

The sources are the same, and so is what they do: without a build everything runs as Python. A build is used only by the
Python that it was made for, and while every source of the rooms that a worker is made of is, byte for byte, what was
compiled: an edit is never masked by an old build. L7PROXY_PURE=1 leaves it unused. `compiled_build` makes one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parent
HOME: Final = PACKAGE / "_compiled"
MANIFEST: Final = "manifest.json"
ROOMS: Final = ("model", "wire", "gate", "policy", "flows", "link", "proxy")


class _Finder:
    """Finds the compiled modules before the path does."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        # Imported before this finder is in use: an import from within `find_spec` would ask the finder again.
        from importlib.util import spec_from_file_location  # costs start-up time, needed only where there is a build

        self._files = files
        self._spec = spec_from_file_location

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        return self._spec(fullname, file) if file is not None else None


def use(home: Path = HOME) -> None:
    """Before any other module of ours is imported: compiled ones know each other's insides."""
    if (home / MANIFEST).exists() and not os.environ.get("L7PROXY_PURE") and is_true(home):
        suffix = EXTENSION_SUFFIXES[0]
        files = {str(file.relative_to(home)).removesuffix(suffix): file for file in home.rglob(f"*{suffix}")}
        sys.meta_path.insert(0, _Finder({name.replace(os.sep, "."): file for name, file in files.items()}))


def word() -> str:
    """For `--version` and `status`."""
    return "compiled" if any(isinstance(finder, _Finder) for finder in sys.meta_path) else "pure Python"


def is_true(home: Path) -> bool:
    """Made by this Python, of these sources."""
    import json  # of use only where there is a build

    try:
        manifest = json.loads((home / MANIFEST).read_bytes())
        return bool(manifest["python"] == sys.version and manifest["sources"] == sources())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def sources() -> dict[str, str]:
    """The digest of every file that could have gone into the code: constants of one module are folded into others."""
    import hashlib  # as above

    files = [PACKAGE / "errors.py", *(file for room in ROOMS for file in (PACKAGE / room).rglob("*.py"))]
    return {str(file.relative_to(PACKAGE)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
