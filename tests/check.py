"""`make check`: format, lint, types, import contracts and the unit tests that are not slow, in parallel.

python -m tests.check              all of them
python -m tests.check --no-tests   all except the tests (what `make test` runs first)
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

STATIC = {
    "format": ["ruff", "format", "--check", "--quiet", "."],
    "lint": ["ruff", "check", "--quiet", "."],
    "imports": ["lint-imports"],
    "types": ["mypy"],
}
TESTS = {
    "unit tests": [
        "pytest",
        "-q",
        "-n",
        "auto",
        "--dist",
        "worksteal",
        "--hypothesis-profile=check",
        "-m",
        "not lab and not sandbox and not slow",
        "tests/unit",
    ]
}


def run(name: str, command: list[str]) -> tuple[str, bool, str, float]:
    start = time.monotonic()
    done = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    return name, done.returncode == 0, done.stdout + done.stderr, time.monotonic() - start


def main(arguments: list[str]) -> int:
    steps = STATIC if "--no-tests" in arguments else STATIC | TESTS
    good = True
    with ThreadPoolExecutor(max_workers=2) as pool:
        for name, passed, output, seconds in pool.map(lambda step: run(*step), steps.items()):
            print(f"{'ok  ' if passed else 'FAIL'} {name} ({seconds:.1f} s)", flush=True)
            if not passed:
                good = False
                print(output)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
