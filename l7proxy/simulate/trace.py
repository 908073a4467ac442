"""`policy trace`: evaluates one connection or request by the code that enforces policies, and explains the verdict.

Works from manifests without a node, or in a running agent with its resources. Policies of a pod are those of its own
node: egress of the source's node, ingress of the destination's node. A request passes the workers' strict parser
first, so that the normalised form is evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from l7proxy.errors import ConfigError, PeerError
from l7proxy.flows import hubble_constants as hubble
from l7proxy.model.http import Request
from l7proxy.model.net import HostPort, canonical, family_of
from l7proxy.model.policy_verdict import PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Direction, DropReason, Protocol, Verdict
from l7proxy.policy import decide, explain
from l7proxy.policy.combine import evaluate_l4, evaluate_l7
from l7proxy.policy.decide import PortPolicy
from l7proxy.simulate.cluster import Cluster, End, Target, is_invented
from l7proxy.wire import http1_strict
from l7proxy.wire.head import RequestHead
from l7proxy.wire.path import STRICT, PathRules

PROTOCOLS: Final[Mapping[str, int]] = {
    "TCP": Protocol.TCP,
    "UDP": Protocol.UDP,
    "SCTP": Protocol.SCTP,
    "ICMPV4": Protocol.ICMP,
    "ICMPV6": Protocol.ICMPV6,
}
FAMILIES: Final[Mapping[int, tuple[int, ...]]] = {Protocol.ICMP: (4,), Protocol.ICMPV6: (6,)}
"""IP protocol → IP versions that carry it; protocols that both versions carry are not listed."""
HOW_TO_ASK: Final = {"http": ": add --http 'GET /x'"}
_WORST_FIRST: Final = (Verdict.DROPPED, Verdict.AUDIT, Verdict.REDIRECTED, Verdict.FORWARDED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict, and the steps that led to it."""

    policy_verdict: PolicyVerdict
    steps: tuple[str, ...]

    @property
    def allowed(self) -> bool:
        return self.policy_verdict.verdict in (Verdict.FORWARDED, Verdict.REDIRECTED, Verdict.AUDIT)

    @property
    def ref(self) -> RuleRef | None:
        ingress = self.policy_verdict.direction is Direction.INGRESS
        return self.policy_verdict.ingress if ingress else self.policy_verdict.egress

    def to_json(self) -> dict[str, Any]:
        ref, direction = self.ref, self.policy_verdict.direction
        return {
            "verdict": self.policy_verdict.verdict.name,
            "direction": direction.name if direction is not Direction.UNKNOWN else None,
            "policy": ref and {"kind": ref.kind, "namespace": ref.namespace, "name": ref.name, "rule": ref.rule},
            "reason": self.policy_verdict.reason,
            "steps": list(self.steps),
        }


def port_and_protocol(text: str) -> tuple[str, int]:
    """`80/TCP`, `http/TCP`, `8/ICMPv4` (the type), or `80`, which is TCP."""
    port, slash, name = text.partition("/")
    protocol = PROTOCOLS.get(name.upper()) if slash else Protocol.TCP
    if protocol is None:
        raise ConfigError(f"--port {text}: unknown protocol {name!r}, must be TCP, UDP, SCTP, ICMPv4 or ICMPv6")
    if not port or (port.isdigit() and int(port) > (255 if protocol in (Protocol.ICMP, Protocol.ICMPV6) else 65535)):
        raise ConfigError(f"--port {text}: expected NUMBER/PROTOCOL or NAME/PROTOCOL, as 80/TCP")
    if protocol in (Protocol.ICMP, Protocol.ICMPV6):
        if not port.isdigit():
            raise ConfigError(f"--port {text}: expected an ICMP type, as 8/ICMPv4")
        return str(int(port) << 8), protocol  # the port number of ICMP in policies: type * 256 + code
    return port, protocol


def request_of(
    text: str, headers: Sequence[str], default_host: str, paths: PathRules = STRICT
) -> RequestHead | PeerError:
    """`GET /x` and `K: V` lines, parsed as by a worker. Returns PeerError where a worker would answer with an error."""
    method, _, target = text.strip().partition(" ")
    for part in (text, *headers):
        if not part.isascii() or any(char in part for char in "\r\n\0"):
            raise ConfigError(f"{part!r}: must be a single line of ASCII")
    if not target:
        raise ConfigError(f"--http {text!r}: expected METHOD TARGET, as 'GET /x'")
    if any(":" not in header for header in headers):
        raise ConfigError(f"-H {next(header for header in headers if ':' not in header)!r}: expected 'NAME: VALUE'")
    given = any(header.partition(":")[0].strip().lower() == "host" for header in headers)
    lines = [f"{method} {target} HTTP/1.1", *([] if given else [f"Host: {default_host}"]), *headers]
    raw = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
    try:
        head = http1_strict.request(raw, paths)
    except PeerError as error:
        return error
    if not isinstance(head, RequestHead):
        raise ConfigError(f"--http {text!r}: not a complete request")
    return head


