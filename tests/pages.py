"""The parts of the documentation that are generated from the code: settings (table and JSON Schema), counters of
workers, import layers, and the diagrams of the state machines.

python -m tests.pages              writes them
tests/unit/test_pages.py           compares them with the code
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from l7proxy.gate import http1_state, http2_stream
from l7proxy.link.messages import WorkerStats
from l7proxy.proxy.server import session
from l7proxy.setting_definitions import DEFINITIONS, Definition

ROOT: Final = Path(__file__).resolve().parent.parent
COMMAND: Final = "python -m tests.pages"

SCHEMA: Final = "docs/settings.schema.json"


def settings_table() -> str:
    """One row for each setting, in order of definition."""
    columns = ("setting", "variable", "values", "default", "used by", "change", "meaning")
    return _table(columns, map(_row, DEFINITIONS.values()))


def schema() -> dict[str, Any]:
    """JSON Schema of the configuration file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "l7proxy settings",
        "type": "object",
        "additionalProperties": False,
        "properties": {one.key: _property(one) for one in DEFINITIONS.values()},
    }


def schema_text() -> str:
    return json.dumps(schema(), indent=2) + "\n"


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


def _row(one: Definition) -> tuple[str, ...]:
    default = one.about.default or (f"`{one.default}`" if one.default else "none")
    used_by, change = ", ".join(one.used_by), "live" if one.about.live else "restart"
    return f"`{one.key}`", f"`{one.variable}`", one.allowed, default, used_by, change, one.about.help


def _property(one: Definition) -> dict[str, Any]:
    limits = {} if one.about.low is None else {"minimum": one.about.low, "maximum": one.about.high}
    names = {bool: "boolean", int: "integer", float: "number"}
    if one.item is not None:
        found: dict[str, Any] = {"type": "array", "items": {"type": names.get(one.item, "string"), **limits}}
    elif one.about.bit:
        found = {"enum": [1 << bit for bit in range(32)]}
    elif one.choices:
        found = {"enum": list(one.choices)}
    else:
        found = {"type": names.get(one.kind, "string"), **limits}
    default = {} if one.about.default else {"default": str(one.value) if one.kind is Path else one.value}
    return {"description": one.about.help + (f" Unit: {one.about.unit}." if one.about.unit else ""), **found, **default}


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(re.sub(r"\|", r"\\|", cell) for cell in line) + " |" for line in lines)


def main() -> None:
    from deploy.helm import generate  # it needs the schema of the settings from here

    for (page, name), make in PARTS.items():
        path = ROOT / page
        path.write_text(with_part(path.read_text(encoding="utf-8"), name, make()), encoding="utf-8")
        print(f"{page}: {name}")
    (ROOT / SCHEMA).write_text(schema_text(), encoding="utf-8")
    print(SCHEMA)
    generate.write_what_needs_no_helm()
    print("deploy/: schema of the chart's values, CRDs")


if __name__ == "__main__":
    main()
