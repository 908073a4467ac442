"""Writes status and Events to the API server: what has changed, at a bounded rate, the newest text only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from l7proxy.agent.cluster_status.conditions import ENFORCED, Condition, Verdict
from l7proxy.agent.cluster_status.follow import Metadata, decoded, listed
from l7proxy.agent.cluster_status.leases import MANAGER
from l7proxy.agent.cluster_status.plan import Known, Written
from l7proxy.cluster.policy_status import PolicyStatus
from l7proxy.errors import ApiError
from l7proxy.sources.kubernetes.connection import APPLY_PATCH, Connection

RATE: Final = 10.0
"""Requests per second that are written in the long run."""
BURST: Final = 20.0
GROUP: Final = "/apis/cilium.io/v2"
PLURALS: Final[Mapping[str, str]] = {
    "CiliumNetworkPolicy": "ciliumnetworkpolicies",
    "CiliumClusterwideNetworkPolicy": "ciliumclusterwidenetworkpolicies",
}
EVENTS_OF_CLUSTER: Final = "default"
"""Namespace of Events about objects that have none."""
MAX_EVENT_NAME: Final = 200


class Bucket:
    """A token bucket: `rate` per second, `burst` at once."""

    def __init__(self, rate: float = RATE, burst: float = BURST) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, 0.0

    def take(self, now: float) -> float:
        """Take one token. Seconds to wait before it may be used."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate) - 1
        self._at = now
        return max(0.0, -self._tokens / self._rate)

    async def wait(self) -> None:
        await asyncio.sleep(self.take(asyncio.get_running_loop().time()))


class _Condition(msgspec.Struct):
    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    lastTransitionTime: str = ""  # noqa: N815 -- as in the API
    observedGeneration: int = 0  # noqa: N815 -- dropped by CRDs that do not have it


class _Status(msgspec.Struct):
    conditions: list[_Condition] | None = None


class _Policy(msgspec.Struct):
    metadata: Metadata = msgspec.field(default_factory=Metadata)
    status: _Status | None = None


async def written(api: Connection, kind: str) -> dict[str, Known]:
    """What the API server holds for all policies of a kind, by uid. ApiError."""
    path = f"{GROUP}/{PLURALS[kind]}"
    try:
        objects, _ = await listed(api, path, {})
    except ApiError as error:
        if error.status == 404:  # the kind is not installed
            return {}
        raise
    policies = (decoded(one, _Policy, path) for one in objects)
    return {one.metadata.uid: _known(one.status.conditions or () if one.status else ()) for one in policies}


def _known(conditions: Sequence[_Condition]) -> Known:
    found = {
        one.type: Written(Condition(one.type, one.status, one.reason, one.message), one.lastTransitionTime)
        for one in conditions
    }
    return Known(found, max((one.observedGeneration for one in conditions if one.type == ENFORCED), default=0))


async def apply_status(
    api: Connection, policy: PolicyStatus, verdict: Verdict, conditions: Mapping[str, Written]
) -> None:
    """Server-side apply: conditions of other writers stay. ApiError: 404 when the policy is gone.

    The API server compares no uid here. An object that was created anew under the same name meanwhile gets the verdict
    of the old one, until its own is written, which is new to the plan.
    """
    within = f"/namespaces/{policy.namespace}" if policy.namespace else ""
    path = f"{GROUP}{within}/{PLURALS[policy.kind]}/{policy.name}/status"
    body = {
        "apiVersion": "cilium.io/v2",
        "kind": policy.kind,
        "metadata": {
            "name": policy.name,
            **({"namespace": policy.namespace} if policy.namespace else {}),
        },
        "status": {
            "conditions": [
                {
                    "type": kind,
                    "status": one.condition.status,
                    "reason": one.condition.reason,
                    "message": one.condition.message,
                    "lastTransitionTime": one.since,
                    "observedGeneration": verdict.generation,
                }
                for kind, one in sorted(conditions.items())
            ]
        },
    }
    query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Ignore"}
    await api.request("PATCH", path, query=query, body=body, content_type=APPLY_PATCH)


async def send_event(api: Connection, policy: PolicyStatus, what: Condition, now: str, instance: str) -> None:
    """An Event about a policy. The same Event has the same name, so it exists once, whoever writes it. ApiError."""
    namespace = policy.namespace or EVENTS_OF_CLUSTER
    text = f"{policy.uid} {policy.generation} {what.reason} {what.message}"
    name = f"{policy.name[:MAX_EVENT_NAME].rstrip('.-')}.{blake2b(text.encode(), digest_size=8).hexdigest()}"
    body = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "eventTime": now,
        "type": "Normal" if what.status == "True" else "Warning",
        "reason": what.reason,
        "action": "Enforce",
        "note": what.message,
        "regarding": {
            "apiVersion": policy.api_version,
            "kind": policy.kind,
            "name": policy.name,
            "uid": policy.uid,
            **({"namespace": policy.namespace} if policy.namespace else {}),
        },
        "reportingController": "l7proxy.io/agent",
        "reportingInstance": instance[:128],
    }
    try:
        await api.request("POST", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", body=body)
    except ApiError as error:
        if error.status != 409:  # it exists
            raise
