"""Starts the real agent of each node, and waits until everything that was applied is enforced."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from l7proxy.agent import client
from l7proxy.errors import ConfigError, L7ProxyError
from l7proxy.lab.containers import Container
from l7proxy.lab.sandbox import Status, read_status
from l7proxy.lab.settings import Kernel, Refuse, Settings
from l7proxy.lab.state import Lab

CONTAINER: Final = "l7proxy"
_POLL: Final = 0.05


def container(lab: Lab, settings: Settings, node: str) -> Container:
    """`l7proxy run` with this node's directories."""
    argv = [sys.executable, "-m", "l7proxy.cli.main", "run"]
    argv += ["--source", str(lab.store.directory), "--node", node]
    argv += ["--run-dir", str(lab.run_directory(node)), "--cni-results", str(lab.cni_directory(node))]
    argv += ["--workers", str(settings.workers)]
    if settings.backend is not Kernel.AUTO:
        argv += ["--backend", settings.backend.value]
    if settings.refuse is not Refuse.RESET:
        argv += ["--config", str(_configuration(lab, settings, node))]
    if settings.flow_logs:
        argv += ["--flow-log", str(Path(settings.flow_logs) / f"{node}.jsonl")]
    return Container(CONTAINER, tuple(argv))


def _configuration(lab: Lab, settings: Settings, node: str) -> Path:
    path = lab.node_directory(node) / "config.yaml"
    path.write_text(f"refuse: {settings.refuse.value}\n")
    return path


def ask(lab: Lab, node: str, question: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The responses of a node's agent: one JSON object per line. ConfigError when it responds with an error."""
    return client.stream(lab.run_directory(node) / client.SOCKET_NAME, question, patience=client.PATIENCE)


def status(lab: Lab, node: str) -> dict[str, Any] | None:
    """The agent's own status, or None while it does not respond."""
    try:
        return next(ask(lab, node, {"method": "status"}), None)
    except L7ProxyError:
        return None


def wait_enforced(lab: Lab, nodes: list[str], report: Callable[[str], None], *, seconds: float = 30.0) -> None:
    """Return when every node enforces every file of the manifest directory in its present state.

    ConfigError on timeout or if an agent ended: names the node, what is still missing, and the end of its log.
    """
    deadline = time.monotonic() + seconds
    for node in nodes:
        while (missing := not_enforced(lab, node)) is not None:
            if (ended := _ended(read_status(lab.node_directory(node)))) or time.monotonic() > deadline:
                what = f"l7proxy exited ({ended})" if ended else f"not enforced after {seconds:g} s: {missing}"
                raise ConfigError(f"{node}: {what}\n{log_tail(lab.node_directory(node) / f'{CONTAINER}.log')}")
            time.sleep(_POLL)
        report(f"{node}: enforced")


def not_enforced(lab: Lab, node: str) -> str | None:
    """What this node does not enforce yet, or None when it enforces all."""
    answer = status(lab, node)
    if answer is None:
        return "the agent does not respond yet"
    source = answer.get("source") or {}
    if not source.get("synced"):
        return "the manifests are not fully read yet"
    seen = source.get("detail") or {}
    present = {path.name: path.stat().st_mtime_ns for path in lab.store.directory.glob("*.yaml")}
    for name in sorted(present.keys() | seen.keys()):
        if seen.get(name) != present.get(name):
            return f"{name} is not enforced yet"
    if answer.get("revision") != answer.get("enforced_revision"):
        error = (answer.get("kernel") or {}).get("error")
        return f"revision {answer.get('revision')} is not enforced yet" + (f": {error}" if error else "")
    late = [w.get("pid") for w in answer.get("workers") or [] if w.get("revision") != answer.get("revision")]
    if late or not answer.get("workers"):
        return f"workers {late} enforce an older revision" if late else "no worker is connected yet"
    return None


def _ended(seen: Status) -> str:
    """Why the agent ended; empty while it runs (or is not started yet)."""
    if seen.error:
        return seen.error
    return next(
        (
            f"exit code {c.code}" if c.state == "exited" else c.reason
            for c in seen.containers
            if c.state in {"exited", "failed"}
        ),
        "",
    )


def log_tail(path: Path, lines: int = 20) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 16384))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"
