"""Builds the parts of the answers of the agent's API as plain objects. Pure functions of published data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import msgspec

from l7proxy.agent.configuration import Configuration
from l7proxy.agent.dataplane.reconciler import KernelState, Published
from l7proxy.agent.dataplane.render import ports_of
from l7proxy.agent.dataplane.revocation import Revoked
from l7proxy.agent.dataplane.secondary_networks import SecondaryInterface
from l7proxy.agent.dataplane.unknown_pods import UnknownPod
from l7proxy.cluster.policy_status import PolicyPhase, PolicyStatus
from l7proxy.cluster.state import NodeView
from l7proxy.errors import SourceError
from l7proxy.flows.sinks.feed import Feed
from l7proxy.link.server import WorkerState
from l7proxy.model.endpoint import Endpoint
from l7proxy.model.identity import Identity
from l7proxy.model.resources import Problem
from l7proxy.model.verdict import Action, Protocol
from l7proxy.policy.l7 import KINDS, kind_of
from l7proxy.policy.rules import HttpRule, HttpRules
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, TierPolicy
from l7proxy.sources.source import NEVER
from tproxy_rules.backend import Suppressed
from tproxy_rules.desired import Port
from tproxy_rules.marks import LogEvent

RATE_LIMITED: Final = 100
"""Maximum number of entries about rate-limited kernel events; there may be one per pair of pods."""
ANSWERS: Final = {
    LogEvent.ALLOW: "allowed",
    LogEvent.STEER: "redirected",
    LogEvent.DENY: "denied",
    LogEvent.NONE: "not allowed",
}
STATES = {
    PolicyPhase.ACCEPTED: "enforced",
    PolicyPhase.PARTLY: "partly enforced",
    PolicyPhase.STAGED: "staged",
    PolicyPhase.REFUSED: "refused",
    PolicyPhase.INVALID: "invalid",
}


def settings(configuration: Configuration) -> dict[str, Any]:
    """What of the configuration file is not in force: its fault, and names of settings."""
    return {"error": configuration.error, "restart_needed": list(configuration.restart_needed)}


def sink(feed: Feed) -> dict[str, Any]:
    return {"name": feed.name, "written": feed.written, "lost": feed.lost, "problem": feed.problem}


def age(contact: float, now: float) -> float | None:
    """Seconds from the last contact until `now`, both of time.monotonic(); None if there was none."""
    return None if contact == NEVER else round(now - contact, 3)


def problems(current: Published) -> list[dict[str, Any]]:
    found: list[SourceError | Problem] = [
        *current.source.problems,
        *current.view.problems,
        *current.view.secret_problems,
    ]
    return [{"file": one.file, "line": one.line or None, "field": one.field, "message": one.message} for one in found]


def kernel(state: KernelState, revoked: Revoked) -> dict[str, Any]:
    return {
        "digest": state.installed.digest if state.installed else "",
        "intact": state.installed is not None and state.installed.intact,
        "error": state.error,
        "restored": state.reasserted,
        "conntrack": {"removed": revoked.removed, "error": revoked.error},
    }


def worker(worker: WorkerState) -> dict[str, Any]:
    return {
        "pid": worker.pid,
        "worker": worker.worker,
        "revision": worker.revision,
        **msgspec.structs.asdict(worker.stats),
        "problems": list(worker.problems),
    }


def policy_state(policy: PolicyStatus, view: NodeView) -> dict[str, Any]:
    return {
        "kind": policy.kind,
        "namespace": policy.namespace,
        "name": policy.name,
        "state": STATES[policy.state],
        "reason": policy.reason,
        "audit": policy.audit,
        "generation": policy.generation or None,
        "file": policy.file,
        "line": policy.line,
        "endpoints": view.selected(policy),
        "host_network": [str(pod) for pod in view.selected_on_host(policy)],
        "rules": [rule.ref.rule for rule in policy.rules],
    }


def policy_states(current: Published) -> list[dict[str, Any]]:
    return [policy_state(one, current.view) for one in current.view.policies]


def endpoints(current: Published) -> list[dict[str, Any]]:
    ports = ports_of(current.view.endpoints, current.interfaces)
    return [_endpoint(one, current, ports.get(one.id)) for one in current.view.endpoints]


def _endpoint(endpoint: Endpoint, current: Published, port: Port | None) -> dict[str, Any]:
    policy = current.policies[endpoint.id]
    return {
        "id": endpoint.id,
        "namespace": endpoint.namespace,
        "name": endpoint.name,
        "addresses": list(endpoint.addresses),
        "identity": endpoint.identity,
        "labels": list(endpoint.labels.text),
        "ingress": _level(policy.ingress),
        "egress": _level(policy.egress),
        "audit": endpoint.audit,
        "port": asdict(port) if port else None,
        "secondary": [_secondary(one) for one in current.secondary if one.pod == str(endpoint)],
    }


def secondary(current: Published) -> list[dict[str, Any]]:
    """The interfaces of pods on secondary networks: no policy applies to them."""
    return [{"pod": one.pod, **_secondary(one)} for one in current.secondary]


def _secondary(one: SecondaryInterface) -> dict[str, Any]:
    return {"interface": one.interface, "network": one.network, "host": one.host, "addresses": list(one.addresses)}


def unknown(pod: UnknownPod) -> dict[str, Any]:
    """A pod interface without a Pod object: closed; in audit mode its traffic passes and is reported."""
    return {"id": pod.id, "interface": pod.interface, "addresses": list(pod.addresses), "pod": pod.pod}


def rate_limited(not_reported: Mapping[Suppressed, int], current: Published | None) -> list[dict[str, Any]]:
    """Packets without an event because of the kernel's log rate limit, by sender, policy and reason; most first."""
    names: dict[str, str] = {}
    pods: dict[int, str] = {}
    if current is not None:
        endpoints: list[Endpoint | UnknownPod] = [*current.view.endpoints, *current.snapshots.unknown]
        pods = {one.id: str(one) for one in endpoints}
        names = {address: str(one) for one in endpoints for address in one.addresses}
        names |= {port.interface: names[one] for one, port in current.interfaces.ports.items() if one in names}
    found = sorted(not_reported.items(), key=lambda item: -item[1])[:RATE_LIMITED]
    return [
        {
            "source": one.source,
            "pod": names.get(one.source, ""),
            "endpoint": one.endpoint,
            "policy_of": pods.get(one.endpoint, ""),
            "direction": one.way.value,
            "reason": ANSWERS.get(one.kind, one.kind.value),
            "packets": count,
        }
        for one, count in found
    ]


