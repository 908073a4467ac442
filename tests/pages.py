"""The parts of the documentation that are generated from the code: settings, counters of workers, import layers,
and the pictures of the state machines.

python -m tests.pages              writes them
tests/unit/test_pages.py           compares them with the code
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, get_origin

import msgspec

from l7proxy import settings
from l7proxy.cli.service import FLAGS, MARKS
from l7proxy.gate import http1_state, http2_stream
from l7proxy.link.messages import WorkerStats
from l7proxy.proxy.server import session
from l7proxy.settings import CHOICES, RANGES, Settings

ROOT: Final = Path(__file__).resolve().parent.parent
COMMAND: Final = "python -m tests.pages"

TEXTS: Final[Mapping[str, str]] = {
    "flow_log_max_bytes": "Size in bytes at which the flow log is rotated.",
    "flow_log_backups": "Rotated flow logs that are kept.",
    "flow_ring": "Flows that the agent keeps in memory for `l7proxy observe`: one less than a power of two.",
    "flow_headers": "Names of HTTP headers whose values may stand in flows. Headers that hold a secret never do.",
    "flow_query": "Flows show the query of a URL.",
    "enable_icmp_rules": "Policies may have `icmps`.",
    "log_rate": "Flow events per second of the kernel. One sender may cause a tenth of them.",
}
"""Descriptions of settings that have neither a flag nor a docstring."""

UNITS: Final[Mapping[str, str]] = {"MIB": " MiB", "SECONDS": " s"}
"""The metavar in a flag's help → the unit."""


def settings_table() -> str:
    """One row for each setting, in order of definition."""
    texts = {**_docstrings(), **TEXTS, **{name.replace("-", "_"): text for name, (_, _, text) in FLAGS.items()}}
    rows = [_row(field, texts[field.name]) for field in msgspec.structs.fields(Settings)]
    return _table(("setting", "flag", "values", "default", "meaning"), rows)


def worker_stats() -> str:
    """One row for each number that workers report."""
    rows = [
        (f"`{name}`", stat.unit, "since its start" if stat.total else "now", stat.meaning)
        for name, stat in WorkerStats.definitions().items()
    ]
    return _table(("key", "unit", "when", "meaning"), rows)


def import_layers() -> str:
    """The layers of the import contract, top first, as one fenced block."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["name"] == "Floors: imports only go down")
    return "\n".join(["```", *layers, "```"])


def state_machine(module: Any) -> str:
    """A Mermaid diagram of a transition table (state, event → state). Its first state is the initial one."""
    states, events = names(module.State), names(module.Event)
    arrows = ["    [*] --> " + next(iter(states.values()))]
    for state, row in module.NEXT.items():
        ends: dict[int, list[str]] = {}
        for event, following in row.items():
            ends.setdefault(following, []).append(events[event])
        arrows += [f"    {states[state]} --> {states[end]}: {', '.join(by)}" for end, by in ends.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", *arrows, "```"])


def names(constants: type) -> dict[int, str]:
    """The number of each constant of a class → its name."""
    return {int(getattr(constants, name)): name for name in vars(constants) if name.isupper() and name[0] != "_"}


PARTS: Final[Mapping[tuple[str, str], Callable[[], str]]] = {
    ("docs/settings.md", "settings"): settings_table,
    ("docs/operating.md", "workers"): worker_stats,
    ("DESIGN.md", "layers"): import_layers,
    ("docs/http.md", "session"): partial(state_machine, session),
    ("docs/http.md", "http1"): partial(state_machine, http1_state),
    ("docs/http.md", "http2-stream"): partial(state_machine, http2_stream),
}
"""(page, name of the part) → the function that generates it."""


def with_part(page: str, name: str, text: str) -> str:
    """The page with the text between the two markers of that part replaced. ValueError when the markers are missing."""
    begin, end = f"<!-- begin {name}: made by `{COMMAND}` -->", f"<!-- end {name} -->"
    before, first, rest = page.partition(begin)
    _, second, after = rest.partition(end)
    if not first or not second:
        raise ValueError(f"the page has no part {name!r}: it needs the lines {begin!r} and {end!r}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def _row(field: msgspec.structs.FieldInfo, text: str) -> tuple[str, ...]:
    name, flag = field.name, field.name.replace("_", "-")
    meaning, _, default = text.partition(" [default: ")
    return (
        f"`{flag}`",
        f"`--{flag}`" if flag in FLAGS else "",
        _values(name, field.type),
        default.rstrip("].") if field.default is msgspec.NODEFAULT else _value(name, field.default),
        " ".join(meaning.split()).rstrip(".") + ".",
    )


def _values(name: str, kind: Any) -> str:
    if name in CHOICES:
        return ", ".join(f"`{choice}`" if choice else "empty" for choice in CHOICES[name])
    if name in RANGES:
        unit = UNITS.get(FLAGS.get(name.replace("_", "-"), (kind, "", ""))[1], "")
        return "{} to {}".format(*RANGES[name]) + unit
    if name in MARKS:
        return "one bit"
    if get_origin(kind) is tuple:
        return "list"
    return {bool: "`true`, `false`", int: "number", float: "number", Path: "path"}.get(kind, "text")


def _value(name: str, default: Any) -> str:
    if name in MARKS:
        return f"`{default:#x}`"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, tuple):
        return ", ".join(map(str, default)) or "none"
    return f"`{default}`" if str(default) else "empty"


def _docstrings() -> dict[str, str]:
    """The docstrings of the fields of Settings."""
    (found,) = ast.parse(inspect.getsource(settings.Settings)).body
    assert isinstance(found, ast.ClassDef)
    texts = {}
    for field, below in zip(found.body, found.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            texts[field.target.id] = str(ast.literal_eval(below.value))
    return texts


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(re.sub(r"\|", r"\\|", cell) for cell in line) + " |" for line in lines)


def main() -> None:
    for (page, name), make in PARTS.items():
        path = ROOT / page
        path.write_text(with_part(path.read_text(encoding="utf-8"), name, make()), encoding="utf-8")
        print(f"{page}: {name}")


if __name__ == "__main__":
    main()
