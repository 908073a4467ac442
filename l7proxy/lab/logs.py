"""`lab logs`: prints the logs of pods and nodes, each line with the name of its writer; `-f` follows them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from l7proxy.lab.execute import find
from l7proxy.lab.state import Lab

_POLL = 0.2


def directories(lab: Lab, target: str | None) -> dict[str, Path]:
    """name → its log directory. All of them without a target."""
    state = lab.load()
    pods = {name: lab.directory / "pods" / name.replace("/", "_") for name in state.pods}
    nodes = {f"node/{name}": lab.node_directory(name) for name in state.nodes}
    if target is None:
        return {**nodes, **pods}
    name, box = find(state, target)
    found = f"node/{name}" if box in state.nodes.values() and target.startswith("node/") else name
    return {found: {**nodes, **pods}[found]}


def lines(sources: dict[str, Path], *, follow: bool) -> Iterator[str]:
    """Complete lines, in the order of the files; when following, as they are written."""
    read: dict[Path, int] = {}
    while True:
        for name, directory in sources.items():
            for path in sorted(directory.glob("*.log")):
                text, read[path] = _from(path, read.get(path, 0))
                yield from (f"{name} {path.stem}: {line}" for line in text.splitlines())
        if not follow or not any(directory.exists() for directory in sources.values()):
            return
        time.sleep(_POLL)


def _from(path: Path, offset: int) -> tuple[str, int]:
    """The complete lines after `offset`, and the offset of their end."""
    with path.open("rb") as log:
        log.seek(offset)
        data = log.read()
    end = data.rfind(b"\n") + 1
    return data[:end].decode(errors="replace"), offset + end
