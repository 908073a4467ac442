"""Checks the agents' flows of a scenario's requests: verdict, node, policy and reason.

A request is identified by its client's address and port, which the flows of both directions carry. Flows arrive with a
short delay, so they are waited for; then there must be exactly as many as the account requires.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

from l7proxy.flows.hubble_constants import EventType
from l7proxy.lab import agents
from l7proxy.lab.state import Lab
from l7proxy.model.net import HostPort

WAIT: Final = 5.0
SETTLE: Final = 0.3
_ENOUGH: Final = 100_000

Flow = dict[str, Any]


class Account(StrEnum):
    """The flows that one request must have."""

    L7_ALLOWED = "l7-allowed"
    """One request, one response, nothing dropped."""
    L7_DENIED = "l7-denied"
    """One dropped request that names policy and reason, one response."""
    L4_DENIED = "l4-denied"
    """One dropped packet (more if the client retries), whose policy verdict names policy and reason."""
    ANY = "any"
    """No flow is required, but nothing may be dropped."""


def account(lab: Lab, nodes: Sequence[str], sent: Sequence[tuple[HostPort | None, Account]]) -> list[list[str]]:
    """What is wrong with the flows of each request. Waits until all are right, or a few seconds."""
    deadline = time.monotonic() + WAIT
    while any(faults := _look(lab, nodes, sent)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if any(faults):
        return faults
    time.sleep(SETTLE)  # a surplus flow may arrive late
    return _look(lab, nodes, sent)


def _look(lab: Lab, nodes: Sequence[str], sent: Sequence[tuple[HostPort | None, Account]]) -> list[list[str]]:
    by_client: dict[HostPort, list[Flow]] = {}
    for flow in (flow for node in nodes for flow in flows(lab, node)):
        if client := client_of(flow):
            by_client.setdefault(client, []).append(flow)
    return [faults_of(by_client.get(local, []), wanted) if local else [] for local, wanted in sent]


def flows(lab: Lab, node: str) -> list[Flow]:
    """The flows that this node's agent holds, oldest first."""
    answers = agents.ask(lab, node, {"method": "observe", "last": _ENOUGH})
    return [answer["flow"] for answer in answers if isinstance(answer.get("flow"), dict)]


def client_of(flow: Flow) -> HostPort | None:
    """The end that opened the connection: the source, or the destination of a reply."""
    side, port = ("destination", "destination_port") if flow.get("is_reply") else ("source", "source_port")
    layer = flow.get("l4") or {}
    ports = layer.get("TCP") or layer.get("UDP") or {}
    address = (flow.get("IP") or {}).get(side)
    return HostPort(address, int(ports[port])) if address and port in ports else None


def faults_of(found: Sequence[Flow], wanted: Account) -> list[str]:
    """What is wrong with these flows of one request."""
    dropped = [flow for flow in found if flow.get("verdict") == "DROPPED"]
    requests = [flow for flow in found if _l7_type(flow) == "REQUEST"]
    responses = [flow for flow in found if _l7_type(flow) == "RESPONSE"]
    faults = []
    if wanted in {Account.L7_ALLOWED, Account.ANY} and dropped:
        faults.append(f"DROPPED flows for allowed traffic: {', '.join(map(_summary, dropped))}")
    if wanted in {Account.L7_ALLOWED, Account.L7_DENIED}:
        faults.extend(
            f"{len(f)} {n} flows, not 1" for n, f in (("request", requests), ("response", responses)) if len(f) != 1
        )
    if wanted is Account.L7_DENIED and len(dropped) != 1:
        faults.append(f"{len(dropped)} DROPPED flows, not 1")
    if wanted is Account.L4_DENIED and not dropped:
        faults.append("no DROPPED flow")
    for flow in dropped if wanted in {Account.L7_DENIED, Account.L4_DENIED} else []:
        if not policies_of(flow) and (flow.get("event_type") or {}).get("type") != EventType.DROP:
            faults.append("the DROPPED flow names no policy")
        if not reason_of(flow):
            faults.append("the DROPPED flow gives no reason")
    return faults


def _summary(flow: Flow) -> str:
    """A dropped flow in a few words: its port and the reason."""
    layer = flow.get("l4") or {}
    ports = ", ".join(f"{ends.get('destination_port')}/{name}" for name, ends in layer.items())
    return f"{ports} {flow.get('Summary', '')}: {reason_of(flow)}"


def _l7_type(flow: Flow) -> str:
    return str((flow.get("l7") or {}).get("type", ""))


def policies_of(flow: Flow) -> list[str]:
    """namespace/name of the policies that a denial names."""
    named = [policy for side in ("ingress_denied_by", "egress_denied_by") for policy in flow.get(side) or []]
    return [f"{policy.get('namespace', '')}/{policy.get('name', '')}" for policy in named]


def reason_of(flow: Flow) -> str:
    return "; ".join(flow.get("policy_log") or []) or str(flow.get("drop_reason_desc") or "")
