"""The machine of a run. Figures compare only within one run on one machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from bench.cores import Cores

ROOT = Path(__file__).resolve().parents[1]


def resources(placed: Cores) -> dict[str, Any]:
    return {
        "cpu": _first(Path("/proc/cpuinfo"), r"^model name\s*: (.*)$") or platform.machine(),
        "cores": os.cpu_count(),
        "proxy_on": list(placed.proxy),
        "client_and_server_on": list(placed.others),
        "memory_mib": int(_first(Path("/proc/meminfo"), r"^MemTotal:\s*(\d+)") or 0) // 1024,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": commit(),
        "versions": {name: version for name, command in TOOLS.items() if (version := _version(command))},
    }


TOOLS = {
    "haproxy": ("haproxy", "-v"),
    "nginx": ("nginx", "-v"),
    "wrk": ("wrk", "-v"),
    "nft": ("nft", "--version"),
}


def commit() -> str:
    """Short hash, with a `+` if there are uncommitted changes."""
    name = _out("git", "rev-parse", "--short", "HEAD").strip()
    if not re.fullmatch("[0-9a-f]+", name):
        return "unknown"
    return name + ("+" if _out("git", "status", "--porcelain", "-uno") else "")


def _version(command: tuple[str, ...]) -> str:
    found = re.search(r"\d+\.\d+[\w.+~-]*", _out(*command))
    return found[0] if found else ""


def _out(*command: str) -> str:
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout


def _first(path: Path, pattern: str) -> str:
    found = re.search(pattern, path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1] if found else ""