@dataclass(frozen=True, slots=True)
class Question:
    """The user's input: source, destination, PORT/PROTOCOL, and optionally a request."""

    source: str
    destination: str
    port: str
    http: str = ""
    headers: tuple[str, ...] = ()

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Question:
        """Keys: `from`, `to`, `port`, `http`, `headers`. ConfigError names the wrong key."""
        texts = {key: asked.get(key, "") for key in ("from", "to", "port", "http")}
        for key, value in texts.items():
            if not isinstance(value, str) or (not value and key != "http"):
                raise ConfigError(f"{key}: must be a string")
        headers = asked.get("headers", [])
        if not isinstance(headers, list) or not all(isinstance(each, str) for each in headers):
            raise ConfigError("headers: must be a list of 'NAME: VALUE'")
        unknown = sorted(set(asked) - {*texts, "headers", "method"})
        if unknown:
            raise ConfigError(f"{unknown[0]}: unknown field, must be one of {', '.join(texts)}, headers")
        return cls(texts["from"], texts["to"], texts["port"], texts["http"], tuple(headers))


def answer(cluster: Cluster, question: Question, paths: PathRules = STRICT) -> Outcome:
    """ConfigError when there is no answer: unknown name, unknown port, a request that cannot be sent.

    `paths`: the workers' rules for request targets.
    """
    name, protocol = port_and_protocol(question.port)
    if question.headers and not question.http:
        raise ConfigError("-H requires --http, as --http 'GET /x'")
    if question.http and protocol != Protocol.TCP:
        raise ConfigError("--http requires a TCP port")
    ways = paths_between(cluster.who(question.source), cluster.targets(question.destination, name, protocol), protocol)
    host = _host(question.destination, ways[0][1].end.address)
    request = request_of(question.http, question.headers, host, paths) if question.http else None
    return worst([trace(cluster, start, target, protocol, request) for start, target in ways])


def paths_between(source: End, targets: Sequence[Target], protocol: int) -> list[tuple[End, Target]]:
    """Source and target per pair, at addresses of the first IP version that both have."""
    found: list[tuple[End, Target]] = []
    for target in targets:
        preferred = (family_of(target.end.address),) if target.end.address else ()
        for family in FAMILIES.get(protocol, (*preferred, 4, 6)):
            start, end = source.of_family(family), target.end.of_family(family)
            if start is not None and end is not None:
                found.append((start, replace(target, end=end)))
                break
    if not found:
        raise ConfigError(
            f"{source.name} and {targets[0].end.name} have no addresses of the same IP version for this protocol"
        )
    return found


def _host(destination: str, address: str) -> str:
    """The Host that a client would send for this destination: its name, or the address that the user gave."""
    if destination.startswith("svc:"):
        namespace, _, name = destination.removeprefix("svc:").partition("/")
        return f"{name}.{namespace}"
    with suppress(ValueError):
        address = canonical(destination)
    if not address:
        return "unnamed"
    if "/" in destination or is_invented(address):
        return destination.rpartition("/")[2]
    return f"[{address}]" if ":" in address else address


def trace(
    cluster: Cluster,
    source: End,
    target: Target,
    protocol: int,
    request: RequestHead | PeerError | None = None,
) -> Outcome:
    """Evaluate one connection to one backend, and optionally a request on it."""
    shown = 0 if protocol in FAMILIES else target.port  # for ICMP it is type and code
    steps = [f"{_named(cluster, source, target.end)} -> {_named(cluster, target.end, source, port=shown)}"]
    steps[0] += f", {decide.port_name(protocol, target.port)}"
    home = cluster.home(source)
    if home is not None and home.end(source).is_same_endpoint(home.end(target.end)):
        return Outcome(PolicyVerdict(Verdict.FORWARDED, Direction.UNKNOWN), (*steps, "a pod can always reach itself"))
    egress = _ask(cluster, source, target, protocol, Direction.EGRESS)
    ingress = _ask(cluster, source, target, protocol, Direction.INGRESS)
    for direction, end, peer, found in (
        (Direction.EGRESS, source, target.end, egress),
        (Direction.INGRESS, target.end, source, ingress),
    ):
        steps.append(_step(direction, end, found))
        steps += _more(cluster, direction, end, peer, found, protocol, target.port)
    policy_verdict = evaluate_l4(egress, ingress)
    if request is not None and policy_verdict.verdict is Verdict.REDIRECTED:
        policy_verdict = _judge_request(egress, ingress, request, policy_verdict, steps)
    elif request is not None and policy_verdict.verdict is Verdict.FORWARDED:
        steps.append("no HTTP rules on this port: requests are not inspected")
    elif policy_verdict.verdict is Verdict.REDIRECTED:
        kind = next(each.kind for each in (egress, ingress) if each is not None and each.kind is not None)
        steps.append(f"{kind.name} rules decide each request{HOW_TO_ASK.get(kind.key, '')}")
    if not _asked(egress) and not _asked(ingress):
        policy_verdict = PolicyVerdict(Verdict.FORWARDED, Direction.UNKNOWN)
    return Outcome(policy_verdict, tuple(steps))


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """The worst outcome of a Service's backends: a client may get any of them, so one refusal counts."""
    refused = [one for one in outcomes if not one.allowed]
    chosen = min(outcomes, key=lambda one: _WORST_FIRST.index(one.policy_verdict.verdict))
    steps = [step for one in outcomes for step in one.steps]
    if refused and len(refused) < len(outcomes):
        steps.append(
            f"{len(refused)} of {len(outcomes)} backends are refused: the verdict depends on which one is selected"
        )
    return Outcome(chosen.policy_verdict, tuple(steps))


