"""`l7proxy policy shadow`: which flows of live traffic would have another verdict under other policies."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l7proxy.agent import client
from l7proxy.cli import agent_socket
from l7proxy.cli.agent_socket import RunDir, Server
from l7proxy.cli.policy_learn import Query, live
from l7proxy.cli.policy_replay import Config, LikeCilium, judge_of
from l7proxy.cli.terminal import Format, counted, paint, plain
from l7proxy.errors import ConfigError

if TYPE_CHECKING:
    from l7proxy.flows.flow import Flow
    from l7proxy.simulate.shadow import Would


def shadow(
    new: Annotated[
        list[Path] | None,
        typer.Option(
            "-f", "--filename", metavar="NEW", help="All policies to judge by [default: the agent's shadow-policies]."
        ),
    ] = None,
    output: Annotated[
        Format, typer.Option("--output", "-o", help="table: a line for each change; json: its flow, with `shadow`.")
    ] = Format.TABLE,
    unjudged: Annotated[bool, typer.Option("--unjudged", help="Also flows that cannot be judged, and why.")] = False,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="New flows, too, until Ctrl-C.")] = True,
    query: Annotated[Query, typer.Option(help="seen: requests without a query in the flows had none.")] = Query.ANY,
    config: Config = None,
    like_cilium: LikeCilium = False,
    run_dir: RunDir = agent_socket.RUN_DIR,
    server: Server = "",
) -> None:
    """Show each flow of this node that would have another verdict if the policies in NEW were all there are, and why.

    Nothing is enforced. Begins with the flows that the agent has. With the setting shadow-policies the agent judges all
    the time, and counts: l7proxy_shadow_verdicts_total in its metrics, `shadow` in `status -o json`.
    Exit code with --no-follow: 0: no verdict changes, 1: some do.

    \b
    l7proxy policy shadow -f policies-of-tomorrow/
    l7proxy policy shadow -f learned/ -o json | jq -c .shadow
    """
    from l7proxy.learn.recording import Recording
    from l7proxy.simulate.shadow import UNCHANGED, UNJUDGED, Shadow

    path = agent_socket.path_of(run_dir, server)
    judge = judge_of(new or [_of_agent(path)], config, like_cilium=like_cilium)
    judge.queries_recorded = query is Query.SEEN
    for warning in judge.warnings:
        print(f"warning: {plain(warning)}", file=sys.stderr)
    judged, counts, recording = Shadow(judge), Counter[str](), Recording(())
    try:
        for one in live(path, recording, follow=follow):
            for flow, found in judged.see([one]):
                counts[found.would] += 1
                if found.would != UNCHANGED and (unjudged or found.would != UNJUDGED):
                    _show(flow, found, output)
    finally:
        said = counted(counts) or "no flows"
        lost = f"; {recording.lost} flows were lost" if recording.lost else ""
        print(f"would be: {said}{lost}", file=sys.stderr)
    changed = any(word not in (UNCHANGED, UNJUDGED) for word in counts)
    raise typer.Exit(1 if not follow and changed else 0)


def _of_agent(path: Path) -> Path:
    found = agent_socket.as_object(client.ask(path, "status")).get("shadow")
    if not found:
        raise ConfigError("the agent has no shadow-policies: name policies with -f")
    return Path(agent_socket.as_object(found)["policies"])


def _show(flow: Flow, found: Would, output: Format) -> None:
    if output is Format.JSON:
        print(json.dumps({**flow.to_json(), "shadow": found.to_json()}), flush=True)
        return
    change = found.change
    if change is None:
        print(plain(f"{flow.time}: {flow.summary}: cannot be judged: {found.why}"), flush=True)
        return
    request = f" {change.request}" if change.request else ""
    would = paint()(f"would be {change.would}", "red" if change.would == "denied" else "green")
    about = f"{flow.time}: {change.source} -> {change.destination} {change.port}{request} was {change.was}"
    print(f"{plain(about)}, {would}: {plain(change.reason)}", flush=True)
