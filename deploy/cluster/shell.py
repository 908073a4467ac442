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
    seconds: float | None = None,
) -> str:
    """The standard output of a program. ConfigError, with the end of its output, if it fails or takes too long."""
    words = [str(part) for part in command]
    try:
        done = subprocess.run(
            words, input=stdin, env=env, cwd=cwd, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"{' '.join(words[:6])}: not done within {error.timeout:.0f} s") from error
    if done.returncode:
        raise ConfigError(f"{' '.join(words[:6])}: exit code {done.returncode}\n{tail(done.stderr)}")
    return done.stdout


def tail(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.strip().splitlines()[-LAST_LINES:])
