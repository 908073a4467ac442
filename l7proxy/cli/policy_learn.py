"""`l7proxy policy learn`: writes policies from flows that were recorded, or that the node's agent has."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from l7proxy.agent import client
from l7proxy.cli import agent_socket, flow_time
from l7proxy.cli.agent_socket import RunDir, Server
from l7proxy.cli.terminal import plain
from l7proxy.errors import ConfigError
from l7proxy.flows import flow, timestamp

if TYPE_CHECKING:
    from l7proxy.flows.flow import Flow
    from l7proxy.learn.earlier import Earlier
    from l7proxy.learn.policies import Learned
    from l7proxy.learn.recording import Recording

Flows = Annotated[
    list[str] | None,
    typer.Option(
        "--flows", metavar="FILE", help="Recorded flows, also of hubble, also .gz; - is standard input. Repeatable."
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first line that cannot be read: exit code 2.")]


class Query(StrEnum):
    """Which queries learned HTTP rules allow."""

    ANY = "any"
    SEEN = "seen"


def learn(
    flows: Flows = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Without --flows: also new flows, until Ctrl-C or SIGTERM; then write.")
    ] = False,
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Only flows since: 5m, 2025-11-23 or 2025-11-23T20:00:00Z.")
    ] = "",
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="Only policies of this namespace. Repeatable."),
    ] = None,
    min_count: Annotated[
        int, typer.Option(min=1, metavar="N", help="Allow only what was seen this often; else a comment.")
    ] = 1,
    include_dropped: Annotated[
        bool, typer.Option("--include-dropped", help="Allow what was refused, too; else it is a comment.")
    ] = False,
    cidr: Annotated[
        bool, typer.Option("--cidr", help="Addresses outside as prefixes (/32, /128) instead of the entity world.")
    ] = False,
    hosts: Annotated[bool, typer.Option("--hosts", help="HTTP rules also name the host, as it was sent.")] = False,
    query: Annotated[
        Query, typer.Option(help="Allow any query, or (seen) a query only on paths that were seen with one.")
    ] = Query.ANY,
    max_values: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Different segments at one place of a path; with more, any segment is allowed."
        ),
    ] = 10,
    max_paths: Annotated[int, typer.Option(min=1, metavar="N", help="HTTP rules for one method, peer and port.")] = 100,
    old: Annotated[
        list[Path] | None,
        typer.Option("-f", "--filename", metavar="OLD", help="Earlier policies: they are kept, and only added to."),
    ] = None,
    output: Annotated[
        str,
        typer.Option("-o", "--output", metavar="PATH", help="A file, or a directory (with a / at its end) [stdout]."),
    ] = "",
    strict: Strict = False,
    run_dir: RunDir = agent_socket.RUN_DIR,
    server: Server = "",
) -> None:
    """Write least-privilege CiliumNetworkPolicies from flows: one for each group of pods, with what was seen of them.

    A path segment that looks like an id (a number, a UUID, a hash) becomes [^/?]+, and so does each of more than
    --max-values different ones. Counts, callers, and all that a rule allows beyond what was seen are comments.
    Refused traffic is a comment, too. Ports whose requests were not inspected get no HTTP rules: inspect them first
    (docs/flows.md, "Learn a policy from flows").

    \b
    l7proxy policy learn -o learned/                              from the flows that this node's agent has
    timeout 1h l7proxy policy learn --follow -n shop -o learned/  what it has, and an hour more
    hubble observe --last 10000 -o json | l7proxy policy learn --flows - > learned.yaml
    l7proxy policy learn --flows node-1.jsonl --flows node-2.jsonl.gz -f learned/ -o learned/
    l7proxy policy replay --flows node-1.jsonl -f learned/        then: what would change?
    """
    from l7proxy.learn import earlier, observation, policies, traffic
    from l7proxy.learn.recording import Recording

    if flows and follow:
        raise ConfigError("--follow cannot be combined with --flows")
    options = traffic.Options(
        namespaces=frozenset(namespace or ()),
        since_ns=flow_time.moment(since, option="since") if since else 0,
        min_count=min_count,
        include_dropped=include_dropped,
        cidr=cidr,
        hosts=hosts,
        any_query=query is Query.ANY,
        max_values=max_values,
        max_paths=max_paths,
    )
    before = _earlier(old or [])
    recording = Recording(flows or [], strict)
    seen = traffic.Traffic(options, allows=earlier.allows(before))
    given = recording.flows() if flows else live(agent_socket.path_of(run_dir, server), recording, follow=follow)
    with _until_stopped() if follow else nullcontext():
        seen.add_all(map(observation.observe, given))
    found = policies.learn(seen, before)
    _write(found, policies.heading(seen), output, old or [])
    _report(found, seen, recording)
    raise typer.Exit(0 if found else 1)


@contextmanager
def _until_stopped() -> Iterator[None]:
    """Ctrl-C and SIGTERM (of timeout(1), for example) end the block, not the command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        yield


