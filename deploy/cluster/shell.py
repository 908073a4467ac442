"""Running programs: their output is shown only when they fail."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from l7proxy.errors import ConfigError

LAST_LINES = 15


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """The standard output of a program. ConfigError, with the end of its output, if it fails."""
    done = subprocess.run(
        [str(part) for part in command], input=stdin, env=env, cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ConfigError(
            f"{' '.join(str(part) for part in command[:6])}: exit code {done.returncode}\n{tail(done.stderr)}"
        )
    return done.stdout


def tail(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.strip().splitlines()[-LAST_LINES:])
