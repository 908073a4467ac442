"""Renders policies: stages as named sets, tiers as chains.

A direction of an endpoint has one chain per tier, with the lookups of its stages in order; each jumps to the chain of
its verdict. A chain has one lookup per shape in use, not per entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

from tproxy_rules.desired import Desired, Endpoint, Settings, Stage, Table, Verdict
from tproxy_rules.marks import LogDirection, LogEvent
from tproxy_rules.nft.table import Chain, Peers, Set, chain
from tproxy_rules.nft.text import log, mark
from tproxy_rules.shapes import Cells, Shape, lookups
from tproxy_rules.validate import ANY_PROTOCOL, TCP

# One event per connection: only its first packet is unconfirmed; repeated SYNs are confirmed.
FIRST: Final = "ct state new ct status & confirmed == 0"
NOT_TCP: Final = "meta l4proto != tcp "
"""Prefix for lookups that cannot match TCP: a comparison is much cheaper, and most packets are TCP."""

_FIELDS: Final = {
    Shape.PEER: "meta priority",
    Shape.PROTOCOL: "meta l4proto",
    Shape.PEER_PROTOCOL: "meta priority . meta l4proto",
    Shape.PORT: "meta l4proto . th dport",
    Shape.PEER_PORT: "meta priority . meta l4proto . th dport",
    Shape.RANGE: "meta l4proto . th dport",
    Shape.PEER_RANGE: "meta priority . meta l4proto . th dport",
    Shape.TYPE: "meta l4proto . th sport",
    Shape.PEER_TYPE: "meta priority . meta l4proto . th sport",
    Shape.TYPES: "meta l4proto . th sport",
    Shape.PEER_TYPES: "meta priority . meta l4proto . th sport",
}
"""`th sport` is the first 16 bits after the IP header: for ICMP, type and code."""
_TYPES: Final = {
    "meta priority": "classid",
    "meta l4proto": "inet_proto",
    "th dport": "inet_service",
    "th sport": "inet_service",
}
_KINDS: Final = {shape: " . ".join(_TYPES[field] for field in fields.split(" . ")) for shape, fields in _FIELDS.items()}
_WORDS: Final = {Verdict.DENY: LogEvent.DENY, Verdict.STEER: LogEvent.STEER, Verdict.ALLOW: LogEvent.ALLOW}

Asked = tuple[tuple[Verdict, Shape, Cells], ...]
"""The lookups of a stage in order; the first match decides."""
Asking = tuple[str, tuple[tuple[Verdict, Shape, bool], ...]]
"""A stage without set members: its name and its lookups, and whether each can match TCP."""
Outline = tuple[tuple[tuple[Asking, ...], bool], ...]
"""The tiers of a table in this form: the stages of each, and whether it is closed."""


def asked(stage: Stage) -> Asked:
    """The lookups of a stage. Pure: a caller may cache the result as long as the stage."""
    return tuple((verdict, *found) for verdict, shapes in lookups(stage).items() for found in shapes.items())


def ways(endpoint: Endpoint) -> Iterator[tuple[LogDirection, Table]]:
    """The directions with a table."""
    if endpoint.egress is not None:
        yield LogDirection.EGRESS, endpoint.egress
    if endpoint.ingress is not None:
        yield LogDirection.INGRESS, endpoint.ingress


def parts(desired: Desired, ask: Callable[[Stage], Asked]) -> Iterator[Set | Chain]:
    """All sets and chains of all endpoints.

    Equal stages share their sets, named after the first that uses them: direction, endpoint, tier, stage. So a name
    survives changes of members and depends on this state only.
    """
    names: dict[Stage, str] = {}
    for endpoint in desired.endpoints:
        for way, table in ways(endpoint):
            outline: list[tuple[tuple[Asking, ...], bool]] = []
            for t, tier in enumerate(table.tiers):
                asking = []
                for s, stage in enumerate(tier.stages):
                    own = f"{way[0]}{endpoint.id}_{t}_{s}"
                    name, found = names.setdefault(stage, own), ask(stage)
                    asking.append((name, tuple([(*one[:2], _finds_tcp(one[2])) for one in found])))
                    if name is own:
                        yield from _sets(name, found)
                outline.append((tuple(asking), tier.closed))
            write = _chains if table.governed else _refusals
            yield from write(desired.settings, endpoint.id, way, tuple(outline))


def _sets(stage: str, found: Asked) -> Iterator[Set]:
    for verdict, shape, cells in found:
        if shape is not Shape.ANY:
            yield Set(_set_name(stage, verdict, shape), _KINDS[shape], Peers(cells), interval=shape.ranged)


def _set_name(stage: str, verdict: Verdict, shape: Shape) -> str:
    return f"{stage}_{verdict.name.lower()}_{shape}"


@lru_cache(maxsize=4096)
def _chains(settings: Settings, number: int, way: LogDirection, outline: Outline) -> tuple[Chain, ...]:
    """One direction of one endpoint: a chain per tier, and a chain per verdict in use."""
    base = f"{way}_{number}"
    goto = {verdict: f"goto {base}_{word}" for verdict, word in _WORDS.items()}
    chains = []
    for t, (stages, closed) in enumerate(outline or (((), False),)):
        following = f"goto {base}_{t + 1}" if t + 1 < len(outline) else goto[Verdict.ALLOW]
        rules = [] if t else ["jump identify_destination" if way is LogDirection.EGRESS else "jump identify_source"]
        rules += _lookups(stages, {**goto, Verdict.PASS: following})
        rules += (log(settings, LogEvent.NONE, way, number), "goto refuse") if closed else (following,)
        chains.append(chain(f"{base}_{t}" if t else base, rules))
    used = {rule.rpartition("goto ")[2] for one in chains for rule in one.rules}
    actions = _actions(settings, number, way)
    return (*(chain(name, rules) for name, rules in actions.items() if name in used), *chains)


@lru_cache(maxsize=4096)
def _refusals(settings: Settings, number: int, way: LogDirection, outline: Outline) -> tuple[Chain, ...]:
    """The chains of a table without a policy: no identity lookup, and packets that it does not refuse just continue."""
    base = f"{way}_{number}"
    deny = f"{base}_{LogEvent.DENY}"
    rules = [rule for stages, _ in outline for rule in _lookups(stages, {Verdict.DENY: f"goto {deny}"})]
    return chain(deny, _actions(settings, number, way)[deny]), chain(base, rules)


def _lookups(stages: tuple[Asking, ...], says: dict[Verdict, str]) -> Iterator[str]:
    for name, found in stages:
        for verdict, shape, tcp in found:
            where = "" if shape is Shape.ANY else f"{_FIELDS[shape]} @{_set_name(name, verdict, shape)} "
            yield f"{'' if tcp else NOT_TCP}{where}{says[verdict]}"


def _finds_tcp(cells: Cells) -> bool:
    return any(protocol in (ANY_PROTOCOL, TCP) for protocol, _, _ in cells)


def _actions(settings: Settings, number: int, way: LogDirection) -> dict[str, tuple[str, ...]]:
    deny, steer, allow = (log(settings, kind, way, number) for kind in (LogEvent.DENY, LogEvent.STEER, LogEvent.ALLOW))
    base = f"{way}_{number}"
    return {
        f"{base}_{LogEvent.DENY}": (deny, "goto refuse"),
        f"{base}_{LogEvent.STEER}": (f"{FIRST} {steer}", mark(settings.mark_proxy), "meta priority set 0:0"),
        f"{base}_{LogEvent.ALLOW}": (f"{FIRST} {allow}", "meta priority set 0:0"),
    }
