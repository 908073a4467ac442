"""Loads the hot modules as machine code (mypyc, Cython) if a current build exists: all of them, or none.

A build behaves as the Python sources do. It is used only by the Python that it was made for, and only while every
source file of the worker's packages is byte for byte what was compiled, so an old build never hides an edit.
L7PROXY_PURE=1 ignores the build. `compiled_build` makes one.
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
    """Import finder that finds compiled modules before `sys.path` is searched."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        # Imported before this finder is installed: an import inside `find_spec` would call the finder again.
        from importlib.util import spec_from_file_location  # slows start-up, needed only if a build exists

        self._files = files
        self._spec = spec_from_file_location

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = self._files.get(fullname)
        return self._spec(fullname, file) if file is not None else None


def use(home: Path = HOME) -> None:
    """Install the finder. Call before any other l7proxy module is imported: compiled modules depend on each other."""
    if (home / MANIFEST).exists() and not os.environ.get("L7PROXY_PURE") and is_true(home):
        suffix = EXTENSION_SUFFIXES[0]
        files = {str(file.relative_to(home)).removesuffix(suffix): file for file in home.rglob(f"*{suffix}")}
        sys.meta_path.insert(0, _Finder({name.replace(os.sep, "."): file for name, file in files.items()}))


def word() -> str:
    """Build kind, for `--version` and `status`."""
    return "compiled" if any(isinstance(finder, _Finder) for finder in sys.meta_path) else "pure Python"


def is_true(home: Path) -> bool:
    """Whether the build was made by this Python from the present sources."""
    import json  # needed only if a build exists

    try:
        manifest = json.loads((home / MANIFEST).read_bytes())
        return bool(manifest["python"] == sys.version and manifest["sources"] == sources())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def sources() -> dict[str, str]:
    """Source file → digest, for every file that can affect the build: mypyc folds constants across modules."""
    import hashlib  # needed only if a build exists

    kinds = ("*.py", "*.pyx")
    files = [
        PACKAGE / "errors.py",
        *(file for room in ROOMS for kind in kinds for file in (PACKAGE / room).rglob(kind)),
    ]
    return {str(file.relative_to(PACKAGE)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}
