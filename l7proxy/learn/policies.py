"""Makes CiliumNetworkPolicies of traffic: one for each group of pods, with counts and callers as comments.

A rule allows no more than what was seen, or a comment above it says what more. What was refused, or seen too seldom, is
a comment only. Earlier policies are kept, and only added to.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from l7proxy.errors import ConfigError, PolicyError
from l7proxy.flows import timestamp
from l7proxy.learn import text
from l7proxy.learn.earlier import API_VERSION, ICMP, KIND, SIDE, Earlier, HttpRule
from l7proxy.learn.labels import NAMING, Group
from l7proxy.learn.paths import ANY_QUERY, Template, quoted
from l7proxy.learn.text import Commented
from l7proxy.learn.traffic import Cell, Key, Peer, Subject, Traffic
from l7proxy.model.labels import CLUSTER_KEY, K8S, NAMESPACE_KEY
from l7proxy.model.ref import RuleRef
from l7proxy.model.shorten import shortened
from l7proxy.model.verdict import BOTH, Direction, Protocol
from l7proxy.policy import lang
from l7proxy.policy.decision import port_name

NAME: Final = "learned-"
SHOWN: Final = 5
DENIALS: Final = 20
MAX_PORTS: Final = 40
"""Ports of one toPorts item, a limit of Cilium."""
MAX_NAME: Final = 63
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9]+")
_FAMILIES: Final = {protocol: family for family, protocol in ICMP.items()}


@dataclass
class Learned:
    """One policy: the document, its text with comments, and remarks for the user on what it lacks."""

    document: Mapping[str, Any]
    text: str
    added: int

    @property
    def namespace(self) -> str:
        return str(self.document["metadata"].get("namespace", "default"))

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])


@dataclass
class _Draft:
    """The entries of one policy, by direction, and comments about all of it."""

    entries: dict[Direction, list[Commented]] = field(default_factory=lambda: {one: [] for one in BOTH})
    comments: list[str] = field(default_factory=list)


def learn(traffic: Traffic, earlier: Sequence[Earlier] = ()) -> list[Learned]:
    """All policies, sorted: the earlier ones with what is new, and one for each other group. Deterministic."""
    before = {one.group: one for one in earlier if one.group is not None}
    cells: dict[Group, dict[Key, Cell]] = {}
    for key in sorted(traffic.cells):
        cells.setdefault(key.subject, {})[key] = traffic.cells[key]
    names = _names([one for one in traffic.subjects if one not in before], earlier)
    found = [_kept(one) for one in earlier if one.group is None or one.group not in traffic.subjects]
    for group in sorted(traffic.subjects):
        learned = _policy(group, names.get(group, ""), cells.get(group, {}), traffic, before.get(group))
        found += [learned] if learned is not None else []
    return sorted(found, key=lambda one: (one.namespace, one.name))


def _kept(earlier: Earlier) -> Learned:
    comments = ["No flow of these pods was seen: kept as it was."]
    return Learned(earlier.document, text.document(earlier.document, comments), 0)


def _policy(
    group: Group, name: str, cells: Mapping[Key, Cell], traffic: Traffic, earlier: Earlier | None
) -> Learned | None:
    draft, subject = _Draft(), traffic.subjects[group]
    _introduce(draft, group, subject)
    for direction in BOTH:
        mine = {key: cell for key, cell in cells.items() if key.direction is direction}
        if mine and direction not in subject.here:
            draft.comments.append(
                f"{direction.word}: {_count(mine.values())} seen from other nodes only, no rules are written. "
                "Learn from the flows of its own node, too."
            )
            continue
        draft.entries[direction] = list(_entries(mine, traffic, earlier, draft))
        if not mine and not (earlier and earlier.document.get("spec", {}).get(direction.word)):
            draft.comments.append(f"{direction.word}: no flow that passed was seen, so it is not restricted.")
    for direction in BOTH:
        draft.comments += _denials(direction, subject.denied[direction])
    return _document(group, name, draft, earlier)


def _document(group: Group, name: str, draft: _Draft, earlier: Earlier | None) -> Learned | None:
    added = sum(len(entries) for entries in draft.entries.values())
    if earlier is None and not added:
        return None
    document = dict(earlier.document) if earlier is not None else _envelope(group, name)
    document["spec"] = dict(document["spec"])
    for direction in BOTH:
        before = document["spec"].get(direction.word) or []
        if before or draft.entries[direction]:
            document["spec"][direction.word] = [*before, *draft.entries[direction]]
    comments = [*draft.comments, *(["Rules without a comment are those of the earlier policy."] if earlier else [])]
    return Learned(_checked(text.bare(document)), text.document(document, comments), added)


def _envelope(group: Group, name: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": group.namespace},
        "spec": {"endpointSelector": {"matchLabels": dict(group.labels)}},
    }


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    """What is written must be valid for those who enforce it."""
    try:
        lang.read(document)
    except PolicyError as error:
        name = RuleRef(KIND, document["metadata"].get("namespace", ""), document["metadata"]["name"])
        raise ConfigError(f"the policy that was learned is not valid, {name}: {error}: lower --max-paths") from error
    return document


def _introduce(draft: _Draft, group: Group, subject: Subject) -> None:
    draft.comments.append(f"Pods {group}: {_shown(subject.names)}.")
    differ = _differing(group, subject)
    if differ:
        draft.comments.append(f"It selects all pods with these labels, whatever they have of: {', '.join(differ)}.")


def _differing(group: Group, subject: Subject) -> list[str]:
    """The labels of its pods that do not select them, and their values."""
    left = sorted({pair for kind in subject.kinds for pair in kind if pair not in group.labels})
    keys = list(dict.fromkeys(key for key, _ in left))
    return [f"{key} ({', '.join(sorted(value for name, value in left if name == key)[:SHOWN])})" for key in keys]


# --- entries


def _entries(
    cells: Mapping[Key, Cell], traffic: Traffic, earlier: Earlier | None, draft: _Draft
) -> Iterator[Commented]:
    """One entry for each peer, and one more for ICMP."""
    by_peer: dict[Peer, dict[Key, Cell]] = {}
    for key, cell in cells.items():
        by_peer.setdefault(key.peer, {})[key] = cell
    for peer, mine in by_peer.items():
        kept = _enough(mine, traffic)
        comments = list(_rare(peer, mine, kept))
        new = {key: cell for key, cell in kept.items() if not _is_icmp(key)}
        items = list(_items(new, traffic, earlier, comments))
        messages = [key for key in kept if _is_icmp(key) and not _allowed(key, earlier)]
        head = _seen(peer, kept)
        if items:
            selected = _selects(peer, next(iter(mine)).subject, next(iter(mine)).direction)
            yield Commented({**selected, "toPorts": items}, (*head, *comments))
        elif comments:
            draft.comments += [*head, *comments]
        if messages:
            selected = _selects(peer, messages[0].subject, messages[0].direction)
            yield Commented({**selected, "icmps": list(_icmps(messages))}, (*head, "every code of these types"))


def _enough(cells: Mapping[Key, Cell], traffic: Traffic) -> dict[Key, Cell]:
    return {key: cell for key, cell in cells.items() if cell.count >= traffic.options.min_count}


def _rare(peer: Peer, cells: Mapping[Key, Cell], kept: Mapping[Key, Cell]) -> Iterator[str]:
    for key, cell in cells.items():
        if key not in kept:
            yield f"not allowed, seen less than --min-count: {_way(key.direction)} {peer}, {_port(key)}: {cell.count}"


def _seen(peer: Peer, cells: Mapping[Key, Cell]) -> list[str]:
    if not cells:
        return []
    callers: Counter[str] = Counter()
    for cell in cells.values():
        callers += cell.callers
    direction = next(iter(cells)).direction
    said = [f"{_count(cells.values())} {_way(direction)} {_shown(callers)}"]
    if peer.entity == "world":
        said.append(f"world: any address outside, {len(callers)} were seen; --cidr writes their prefixes")
    return said


def _items(
    cells: Mapping[Key, Cell], traffic: Traffic, earlier: Earlier | None, comments: list[str]
) -> Iterator[Commented]:
    """The items of `toPorts`: ports without HTTP rules together, and one for each port with them."""
    plain: list[Key] = []
    for key, cell in cells.items():
        if _allowed(key, earlier):
            if cell.requests:
                comments.append(f"{_port(key)}: the earlier policy allows every request; {cell.inspected} were seen")
        elif cell.inspected or key in traffic.refused:
            yield from _http(key, cell, traffic, earlier, comments)
        elif _restricted(key, earlier):
            comments.append(f"{_port(key)}: {cell.plain} connections that were not inspected: earlier HTTP rules stay")
        else:
            plain.append(key)
            comments += _remarks(key, cell)
    for start in range(0, len(plain), MAX_PORTS):
        yield Commented({"ports": [_port_item(key) for key in plain[start : start + MAX_PORTS]]})


def _remarks(key: Key, cell: Cell) -> Iterator[str]:
    if cell.elsewhere:
        yield f"{_port(key)}: every request, since the destination judges them"
    if cell.names:
        names = sorted(cell.names)
        yield f"{_port(key)}: every DNS name; asked for {shortened(names, SHOWN)}"


def _http(key: Key, cell: Cell, traffic: Traffic, earlier: Earlier | None, comments: list[str]) -> Iterator[Commented]:
    rules = list(_rules(key, cell, traffic, comments))
    for reason, count in sorted(cell.unlearned.items()):
        comments.append(f"{_port(key)}: not allowed, {count} requests that cannot be learned: {reason}")
    if cell.plain:
        comments.append(f"{_port(key)}: {cell.plain} more connections were not inspected, their requests are not known")
    if rules:
        notes = ("any query is allowed: flows do not show it",) if traffic.options.any_query else ()
        yield Commented({"ports": [_port_item(key)], "rules": {"http": rules}}, notes)
    elif not _restricted(key, earlier):
        comments.append(f"{_port(key)}: not allowed, no request on it was")


def _rules(key: Key, cell: Cell, traffic: Traffic, comments: list[str]) -> Iterator[Commented]:
    options, port = traffic.options, _port(key)
    for (method, host), tree in sorted(cell.requests.items()):
        refused = traffic.refused.get(key, {}).get((method, host))
        templates, left_out = tree.templates(options.max_paths, refused)
        if left_out:
            comments.append(f"{port}: not allowed, {left_out} {method} requests of paths beyond --max-paths")
        for one in templates:
            path = one.pattern.removesuffix(ANY_QUERY)
            if one.refused:
                comments.append(
                    f"{port}: not allowed, {method} {path}: {one.count} passed, {one.refused} were refused, and flows "
                    "do not show why: write a rule by hand"
                )
            elif one.count < options.min_count:
                comments.append(f"{port}: not allowed, seen less than --min-count: {method} {path}: {one.count}")
            else:
                yield _rule(method, host, one)


def _rule(method: str, host: str, template: Template) -> Commented:
    fields: dict[str, Any] = {"method": quoted(method), "path": template.pattern}
    fields |= {"host": quoted(host)} if host else {}
    fields |= {"headers": list(template.headers)} if template.headers else {}
    said = [f"{template.count} seen", *([template.note] if template.note else [])]
    if template.headers:
        said.append("equal requests were refused without these headers; their values are not known")
    return Commented(fields, ("; ".join(said),))


def _known(key: Key, earlier: Earlier | None) -> list[HttpRule] | None:
    return earlier.allowed.get(_cell(key), []) if earlier is not None else []


def _allowed(key: Key, earlier: Earlier | None) -> bool:
    """Whether the earlier policy allows everything there."""
    return earlier is not None and earlier.allowed.get(_cell(key), []) is None


def _restricted(key: Key, earlier: Earlier | None) -> bool:
    return bool(_known(key, earlier))


def _cell(key: Key) -> tuple[Direction, Peer, int, int]:
    return key.direction, key.peer, key.protocol, key.port & 0xFF00 if _is_icmp(key) else key.port


# --- parts of an entry


def _selects(peer: Peer, subject: Group, direction: Direction) -> dict[str, Any]:
    side = SIDE[direction]
    if peer.entity:
        return {f"{side}Entities": [peer.entity]}
    if peer.cidr:
        return {f"{side}CIDR": [peer.cidr]}
    labels = dict(peer.group.labels)
    if peer.group.namespace != subject.namespace or peer.cluster:
        labels[f"{K8S}:{NAMESPACE_KEY}"] = peer.group.namespace
    if peer.cluster:
        labels[f"{K8S}:{CLUSTER_KEY}"] = peer.cluster
    return {f"{side}Endpoints": [{"matchLabels": labels}]}


def _port_item(key: Key) -> dict[str, str]:
    return {"port": str(key.port), "protocol": Protocol(key.protocol).name}


def _icmps(messages: Sequence[Key]) -> Iterator[dict[str, Any]]:
    kinds = sorted({(_FAMILIES[Protocol(key.protocol)], key.port >> 8) for key in messages})
    for start in range(0, len(kinds), MAX_PORTS):
        yield {"fields": [{"family": family, "type": kind} for family, kind in kinds[start : start + MAX_PORTS]]}


def _is_icmp(key: Key) -> bool:
    return key.protocol in (Protocol.ICMP, Protocol.ICMPV6)


# --- words


def _denials(direction: Direction, denied: Counter[str]) -> Iterator[str]:
    if not denied:
        return
    yield f"{direction.word}: refused, and not allowed here:"
    most = sorted(denied.items(), key=lambda one: (-one[1], one[0]))
    yield from (f"  {count} {what}" for what, count in most[:DENIALS])
    if len(most) > DENIALS:
        yield f"  {sum(count for _, count in most[DENIALS:])} more"


def _shown(names: Counter[str]) -> str:
    most = sorted(names.items(), key=lambda one: (-one[1], one[0]))
    return shortened([f"{name} ({count})" for name, count in most], SHOWN)


def _count(cells: Iterable[Cell]) -> str:
    number = sum(cell.count for cell in cells)
    return f"{number} flow{'' if number == 1 else 's'}"


def _way(direction: Direction) -> str:
    return "from" if direction is Direction.INGRESS else "to"


def _port(key: Key) -> str:
    return port_name(key.protocol, key.port)


def _names(groups: Iterable[Group], earlier: Sequence[Earlier]) -> dict[Group, str]:
    """A name for each group: after the first label that names an application, with a hash where two would be equal."""
    taken = {(one.namespace, one.name) for one in earlier}
    wanted = {group: _name(group) for group in groups}
    often = Counter((group.namespace, name) for group, name in wanted.items())
    return {
        group: f"{name}-{hashlib.sha256(str(group).encode()).hexdigest()[:8]}"
        if often[group.namespace, name] > 1 or (group.namespace, name) in taken
        else name
        for group, name in wanted.items()
    }


def _name(group: Group) -> str:
    ranked = sorted(group.labels, key=lambda one: NAMING.index(one[0]) if one[0] in NAMING else len(NAMING))
    value = next((value for _, value in ranked if value), group.labels[0][0])
    word = _NOT_IN_NAMES.sub("-", value.lower()).strip("-") or "pods"
    return (NAME + word)[: MAX_NAME - 9].strip("-")


def heading(traffic: Traffic) -> list[str]:
    """Comments on where the policies come from, and on what was left out."""
    said = ["Written by `l7proxy policy learn`: review it before you apply it. It allows what was seen, and no more."]
    if traffic.last_ns:
        said.append(f"Flows from {timestamp.text(traffic.first_ns)} to {timestamp.text(traffic.last_ns)}.")
    said.append("Selectors have only labels that name an application. All other traffic of these pods is refused.")
    said += [f"not used: {count} {reason}" for reason, count in sorted(traffic.left_out.items())]
    return said
