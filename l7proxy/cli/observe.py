"""`l7proxy observe`: shows flows, live from the agent or a Hubble server, or from exported files."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from l7proxy.agent import client
from l7proxy.cli import agent_socket, field_mask, flow_files, flow_graph, hubble_server, observe_filters, printer
from l7proxy.cli.agent_socket import RunDir
from l7proxy.cli.flags import flag, with_flags
from l7proxy.cli.flow_time import TimeFormat, moment
from l7proxy.cli.terminal import When, paint
from l7proxy.errors import ConfigError
from l7proxy.flows import filters, flow, timestamp

DEFAULT_LAST: Final = 20
EVERYTHING: Final = 2**64 - 1
FLOW_SERVER: Final = (
    "Whom to ask: HOST:PORT, unix:///path or tls://HOST:PORT of a Hubble server (agent, Relay, Cilium); the path of an "
    "agent.sock is our agent's [variables: L7PROXY_SERVER, HUBBLE_SERVER]."
)


class Output(StrEnum):
    COMPACT = "compact"
    DICT = "dict"
    TABLE = "table"
    TAB = "tab"
    JSON = "json"
    JSONPB = "jsonpb"
    MERMAID = "mermaid"


AS_JSON: Final = (Output.JSON, Output.JSONPB)
AS_TABLE: Final = (Output.TABLE, Output.TAB)


def _filter_flags() -> Iterator[inspect.Parameter]:
    """Every flag of the tables in observe_filters. The help of `--X` also mentions `--from-X` and `--to-X`."""
    for one in observe_filters.PLAIN:
        yield _filter_flag(one, one.name, one.help + ".", one.short)
    for one in observe_filters.SIDED:
        text = f"{one.help}. Source or destination only: --from-{one.name}, --to-{one.name}."
        yield _filter_flag(one, one.name, text, one.short)
        for prefix in ("from-", "to-"):
            yield _filter_flag(one, f"{prefix}{one.name}", one.help + ".", hidden=True)


def _filter_flag(
    one: observe_filters.Flag, name: str, text: str, short: str = "", *, hidden: bool = False
) -> inspect.Parameter:
    names = [f"--{name}", *([short] if short else [])]
    if one.value:
        return flag(name, bool, typer.Option(*names, help=text, hidden=hidden, show_default=False))
    return flag(name, list[str], typer.Option(*names, help=text, hidden=hidden, metavar="VALUE", show_default=False))


def _observe(
    *,
    flags: Mapping[str, Any],
    connection: Mapping[str, Any],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new flows.")] = False,
    last: Annotated[
        int, typer.Option(min=0, help=f"The last N matching flows [default: {DEFAULT_LAST}].", show_default=False)
    ] = 0,
    first: Annotated[int, typer.Option(min=0, help="The first N matching flows.", show_default=False)] = 0,
    every: Annotated[bool, typer.Option("--all", help="All flows that the server still has.")] = False,
    since: Annotated[str, typer.Option(help="Flows since: 5m, 2025-11-23 or 2025-11-23T20:00:00Z.")] = "",
    until: Annotated[str, typer.Option(help="Flows until; same formats.")] = "",
    negated: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="FLAG", help="Exclude what the next flag matches: --not --verdict FORWARDED."),
    ] = None,
    allowlist: Annotated[
        list[str] | None, typer.Option(metavar="JSON", help="Also flows that this FlowFilter in JSON matches.")
    ] = None,
    denylist: Annotated[
        list[str] | None, typer.Option(metavar="JSON", help="No flows that this FlowFilter in JSON matches.")
    ] = None,
    print_raw_filters: Annotated[
        bool, typer.Option("--print-raw-filters", help="Print the filters as for --allowlist, and ask nobody.")
    ] = False,
    output: Annotated[
        Output | None,
        typer.Option(
            "--output",
            "-o",
            case_sensitive=False,
            help="As `hubble` prints: compact, dict, table; json, jsonpb: one flow per line, as exported; mermaid: a "
            "picture of who speaks to whom. Default: compact, with the reasons of denials.",
        ),
    ] = None,
    graph: Annotated[
        str, typer.Option(metavar="FILE", help="Draw who speaks to whom: .svg, .png, .pdf, .dot or .mmd.")
    ] = "",
    print_node_name: Annotated[bool, typer.Option("--print-node-name", help="Print the node name.")] = False,
    print_policy_names: Annotated[
        bool, typer.Option("--print-policy-names", help="Print the names of the policies behind L3/L4 verdicts.")
    ] = False,
    print_reasons: Annotated[
        bool | None,
        typer.Option("--print-reasons/--no-print-reasons", help="Print why a flow was denied; default without -o."),
    ] = None,
    time_format: Annotated[
        TimeFormat, typer.Option(case_sensitive=False, help="How times are printed, in UTC.")
    ] = TimeFormat.STAMP_MILLI,
    ip_translation: Annotated[bool, typer.Option(help="Print names instead of IP addresses.")] = True,
    numeric: Annotated[bool, typer.Option("--numeric", help="Print IP addresses instead of names.")] = False,
    color: Annotated[When, typer.Option(help="Colour output: auto, always or never.")] = When.AUTO,
    mask: Annotated[
        list[str] | None,
        typer.Option("--field-mask", metavar="FIELDS", help="Only these fields of a flow; with -o json."),
    ] = None,
    use_default_field_masks: Annotated[
        bool, typer.Option(help="Ask a Hubble server only for the fields that are printed.")
    ] = True,
    input_file: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Read exported flows from a file, also .gz, instead of a server; - is standard input."
        ),
    ] = "",
    silent_errors: Annotated[
        bool, typer.Option("--silent-errors", "-s", help="No warnings about lines and nodes.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", "-D", help="Also report nodes that come and go.")] = False,
    run_dir: RunDir = agent_socket.RUN_DIR,
    server: Annotated[str, typer.Option("--server", envvar="L7PROXY_SERVER", show_envvar=False, help=FLOW_SERVER)] = "",
) -> None:
    """Show flows: source, destination, verdict and reason.

    The flags are those of `hubble observe`. Different flags must all match; of several values of one flag, any.

    \b
    l7proxy observe                                    the last 20 flows
    l7proxy observe -f --verdict DROPPED               follow refused traffic, with reasons
    l7proxy observe --to-pod shop/cart --http-status 5+
    l7proxy observe --pod default/web --not --port 53
    l7proxy observe --since 5m -o json > flows.jsonl   to read later with --input-file flows.jsonl
    l7proxy observe --server localhost:4245            all nodes, through Hubble Relay
    l7proxy observe --all --graph traffic.svg          who speaks to whom
    """
    form = Output.MERMAID if graph else output or Output.COMPACT
    _check(follow=follow, last=last, first=first, every=every, output=form, masked=bool(mask))
    request = _request(flags, negated or [], allowlist or [], denylist or [])
    if print_raw_filters:
        print(*observe_filters.as_yaml(request["filters"]), sep="\n")
        return
    request |= {"follow": True} if follow else {}
    request |= {name: count for name, count in (("last", last), ("first", first)) if count}
    for name, value in (("since", since), ("until", until)):
        if value:
            request[name] = timestamp.text(moment(value, option=name))
    paths = [path for value in mask or () for path in value.split(",")]
    field_mask.check(paths)
    if connection.get("port_forward"):
        if input_file:
            raise ConfigError("cannot use --input-file and --port-forward together")
        hubble_server.refuse_port_forward(connection)
    style = printer.Style(
        paint(color),
        node_name=print_node_name,
        policy_names=print_policy_names,
        numeric=numeric or not ip_translation,
        reasons=output is None if print_reasons is None else print_reasons,
        time_format=time_format,
        debug=debug,
    )
    errors = None if silent_errors else sys.stderr
    if input_file:
        answers = _selected(flow_files.responses(input_file, lambda text: _warn(text, silent=silent_errors)), request)
    else:
        if not (follow or last or first or since or until) and not every:
            request["last"] = DEFAULT_LAST
        wanted = paths if form in AS_JSON or not use_default_field_masks else None
        answers = _asked(
            hubble_server.chosen(run_dir, server), connection, request, wanted, run_dir, server, every=every
        )
    if paths:
        answers = field_mask.applied(answers, paths)
    if form is Output.MERMAID:
        flow_graph.draw((answer.flow for answer in answers if answer.flow), graph)
    else:
        show(answers, form, style, errors)


observe = with_flags(with_flags(_observe, "flags", _filter_flags()), "connection", hubble_server.flags())


def _request(
    flags: Mapping[str, Any], negated: Sequence[str], allowlist: Sequence[str], denylist: Sequence[str]
) -> dict[str, Any]:
    wanted = {}
    for key, given in flags.items():
        name = key.replace("_", "-")
        fixed = observe_filters.FLAGS[name].value
        wanted[name] = ([fixed] if given else []) if fixed else given
    return {"filters": observe_filters.request(wanted, negations(negated), allowlist, denylist)}


def _asked(
    hubble: str,
    connection: Mapping[str, Any],
    request: dict[str, Any],
    mask: Sequence[str] | None,
    run_dir: Path,
    server: str,
    *,
    every: bool,
) -> Iterator[flow.Response]:
    """From a Hubble server, which says itself what it thinks of the filters, or from the agent."""
    if hubble:
        alone = not {"last", "first", "since", "until"} & request.keys()
        return hubble_server.flows(
            hubble, connection, request | ({"last": EVERYTHING} if every and alone else {}), mask
        )
    filters.build(request["filters"])  # checked here, with or without an agent
    path = agent_socket.path_of(run_dir, server)
    return map(flow.of_object, client.stream(path, {"method": "observe", **request}))


def show(answers: Iterator[flow.Response], output: Output, style: printer.Style, errors: Any) -> None:
    """Print each flow as it arrives; a table is printed at the end."""
    if output not in AS_TABLE:
        prints = printer.Printer("json" if output in AS_JSON else output.value, style, sys.stdout, errors)
        for answer in answers:
            prints.print(answer)
        return
    states = printer.Printer("compact", style, sys.stdout, errors)
    rows = []
    for answer in answers:
        if answer.node_status is not None:
            states.print(answer)
        else:
            rows.append(answer)
    for row in printer.table(rows, style):
        print(row)


def negations(values: Sequence[str]) -> dict[str, list[str]]:
    """Each value of `--not` is a flag with its value, as in `--verdict=FORWARDED`."""
    found: dict[str, list[str]] = {}
    for value in values:
        word, equals, text = value.partition("=")
        name = _flag_name(word)
        one = observe_filters.FLAGS.get(name)
        if one is None or not (equals or one.value):
            raise ConfigError(f"--not {value}: must be followed by a filter flag, as in --not --verdict FORWARDED")
        found.setdefault(name, []).append(one.value or text)
    return found


def _flag_name(word: str) -> str:
    """Without dashes; a short form in full."""
    return observe_filters.SHORTS.get(word, word.removeprefix("--") if word.startswith("--") else "")


def prepared(arguments: Sequence[str]) -> list[str]:
    """As `hubble` takes them too: `observe flows`, `--follow=true`, and a `--not` before the flag that it is about."""
    found = [_switch(argument) for argument in join_negations(arguments)]
    return [*found[:1], *found[2:]] if found[:2] == ["observe", "flows"] else found


SWITCHES: Final = ("ip-translation", "use-default-field-masks")
"""On unless they are turned off."""


def _switch(argument: str) -> str:
    name, equals, value = argument.partition("=")
    bare = name.removeprefix("--")
    if not equals or bare not in SWITCHES or value not in ("true", "false"):
        return argument
    return name if value == "true" else f"--no-{bare}"


def join_negations(arguments: Sequence[str]) -> list[str]:
    """`--not --pod x` → `--not --pod=x`: an option takes one value, and the value of `--not` is a flag with its own."""
    joined: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        joined.append(argument)
        if argument == "--not":
            word = next(rest, None)
            if word is None:
                break
            one = observe_filters.FLAGS.get(_flag_name(word))
            alone = "=" in word or (one is not None and one.value)
            value = None if alone else next(rest, None)
            joined.append(word if value is None else f"{word}={value}")
    return joined


def _check(*, follow: bool, last: int, first: int, every: bool, output: Output, masked: bool) -> None:
    for one, other, both in (
        ("first", "last", first and last),
        ("first", "all", first and every),
        ("first", "follow", first and follow),
        ("last", "all", last and every),
    ):
        if both:
            raise ConfigError(f"cannot set both --{one} and --{other}")
    if output in AS_TABLE and follow:
        raise ConfigError("table output format is not compatible with follow mode")
    if output is Output.MERMAID and follow:
        raise ConfigError("a graph is drawn of flows that are complete: leave out --follow, or use --since")
    if masked and output not in AS_JSON:
        raise ConfigError(f"{output} output format is not compatible with custom field mask")


def _warn(text: str, *, silent: bool) -> None:
    if not silent:
        print(f"warning: {text}", file=sys.stderr)


def _selected(answers: Iterator[flow.Response], request: dict[str, Any]) -> Iterator[flow.Response]:
    """The flows that the agent would select; lost events and node states are always included."""
    keep = filters.build(request["filters"])
    since = timestamp.parse(request["since"]) if "since" in request else None
    until = timestamp.parse(request["until"]) if "until" in request else None

    def wanted(answer: flow.Response) -> bool:
        at = answer.time_ns
        in_time = (since is None or at >= since) and (until is None or at <= until)
        return answer.flow is None or (in_time and keep(answer.flow))

    chosen = (answer for answer in answers if wanted(answer))
    if "first" in request:
        return itertools.islice(chosen, request["first"])
    return iter(deque(chosen, maxlen=request["last"])) if "last" in request else chosen
