"""`l7proxy observe`: shows flows, live from the agent or from an exported file."""

from __future__ import annotations

import inspect
import itertools
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from l7proxy.agent import client
from l7proxy.cli import agent_socket, observe_filters, printer
from l7proxy.cli.agent_socket import RunDir, Server
from l7proxy.cli.flags import flag, with_flags
from l7proxy.cli.terminal import When, paint, plain
from l7proxy.errors import ConfigError, SourceError
from l7proxy.flows import filters, flow, timestamp

DEFAULT_LAST: Final = 20
DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", re.ASCII)
UNITS: Final = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


class Output(StrEnum):
    COMPACT = "compact"
    DICT = "dict"
    TABLE = "table"
    JSON = "json"
    JSONPB = "jsonpb"


def _filter_flags() -> Iterator[inspect.Parameter]:
    """Every flag of the tables in observe_filters. The help of `--X` also mentions `--from-X` and `--to-X`."""
    for one in observe_filters.PLAIN:
        yield _filter_flag(one.name, one.help + ".", one.short)
    for one in observe_filters.SIDED:
        yield _filter_flag(
            one.name, f"{one.help}. Source or destination only: --from-{one.name}, --to-{one.name}.", one.short
        )
        for prefix in ("from-", "to-"):
            yield _filter_flag(f"{prefix}{one.name}", one.help + ".", hidden=True)


def _filter_flag(name: str, text: str, short: str = "", *, hidden: bool = False) -> inspect.Parameter:
    names = [f"--{name}", *([short] if short else [])]
    return flag(name, list[str], typer.Option(*names, help=text, hidden=hidden, metavar="VALUE", show_default=False))


def _observe(
    *,
    flags: Mapping[str, Sequence[str]],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new flows.")] = False,
    last: Annotated[
        int, typer.Option(min=0, help=f"The last N matching flows [default: {DEFAULT_LAST}].", show_default=False)
    ] = 0,
    first: Annotated[int, typer.Option(min=0, help="The first N matching flows.", show_default=False)] = 0,
    every: Annotated[bool, typer.Option("--all", help="All flows that the agent still has.")] = False,
    since: Annotated[str, typer.Option(help="Flows since: 5m, 2025-11-23 or 2025-11-23T20:00:00Z.")] = "",
    until: Annotated[str, typer.Option(help="Flows until; same formats.")] = "",
    negated: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="FLAG", help="Exclude what the next flag matches: --not --verdict FORWARDED."),
    ] = None,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="Output format; json: one flow per line, as exported.")
    ] = Output.COMPACT,
    print_node_name: Annotated[bool, typer.Option("--print-node-name", help="Print the node name.")] = False,
    print_policy_names: Annotated[
        bool, typer.Option("--print-policy-names", help="Print the names of the policies behind L3/L4 verdicts.")
    ] = False,
    numeric: Annotated[bool, typer.Option("--numeric", help="Print IP addresses instead of names.")] = False,
    color: Annotated[When, typer.Option(help="Colour output: auto, always or never.")] = When.AUTO,
    input_file: Annotated[
        str,
        typer.Option(metavar="FILE", help="Read exported flows from a file instead of the agent; - is standard input."),
    ] = "",
    run_dir: RunDir = agent_socket.RUN_DIR,
    server: Server = "",
) -> None:
    """Show flows: source, destination, verdict and reason.

    The flags are those of `hubble observe`. Different flags must all match; of several values of one flag, any.

    \b
    l7proxy observe                                    the last 20 flows
    l7proxy observe -f --verdict DROPPED               follow refused traffic, with reasons
    l7proxy observe --to-pod shop/cart --http-status 5+
    l7proxy observe --pod default/web --not --port 53
    l7proxy observe --since 5m -o json > flows.jsonl   to read later with --input-file flows.jsonl
    """
    _check(follow=follow, last=last, first=first, every=every, output=output)
    wanted = {name.replace("_", "-"): values for name, values in flags.items()}
    request: dict[str, Any] = {"filters": observe_filters.request(wanted, negations(negated or []))}
    request |= {"follow": True} if follow else {}
    request |= {name: count for name, count in (("last", last), ("first", first)) if count}
    for name, value in (("since", since), ("until", until)):
        if value:
            request[name] = timestamp.text(moment(value, option=name))
    filters.build(request["filters"])  # checked here, with or without an agent
    style = printer.Style(paint(color), node_name=print_node_name, policy_names=print_policy_names, numeric=numeric)
    if input_file:
        answers = _selected(_from_file(input_file), request)
    else:
        if not (follow or last or first or every or since or until):
            request["last"] = DEFAULT_LAST
        path = agent_socket.path_of(run_dir, server)
        answers = map(flow.of_object, client.stream(path, {"method": "observe", **request}))
    show(answers, output, style)


