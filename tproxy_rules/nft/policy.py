"""The policy half of the nftables picture: stages as named sets, tiers as chains.

A direction of an endpoint is a chain per tier; in it the lookups of its stages in order, each ending in the chain of
its verdict. A chain has as many lookups as shapes in use, never as many as entries.
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

# Exactly one event per connection: only its first packet is not confirmed yet; repeated SYNs are.
FIRST: Final = "ct state new ct status & confirmed == 0"
NOT_TCP: Final = "meta l4proto != tcp "
"""A comparison is much cheaper than a lookup, and most packets are TCP."""

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
"""`th sport` is the first 16 bits of whatever follows IP: of ICMP, type and code."""
_TYPES: Final = {
    "meta priority": "classid",
    "meta l4proto": "inet_proto",
    "th dport": "inet_service",
    "th sport": "inet_service",
}
_KINDS: Final = {shape: " . ".join(_TYPES[field] for field in fields.split(" . ")) for shape, fields in _FIELDS.items()}
_WORDS: Final = {Verdict.DENY: LogEvent.DENY, Verdict.STEER: LogEvent.STEER, Verdict.ALLOW: LogEvent.ALLOW}

Asked = tuple[tuple[Verdict, Shape, Cells], ...]
"""A stage as the kernel asks it: in this order, and the first hit decides."""
Asking = tuple[str, tuple[tuple[Verdict, Shape, bool], ...]]
"""A stage without what is in its sets: its name and its lookups, and whether each can find TCP."""
Outline = tuple[tuple[tuple[Asking, ...], bool], ...]
"""The tiers of a table likewise: of each its stages, and whether it is closed."""


def asked(stage: Stage) -> Asked:
    """What a stage comes to. Pure: a caller may keep it for as long as the stage."""
    return tuple((verdict, *found) for verdict, shapes in lookups(stage).items() for found in shapes.items())


def ways(endpoint: Endpoint) -> Iterator[tuple[LogDirection, Table]]:
    """The directions that are governed."""
    if endpoint.egress is not None:
        yield LogDirection.EGRESS, endpoint.egress
    if endpoint.ingress is not None:
        yield LogDirection.INGRESS, endpoint.ingress


def parts(desired: Desired, ask: Callable[[Stage], Asked]) -> Iterator[Set | Chain]:
    """All sets and chains of all endpoints.

    Equal stages share their sets, under the name of the first place that has one: endpoint, way, tier, stage. So a name
    lives through changes of what is in the sets, and depends on this picture only.
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
    """One direction of one endpoint: a chain for each tier, and what follows from each verdict."""
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
    """Of a table without a policy: nobody need be identified, and what it does not refuse just goes on."""
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
    deny, steer, allow = (log(settings, told, way, number) for told in (LogEvent.DENY, LogEvent.STEER, LogEvent.ALLOW))
    base = f"{way}_{number}"
    return {
        f"{base}_{LogEvent.DENY}": (deny, "goto refuse"),
        f"{base}_{LogEvent.STEER}": (f"{FIRST} {steer}", mark(settings.mark_proxy), "meta priority set 0:0"),
        f"{base}_{LogEvent.ALLOW}": (f"{FIRST} {allow}", "meta priority set 0:0"),
    }