def live(path: Path, recording: Recording, *, follow: bool) -> Iterator[Flow]:
    """The flows that the agent has; with `follow` also new ones. `recording` counts those that are lost."""
    more = {"follow": True, "since": timestamp.text(0)} if follow else {}  # without `since` only new ones
    for answer in client.stream(path, {"method": "observe", **more}):
        found = flow.of_object(answer)
        if found.flow is not None:
            yield found.flow
        elif found.lost_events is not None:
            recording.add_lost(found.lost_events)


def _earlier(paths: Sequence[Path]) -> list[Earlier]:
    from l7proxy.learn import earlier
    from l7proxy.model.resources import PolicyDocument, Upsert
    from l7proxy.sources.files.scan import load

    changes, problems = load(paths)
    if problems:
        raise ConfigError(f"-f {problems[0]}")
    documents = (change.resource for change in changes if isinstance(change, Upsert))
    return earlier.read([one for one in documents if isinstance(one, PolicyDocument)])


def _write(found: Sequence[Learned], heading: Sequence[str], output: str, old: Sequence[Path]) -> None:
    from l7proxy.learn import text

    head = "".join(text.comment(line) + "\n" for line in heading)
    target = Path(output)
    try:
        if not output or output == "-":
            sys.stdout.write(head + "---\n".join(one.text for one in found))
        elif output.endswith("/") or target.is_dir():
            _into(target, found, head, old)
        else:
            target.write_text(head + "---\n".join(one.text for one in found))
    except OSError as error:
        raise ConfigError(f"-o {output}: {error.strerror or error}") from error


def _into(directory: Path, found: Iterable[Learned], head: str, old: Sequence[Path]) -> None:
    """One file for each policy. Earlier policies in this directory are replaced, so they must have the same names."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {f"{one.namespace}.{one.name}.yaml": one for one in found}
    for root in old:
        inside = [root] if root.is_file() else list(root.rglob("*"))
        for path in inside:
            if path.is_file() and directory.resolve() in path.resolve().parents and path.name not in files:
                raise ConfigError(f"-o {directory}: holds the earlier {path.name}: write to another directory")
    for name, one in files.items():
        (directory / name).write_text(head + one.text)


def _report(found: Sequence[Learned], seen: object, recording: Recording) -> None:
    """What was done, on standard error."""
    from l7proxy.learn.traffic import Traffic

    assert isinstance(seen, Traffic)
    for problem in recording.problems:
        print(f"warning: {plain(problem)}: skipped", file=sys.stderr)
    if recording.lost:
        print(f"warning: {recording.lost} flows were lost when they were recorded", file=sys.stderr)
    for what, count in sorted(seen.left_out.items()):
        print(f"note: {count} not used: {plain(what)}", file=sys.stderr)
    entries = sum(one.added for one in found)
    print(f"{len(found)} policies, {entries} new entries, from {seen.flows} flows", file=sys.stderr)
    if not found:
        print("nothing was learned: are there flows? pods without a policy have none (docs/flows.md)", file=sys.stderr)
