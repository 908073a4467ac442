"""Builds the answers of the agent's API as plain objects: `status` and the lists. Pure functions of published data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from l7proxy import __version__, compiled
from l7proxy.agent.dataplane.reconciler import KernelState, Published, Reconciler
from l7proxy.agent.dataplane.revocation import Revoked
from l7proxy.agent.dataplane.unknown_pods import UnknownPod
from l7proxy.cluster.policy_status import PolicyPhase, PolicyStatus
from l7proxy.cluster.state import NodeView
from l7proxy.errors import SourceError
from l7proxy.flows.ring import Ring
from l7proxy.flows.sinks.feed import Feed
from l7proxy.link.server import WorkerState
from l7proxy.model.endpoint import Endpoint
from l7proxy.model.identity import Identity
from l7proxy.model.ref import RuleRef
from l7proxy.model.resources import Problem
from l7proxy.model.verdict import Action, Protocol
from l7proxy.policy.l7 import KINDS, kind_of
from l7proxy.policy.rules import HttpRule, HttpRules
from l7proxy.policy.tables import DirectionPolicy, EndpointPolicy, Entry, TierPolicy
from l7proxy.sources.source import NEVER, SourceHealth
from tproxy_rules.backend import Suppressed
from tproxy_rules.marks import LogEvent

NOTHING_REVOKED = Revoked()
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


def status(
    *,
    node: str,
    audit: bool,
    backend: str,
    source: SourceHealth,
    reconciler: Reconciler,
    revoked: Revoked = NOTHING_REVOKED,
    workers: list[WorkerState],
    ring: Ring,
    not_told: Mapping[Suppressed, int],
    feeds: Sequence[Feed],
) -> dict[str, Any]:
    """`detail` and `problems` in the answer are those of the input of revision `revision`, never of a newer one."""
    current = reconciler.current
    return {
        "node": node,
        "audit": audit,
        "version": __version__,
        "build": compiled.word(),
        "backend": backend,
        "revision": reconciler.revision,
        "enforced_revision": reconciler.enforced_revision,
        "source": {
            "kind": source.kind,
            "location": source.location,
            "reachable": source.reachable,
            "age": _age(source.contact),
            "synced": current is not None,
            "detail": dict(sorted(current.source.detail.items())) if current else {},
            "problems": _problems(current),
        },
        "kernel": _kernel(reconciler.kernel, revoked),
        "workers": [_worker(worker) for worker in workers],
        "policies": [policy_state(policy, current.view) for policy in current.view.policies] if current else [],
        "endpoints": endpoints(current),
        "pod_interfaces": {"problems": list(current.interfaces.problems) if current else []},
        "unknown_pods": [_unknown(one) for one in current.pictures.unknown] if current else [],
        "flows": {
            "seen": ring.seen,
            "lost": ring.lost,
            "capacity": ring.capacity,
            "rate_limited": _rate_limited(not_told, current),
            "sinks": [_sink(feed) for feed in feeds],
        },
    }


def _sink(feed: Feed) -> dict[str, Any]:
    return {"name": feed.name, "written": feed.written, "lost": feed.lost, "problem": feed.problem}


def _age(contact: float) -> float | None:
    """Seconds since the last contact; None if there was none."""
    return None if contact == NEVER else round(time.monotonic() - contact, 3)


def _problems(current: Published | None) -> list[dict[str, Any]]:
    if current is None:
        return []
    found: list[SourceError | Problem] = [
        *current.source.problems,
        *current.view.problems,
        *current.view.secret_problems,
    ]
    return [{"file": one.file, "line": one.line or None, "field": one.field, "message": one.message} for one in found]


def _kernel(state: KernelState, revoked: Revoked) -> dict[str, Any]:
    return {
        "digest": state.installed.digest if state.installed else "",
        "intact": state.installed is not None and state.installed.intact,
        "error": state.error,
        "restored": state.reasserted,
        "conntrack": {"removed": revoked.removed, "error": revoked.error},
    }


def _worker(worker: WorkerState) -> dict[str, Any]:
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
        "file": policy.file,
        "line": policy.line,
        "endpoints": view.selected(policy),
        "rules": [rule.ref.rule for rule in policy.rules],
    }


def endpoints(current: Published | None) -> list[dict[str, Any]]:
    if current is None:
        return []
    return [_endpoint(one, current) for one in current.view.endpoints]


def _endpoint(endpoint: Endpoint, current: Published) -> dict[str, Any]:
    policy = current.policies[endpoint.id]
    ports = {current.interfaces.ports[one] for one in endpoint.addresses if one in current.interfaces.ports}
    port = ports.pop() if len(ports) == 1 else None
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
        "port": {"interface": port.interface, "mac": port.mac, "bridge": port.bridge} if port else None,
    }


def _unknown(pod: UnknownPod) -> dict[str, Any]:
    """A pod interface without a Pod object: closed; in audit mode its traffic passes and is reported."""
    return {"id": pod.id, "interface": pod.interface, "addresses": list(pod.addresses), "pod": pod.pod}


def _rate_limited(not_told: Mapping[Suppressed, int], current: Published | None) -> list[dict[str, Any]]:
    """Packets without an event because of the kernel's log rate limit, by sender, policy and reason; most first."""
    names: dict[str, str] = {}
    pods: dict[int, str] = {}
    if current is not None:
        endpoints: list[Endpoint | UnknownPod] = [*current.view.endpoints, *current.pictures.unknown]
        pods = {one.id: str(one) for one in endpoints}
        names = {address: str(one) for one in endpoints for address in one.addresses}
        names |= {port.interface: names[one] for one, port in current.interfaces.ports.items() if one in names}
    found = sorted(not_told.items(), key=lambda item: -item[1])[:RATE_LIMITED]
    return [
        {
            "source": one.source,
            "pod": names.get(one.source, ""),
            "endpoint": one.endpoint,
            "policy_of": pods.get(one.endpoint, ""),
            "direction": one.way.value,
            "reason": ANSWERS.get(one.told, one.told.value),
            "packets": count,
        }
        for one, count in found
    ]