def _judge_request(
    egress: PortPolicy | None,
    ingress: PortPolicy | None,
    request: RequestHead | PeerError,
    before: PolicyVerdict,
    steps: list[str],
) -> PolicyVerdict:
    if isinstance(request, PeerError):
        steps.append(f"the request is answered with {request.status} before rules are evaluated: {request}")
        return PolicyVerdict(
            Verdict.DROPPED, before.direction, ingress=before.ingress, egress=before.egress, reason=str(request)
        )
    host = request.host.decode("latin-1")
    steps.append(f"request {request.method.decode()} {request.path.decode()}, Host {host}")
    if request.path != request.target:
        steps[-1] += f" (normalised from {request.target.decode()})"
    asked = Request(request.method, request.path, request.host, request.headers)
    policy_verdict = evaluate_l7(egress, ingress, asked)
    ref = policy_verdict.ingress if policy_verdict.direction is Direction.INGRESS else policy_verdict.egress
    steps.append(f"{policy_verdict.direction.word}: {_said(policy_verdict.verdict, ref, policy_verdict.reason)}")
    if asked.rewrite is not None:
        steps += [f"forwarded with {edit}" for edit in asked.rewrite.edits]
        steps += [f"logged in its flow: header missing: {name.decode()}" for name, _ in asked.rewrite.missing]
    for direction, policy in ((Direction.EGRESS, egress), (Direction.INGRESS, ingress)):
        if policy is not None:
            steps += [f"{direction.word}: {said}" for said in explain.moot(policy, asked)]
    return policy_verdict


def _ask(cluster: Cluster, source: End, target: Target, protocol: int, direction: Direction) -> PortPolicy | None:
    """The policy of one direction on the node of its endpoint; None if that end is not a pod: no policy applies."""
    end = source if direction is Direction.EGRESS else target.end
    home = cluster.home(end)
    if home is None:
        return None
    endpoint = home.end(end).endpoint
    if end.pod is not None and (endpoint is None or endpoint.name != f"{end.pod.namespace}/{end.pod.name}"):
        raise ConfigError(f"{end.name}: its address {end.address} is also claimed by another object; see the warnings")
    both = home.between(source, target.end, protocol, target.port)
    return both.egress if direction is Direction.EGRESS else both.ingress


def _more(
    cluster: Cluster, direction: Direction, end: End, peer: End, found: PortPolicy | None, protocol: int, port: int
) -> list[str]:
    """Further explanations: the rule that comes closest to allowing a denied connection; L7 rules without effect."""
    home = cluster.home(end)
    endpoint = home.end(end).endpoint if home is not None else None
    if found is None or home is None or endpoint is None:
        return []
    policy, identity = endpoint.policy.direction(direction), home.end(peer).identity
    said = [*explain.moot(found), *explain.unread(policy, found, identity, protocol, port)]
    if found.l4.drop_reason is DropReason.POLICY_DENIED:
        near = explain.nearest(policy, direction, identity, protocol, port)
        said += [str(near)] if near is not None else []
    return [f"  {direction.word}: {text}" for text in said]


def _asked(policy: PortPolicy | None) -> bool:
    return policy is not None and policy.enforced


def _step(direction: Direction, end: End, policy: PortPolicy | None) -> str:
    if policy is None:
        return f"{direction.word}: {end.name} is not a pod: no policy applies"
    if not policy.enforced:
        return f"{direction.word} of {end.name}: not selected by any policy: all traffic is allowed"
    return f"{direction.word} of {end.name}: {_said(policy.l4.verdict, policy.l4.ref, policy.l4.reason)}"


def _said(verdict: Verdict, ref: RuleRef | None, reason: str) -> str:
    by = f" by {ref}" if ref is not None else ""
    place = f" ({ref.file}:{ref.line})" if ref is not None and ref.file and ref.line else ""
    return f"{verdict.name}{by}{place}{': ' + reason if reason else ''}"


def _named(cluster: Cluster, end: End, peer: End, *, port: int = 0) -> str:
    """The name of `end` with its address, and its identity on the peer's node."""
    home = peer.pod.node if peer.pod is not None else peer.node or ""
    number = cluster.node(home).end(end).identity
    names = hubble.RESERVED_NAMES
    identity = names[number] if number < len(names) else f"identity {number}"
    if not end.address or is_invented(end.address):
        return f"{end.name} ({identity})"
    where = str(HostPort(end.address, port)) if port else end.address
    return f"{where} ({identity})" if end.address == end.name else f"{end.name} ({where}, {identity})"