observe = with_flags(_observe, "flags", _filter_flags())


def show(answers: Iterator[flow.Response], output: Output, style: printer.Style) -> None:
    """Print each flow as it arrives; a table is printed at the end."""
    if output is Output.TABLE:
        flows, states = _partition(answers)
        _print(states, printer.compact, style)
        for row in printer.table(flows, style):
            print(row)
        return
    form = printer.compact if output is Output.COMPACT else printer.blocks() if output is Output.DICT else printer.line
    _print(answers, form, style)


def _partition(answers: Iterable[flow.Response]) -> tuple[list[flow.Response], list[flow.Response]]:
    """(flows and lost events, node states)."""
    found: tuple[list[flow.Response], list[flow.Response]] = [], []
    for answer in answers:
        found[answer.node_status is not None].append(answer)
    return found


def _print(
    answers: Iterable[flow.Response], form: Callable[[flow.Response, printer.Style], str | None], style: printer.Style
) -> None:
    for answer in answers:
        text = form(answer, style)
        if text is not None:
            to_stderr = answer.node_status is not None and form is not printer.line
            print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)


def negations(values: Sequence[str]) -> dict[str, list[str]]:
    """Each value of `--not` is a flag with its value, as in `--verdict=FORWARDED`."""
    shorts = {one.short: one.name for one in (*observe_filters.PLAIN, *observe_filters.SIDED) if one.short}
    found: dict[str, list[str]] = {}
    for value in values:
        word, equals, text = value.partition("=")
        name = shorts.get(word, word.removeprefix("--"))
        if not equals or name not in observe_filters.NAMES:
            raise ConfigError(f"--not {value}: must be followed by a filter flag, as in --not --verdict FORWARDED")
        found.setdefault(name, []).append(text)
    return found


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
            value = next(rest, None) if "=" not in word else None
            joined.append(word if value is None else f"{word}={value}")
    return joined


def moment(value: str, *, option: str, now_ns: int | None = None) -> int:
    """A duration before now (in Go's form: 1h30m), RFC 3339, a day, or an e-mail date."""
    parts = DURATION.findall(value)
    if parts and "".join(number + unit for number, unit in parts) == value:
        back = sum(int(float(number) * UNITS[unit]) for number, unit in parts)
        return max(0, (time.time_ns() if now_ns is None else now_ns) - back)
    for read in (timestamp.parse, _day, _mail_date):
        try:
            return read(value)
        except (ValueError, TypeError, OverflowError):
            continue
    raise ConfigError(f"--{option} {value}: must be a time as 5m, 1h30m, 2025-11-23 or 2025-11-23T20:00:00Z")


def _day(value: str) -> int:
    return int(datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * timestamp.SECOND


def _mail_date(value: str) -> int:
    return int(parsedate_to_datetime(value).timestamp()) * timestamp.SECOND


def _check(*, follow: bool, last: int, first: int, every: bool, output: Output) -> None:
    if first and (last or every or follow):
        raise ConfigError("--first cannot be combined with --last, --all or --follow")
    if last and every:
        raise ConfigError("--last cannot be combined with --all")
    if output is Output.TABLE and follow:
        raise ConfigError("-o table cannot be combined with --follow")


def _from_file(name: str) -> Iterator[flow.Response]:
    """Line by line; an invalid line is reported and skipped."""
    try:
        with nullcontext(sys.stdin.buffer) if name == "-" else Path(name).open("rb") as file:
            yield from _from_lines(file, name)
    except OSError as error:
        raise ConfigError(f"--input-file {name}: {error.strerror or error}") from error


def _from_lines(file: BinaryIO, name: str) -> Iterator[flow.Response]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            found = flow.from_json(line)
        except SourceError as error:
            print(f"warning: {name}:{number}: {plain(str(error))}: skipped", file=sys.stderr)
            continue
        if found == flow.Response():
            print(f"warning: {name}:{number}: no flow, lost events or node status: skipped", file=sys.stderr)
            continue
        yield found


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