def _level(policy: DirectionPolicy | None) -> str:
    """Inspection level of a direction: open (no policy), l4 or l7."""
    if policy is None or not policy.governed:
        return "open"
    return "l7" if any(entry.action is Action.REDIRECT for entry in policy.entries) else "l4"


def identities(current: Published | None) -> list[dict[str, Any]]:
    if current is None:
        return []
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


def services(current: Published | None) -> list[dict[str, Any]]:
    if current is None:
        return []
    return [
        {
            "namespace": one.namespace,
            "service": one.service,
            "address": one.address,
            "port": one.port,
            "protocol": _protocol(one.protocol),
            "backends": [{"address": behind.address, "port": behind.port} for behind in one.backends],
        }
        for one in current.view.frontends
    ]


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
            **_enforced(current.policies[endpoint.id], current.revision),
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


def _enforced(policy: EndpointPolicy, revision: int) -> dict[str, Any]:
    return {
        "revision": revision,
        "ingress": _direction(policy.ingress),
        "egress": _direction(policy.egress),
    }


def _direction(policy: DirectionPolicy | None) -> dict[str, Any] | None:
    if policy is None:
        return None
    return {
        "governed": policy.governed,
        "tiers": [_tier(tier) for tier in policy.tiers],
    }


def _tier(tier: TierPolicy) -> dict[str, Any]:
    return {
        "name": tier.name,
        "stages": [[_entry(entry) for entry in stage] for stage in tier.stages],
        "denied_by": [ref(one) for one in tier.denied_by],
        "audited_by": [ref(one) for one in tier.audited_by],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "action": entry.action.name.lower(),
        "audit": entry.audit,
        "peers": None if entry.peers is None else list(entry.peers),
        "protocol": None if entry.protocol is None else _protocol(entry.protocol),
        "first": entry.first,
        "last": entry.last,
        "rule": ref(entry.ref),
        "l7": None if entry.l7 is None else kind_of(entry.l7).key,
        **{kind.key: _l7(entry) if kind is kind_of(entry.l7) else None for kind in KINDS.values()},
        "refusal": entry.refusal,
        "log": entry.log,
    }


def _l7(entry: Entry) -> list[dict[str, Any]]:
    if isinstance(entry.l7, HttpRules):
        return [_http(rule) for rule in entry.l7.rules]
    return [{**msgspec.to_builtins(entry.l7), "rule": ref(entry.ref)}]


def _http(rule: HttpRule) -> dict[str, Any]:
    return {
        "method": rule.method,
        "path": rule.path,
        "host": rule.host,
        "headers": [str(header) for header in rule.headers],
        "header_matches": [str(header) for header in rule.header_matches],
        "rule": ref(rule.ref),
    }


def ref(rule: RuleRef) -> dict[str, Any]:
    return {
        "kind": rule.kind,
        "namespace": rule.namespace,
        "name": rule.name,
        "rule": rule.rule,
        "file": rule.file,
        "line": rule.line,
    }


def _protocol(number: int) -> str:
    names: Mapping[int, str] = {one.value: one.name for one in Protocol}
    return names.get(number, str(number))
