"""Pins what the image has from PyPI: `python -m deploy.image.requirements` writes the two lists beside this file.

Each version is pinned with the digest of its wheel for every architecture, so `pip --require-hashes` installs these
bytes or nothing. Only wheels are used: the image has no compiler.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
RUNTIME: Final = HERE / "requirements.txt"
BUILD: Final = HERE / "build-requirements.txt"
BUILD_TOOLS: Final = ("cython>=3.1", "mypy>=1.14", "setuptools>=68", "wheel>=0.43")
"""What compiles the hot modules. None of it is in the image."""
PYTHON: Final = "3.11"
"""Debian 12's."""
GLIBC: Final = 36
"""Debian 12 has glibc 2.36."""
MACHINES: Final = ("x86_64", "aarch64")
HEAD: Final = "# Made by `python -m deploy.image.requirements` from pyproject.toml.\n"


def dependencies() -> list[str]:
    """The project's own, as pyproject.toml has them, and those of Hubble's API and of OpenTelemetry."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *optional["hubble"], *optional["otlp"]]


def target(machine: str) -> list[str]:
    """Options of pip that choose wheels for the image, whatever Python runs pip."""
    old = [f"manylinux{name}_{machine}" for name in ("2014", "2010", "1")]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, 4, -1)] + old
    options = ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}", f"--abi=cp{PYTHON[0]}11"]
    return [*options, "--abi=abi3", "--abi=none", *(f"--platform={one}" for one in platforms)]


def download(into: Path, machine: str, wanted: Sequence[str]) -> None:
    """Fetch wheels. CalledProcessError when there is none for this machine."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    subprocess.run([*pip, f"--dest={into}", *target(machine), *wanted], check=True)


def pinned(wanted: Iterable[str]) -> str:
    """One line per distribution, with a hash for each wheel."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    with tempfile.TemporaryDirectory() as scratch:
        for machine in MACHINES:
            download(Path(scratch, machine), machine, list(wanted))
        for wheel in Path(scratch).rglob("*.whl"):
            name, version = wheel.name.split("-")[:2]
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            found[f"{name.lower().replace('_', '-').replace('.', '-')}=={version}"].add(digest)
    lines = (
        " \\\n    ".join([name, *(f"--hash=sha256:{one}" for one in sorted(found[name]))]) for name in sorted(found)
    )
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    RUNTIME.write_text(pinned(dependencies()))
    BUILD.write_text(pinned(BUILD_TOOLS))


if __name__ == "__main__":
    main()
