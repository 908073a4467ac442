"""`l7proxy policy replay`: which recorded flows would have another verdict under other policies."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from l7proxy.cli import agent_socket
from l7proxy.cli.agent_socket import RunDir, Server
from l7proxy.cli.policy_learn import Flows, Query, Strict, live
from l7proxy.cli.terminal import Format, paint, plain, show_json, table
from l7proxy.errors import ConfigError
from l7proxy.setting_definitions import POLICY

if TYPE_CHECKING:
    from l7proxy.learn.recording import Recording
    from l7proxy.setting_definitions import Settings
    from l7proxy.simulate.recorded import Judge
    from l7proxy.simulate.replay import Result

SHOWN: Final = 40
"""Rows of each table; -o json has all."""
_ENDS: Final = {"source": "SOURCE", "destination": "DESTINATION", "port": "PORT", "request": "REQUEST"}
CHANGES: Final = {"count": "FLOWS", "was": "WAS", "would": "WOULD BE", **_ENDS, "reason": "WHY"}
UNJUDGED: Final = {"count": "FLOWS", **_ENDS, "why": "NOT JUDGED, BECAUSE"}

New = Annotated[
    list[Path],
    typer.Option("-f", "--filename", metavar="NEW", help="All policies to judge by: files or directories."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings file of the agent, to read policies as it does."),
]
LikeCilium = Annotated[bool, typer.Option("--like-cilium", help="Interpret Kubernetes NetworkPolicy as Cilium does.")]


def replay(
    new: New,
    flows: Flows = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="Output format.")] = Format.TABLE,
    query: Annotated[
        Query,
        typer.Option(help="seen: requests without a query in the flows had none. [any, unless a flow shows a query]"),
    ] = Query.ANY,
    strict: Strict = False,
    config: Config = None,
    like_cilium: LikeCilium = False,
    run_dir: RunDir = agent_socket.RUN_DIR,
    server: Server = "",
) -> None:
    """Show which flows would have another verdict if the policies in NEW were all there are, and why.

    Each request and connection is judged by the code that enforces policies, with the labels in the flow. What flows
    do not record (headers, queries, names of ports) is not guessed: such flows are listed as not judged.
    Without --flows: the flows that this node's agent has.
    Exit code 0: no verdict changes, 1: some do, 2: an input cannot be read.

    \b
    l7proxy policy replay --flows flows.jsonl -f learned/
    hubble observe --last 10000 -o json | l7proxy policy replay --flows - -f policies/ -o json
    """
    from l7proxy.learn import observation
    from l7proxy.learn.recording import Recording
    from l7proxy.simulate import replay as replaying

    judge = judge_of(new, config, like_cilium=like_cilium)
    recording = Recording(flows or [], strict)
    seen = replaying.Flows()
    given = recording.flows() if flows else live(agent_socket.path_of(run_dir, server), recording, follow=False)
    seen.add_all(map(observation.observe, given))
    judge.queries_recorded = query is Query.SEEN or seen.has_queries
    result = replaying.replay(seen, judge)
    _warn(recording, judge)
    if output is Format.JSON:
        show_json(result.to_json())
    else:
        _show(result)
    raise typer.Exit(1 if result.changes else 0)


def judge_of(paths: Sequence[Path], config: Path | None, *, like_cilium: bool) -> Judge:
    """ConfigError names what of these policies cannot be read: judging by a part of them would mislead."""
    from l7proxy.settings import derived
    from l7proxy.settings.read import load as load_settings
    from l7proxy.simulate.recorded import Judge
    from l7proxy.sources.files.scan import load

    settings: Settings = load_settings(
        config, {"kubernetes_network_policy": "cilium" if like_cilium else None}, used_by=POLICY
    )
    changes, problems = load(paths, derived.policy_options(settings))
    if problems:
        raise ConfigError(f"-f {problems[0]}")
    return Judge(changes, settings)


def _warn(recording: Recording, judge: Judge) -> None:
    warnings = [f"{problem}: skipped" for problem in recording.problems] + judge.warnings
    if recording.lost:
        warnings.append(f"{recording.lost} flows were lost when they were recorded")
    for warning in warnings:
        print(f"warning: {plain(warning)}", file=sys.stderr)


def _show(result: Result) -> None:
    from l7proxy.simulate.replay import pairs

    if result.changes:
        table(("SOURCE", "DESTINATION", "PORT", "WOULD BE", "FLOWS"), list(pairs(result.changes))[:SHOWN])
        print()
        _rows(CHANGES, [one.to_json() for one in result.changes])
    if result.unjudged:
        _rows(UNJUDGED, [one.to_json() for one in result.unjudged])
    counts = result.to_json()
    left_out = sum(result.left_out.values())
    print(
        f"{paint()(str(result.changed), 'red' if result.changed else 'green')} of {result.flows} flows would change, "
        f"{counts['unchanged']} would not, {counts['unjudged']} cannot be judged, "
        f"{left_out} are no verdict of a policy (replies and the like)"
    )


def _rows(columns: Mapping[str, str], found: Sequence[Mapping[str, Any]]) -> None:
    """A table of the fields in `columns`, each under its heading."""
    table(tuple(columns.values()), [[one[name] or "" for name in columns] for one in found[:SHOWN]])
    if len(found) > SHOWN:
        print(f"and {len(found) - SHOWN} more: -o json")
    print()