def _level(policy: DirectionPolicy | None) -> str:
    """Inspection level of a direction: open (no policy), l4 or l7."""
    if policy is None or not policy.governed:
        return "open"
    return "l7" if any(entry.action is Action.REDIRECT for entry in policy.entries) else "l4"


def identities(current: Published) -> list[dict[str, Any]]:
    return [
        {
            "id": one.id,
            "labels": list(one.labels.text),
            "cidr": str(one.cidr) if one.cidr else None,
            "networks": sorted(map(str, one.networks)),
            "named_ports": [
                {"name": name, "protocol": _protocol(protocol), "port": port}
                for name, protocol, port in sorted(one.named_ports)
            ],
        }
        for one in current.view.identities.values()
    ]


def services(current: Published) -> list[dict[str, Any]]:
    return [{**asdict(one), "protocol": _protocol(one.protocol)} for one in current.view.frontends]


def policies(current: Published | None, wanted: str = "") -> list[dict[str, Any]] | None:
    """The enforced policy of each endpoint, or of `wanted` (ID, NAME or NAMESPACE/NAME): None if it does not exist."""
    if current is None:
        return [] if not wanted else None
    found = [
        {
            "id": endpoint.id,
            "namespace": endpoint.namespace,
            "name": endpoint.name,
            "identity": endpoint.identity,
            "revision": current.revision,
            "ingress": _direction(current.policies[endpoint.id].ingress),
            "egress": _direction(current.policies[endpoint.id].egress),
            "identities": _who(current.policies[endpoint.id], current.view.identities),
        }
        for endpoint in current.view.endpoints
        if not wanted or wanted in (str(endpoint.id), str(endpoint), endpoint.name)
    ]
    return found if found or not wanted else None


def _who(policy: EndpointPolicy, known: Mapping[int, Identity]) -> dict[str, list[str]]:
    """Identity number → labels and networks, for all peers in the policy's entries."""
    tiers = [tier for one in (policy.ingress, policy.egress) if one is not None for tier in one.tiers]
    entries = [entry for tier in tiers for stage in tier.stages for entry in stage]
    numbers = sorted({number for entry in entries for number in entry.peers or ()} & known.keys())
    return {str(number): [*known[number].labels.text, *sorted(map(str, known[number].networks))] for number in numbers}


def _direction(policy: DirectionPolicy | None) -> dict[str, Any] | None:
    if policy is None:
        return None
    return {"governed": policy.governed, "tiers": [_tier(tier) for tier in policy.tiers]}


def _tier(tier: TierPolicy) -> dict[str, Any]:
    return {
        "name": tier.name,
        "stages": [[_entry(entry) for entry in stage] for stage in tier.stages],
        "denied_by": [asdict(one) for one in tier.denied_by],
        "audited_by": [asdict(one) for one in tier.audited_by],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "action": entry.action.name.lower(),
        "audit": entry.audit,
        "peers": None if entry.peers is None else list(entry.peers),
        "protocol": None if entry.protocol is None else _protocol(entry.protocol),
        "first": entry.first,
        "last": entry.last,
        "rule": asdict(entry.ref),
        "l7": None if entry.l7 is None else kind_of(entry.l7).key,
        **{kind.key: _l7(entry) if kind is kind_of(entry.l7) else None for kind in KINDS.values()},
        "refusal": entry.refusal,
        "log": entry.log,
    }


def _l7(entry: Entry) -> list[dict[str, Any]]:
    if isinstance(entry.l7, HttpRules):
        return [_http(rule) for rule in entry.l7.rules]
    return [{**msgspec.to_builtins(entry.l7), "rule": asdict(entry.ref)}]


def _http(rule: HttpRule) -> dict[str, Any]:
    return {
        "method": rule.method,
        "path": rule.path,
        "host": rule.host,
        "headers": [str(header) for header in rule.headers],
        "header_matches": [str(header) for header in rule.header_matches],
        "rule": asdict(rule.ref),
    }


def _protocol(number: int) -> str:
    names: Mapping[int, str] = {one.value: one.name for one in Protocol}
    return names.get(number, str(number))
