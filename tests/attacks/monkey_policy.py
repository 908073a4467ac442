"""Policies as the monkey draws them, and their meaning: a small independent model without code of the product.

Subjects and peers are roles (the label `role` of cluster.yaml). A policy is written as a CiliumNetworkPolicy or, where
it has neither HTTP rules nor denials, as a NetworkPolicy of Kubernetes: the meaning is the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final

ROLES: Final = ("victim", "open", "locked", "free", "friend")
PORTS: Final = (("TCP", 80), ("TCP", 9000), ("UDP", 9000))
METHODS: Final = ("GET", "POST")
PREFIXES: Final = ("/public", "/secret")
NODE: Final = "node"
"""The role of a node. No drawn rule selects it, so only a pod without egress policy may reach a node."""


@dataclass(frozen=True)
class Rule:
    """Empty `ports`: every protocol and port; empty `requests`: no HTTP rule (else method and path prefix)."""

    peers: frozenset[str]
    ports: tuple[tuple[str, int], ...] = ()
    requests: tuple[tuple[str, str], ...] = ()
    deny: bool = False

    def covers(self, peer: str, protocol: str, port: int) -> bool:
        return peer in self.peers and (not self.ports or (protocol, port) in self.ports)

    def admits(self, request: tuple[str, str] | None) -> bool:
        """`request` is method and path; None is any traffic other than an HTTP request."""
        return not self.requests or (
            request is not None and any(request[0] == m and request[1].startswith(p) for m, p in self.requests)
        )


@dataclass(frozen=True)
class Policy:
    """None is a direction that the policy does not cover."""

    name: str
    role: str
    ingress: tuple[Rule, ...] | None
    egress: tuple[Rule, ...] | None
    kubernetes: bool = False

    def rules(self, direction: str) -> tuple[Rule, ...] | None:
        return self.ingress if direction == "ingress" else self.egress

    def manifest(self) -> str:
        return json.dumps(_kubernetes(self) if self.kubernetes else _cilium(self)) + "\n"


Policies = tuple[Policy, ...]


def allows(
    policies: Policies, source: str, target: str, protocol: str, port: int, request: tuple[str, str] | None = None
) -> bool:
    """Whether `source` may send this to `target` (roles): its egress and the target's ingress must both allow it."""
    return _admits(policies, "egress", source, target, protocol, port, request) and _admits(
        policies, "ingress", target, source, protocol, port, request
    )


def exchanges(policies: Policies, client: str, server: str, port: int, *, same_node: bool) -> bool:
    """Whether datagrams may pass in either direction between a client's port and UDP 9000 of a server that it queried.

    Either as a flow of the client or as one that the server started. Each node evaluates its own pod and has its own
    conntrack: between nodes the two may see different flows.
    """
    asks = _admits(policies, "egress", client, server, "UDP", 9000, None)
    asked = _admits(policies, "ingress", server, client, "UDP", 9000, None)
    sends = _admits(policies, "egress", server, client, "UDP", port, None)
    receives = _admits(policies, "ingress", client, server, "UDP", port, None)
    if same_node:
        return (asks and asked) or (sends and receives)
    return (asks or receives) and (asked or sends)


def isolated(policies: Policies, direction: str, role: str) -> bool:
    return any(p.role == role and p.rules(direction) is not None for p in policies)


def judged(policies: Policies, source: str, target: str) -> bool:
    """Whether any policy applies, so that a flow is required."""
    return isolated(policies, "egress", source) or isolated(policies, "ingress", target)


def judged_by_request(policies: Policies, source: str, target: str) -> bool:
    """Whether HTTP rules cover port 80 from source to target."""
    sides = (("egress", source, target), ("ingress", target, source))
    return any(rule.requests for side in sides for rule in _covering(policies, *side, "TCP", 80))


def _admits(
    policies: Policies, direction: str, subject: str, peer: str, protocol: str, port: int, request: Any
) -> bool:
    if not isolated(policies, direction, subject):
        return True
    covering = _covering(policies, direction, subject, peer, protocol, port)
    return not any(rule.deny for rule in covering) and any(rule.admits(request) for rule in covering)


def _covering(policies: Policies, direction: str, subject: str, peer: str, protocol: str, port: int) -> list[Rule]:
    rules = [rule for p in policies if p.role == subject for rule in p.rules(direction) or ()]
    return [rule for rule in rules if rule.covers(peer, protocol, port)]


# Drawing


def draw(random: Random, name: str) -> Policy:
    kubernetes = random.random() < 0.3
    directions = random.choice((("ingress",), ("egress",), ("ingress", "egress")))
    ingress, egress = (
        tuple(_rule(random, kubernetes) for _ in range(random.randrange(4))) if d in directions else None
        for d in ("ingress", "egress")
    )
    return Policy(name, random.choice(ROLES), ingress, egress, kubernetes)


def _rule(random: Random, kubernetes: bool) -> Rule:
    peers = frozenset(random.sample(ROLES, random.randrange(1, 4)))
    kind = random.random()
    if kind < 0.15:
        return Rule(peers)
    if kubernetes or kind < 0.55:
        return Rule(peers, tuple(random.sample(PORTS, random.randrange(1, 3))))
    if kind < 0.65:
        return Rule(peers, tuple(random.sample(PORTS, 1)), deny=True)
    pairs = [(method, prefix) for method in METHODS for prefix in PREFIXES]
    return Rule(peers, (("TCP", 80),), tuple(random.sample(pairs, random.randrange(1, 3))))


# Writing


def _cilium(policy: Policy) -> dict[str, Any]:
    spec: dict[str, Any] = {"endpointSelector": {"matchLabels": {"role": policy.role}}}
    for direction, word, rules in _directions(policy):
        spec[direction] = [_cilium_rule(rule, word) for rule in rules if not rule.deny] or [{}] * (not rules)
        if denials := [_cilium_rule(rule, word) for rule in rules if rule.deny]:
            spec[f"{direction}Deny"] = denials
    return _document("cilium.io/v2", "CiliumNetworkPolicy", policy.name, spec)


def _directions(policy: Policy) -> Iterator[tuple[str, str, tuple[Rule, ...]]]:
    """(direction, `from` or `to`, rules) for each direction that the policy covers."""
    for direction, word in (("ingress", "from"), ("egress", "to")):
        if (rules := policy.rules(direction)) is not None:
            yield direction, word, rules


def _document(version: str, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "default"}, "spec": spec}


def _cilium_rule(rule: Rule, word: str) -> dict[str, Any]:
    expression = {"key": "role", "operator": "In", "values": sorted(rule.peers)}
    written: dict[str, Any] = {f"{word}Endpoints": [{"matchExpressions": [expression]}]}
    if rule.ports:
        ports: dict[str, Any] = {"ports": [{"port": str(port), "protocol": name} for name, port in rule.ports]}
        if rule.requests:
            ports["rules"] = {"http": [{"method": method, "path": f"{prefix}.*"} for method, prefix in rule.requests]}
        written["toPorts"] = [ports]
    return written


def _kubernetes(policy: Policy) -> dict[str, Any]:
    spec: dict[str, Any] = {"podSelector": {"matchLabels": {"role": policy.role}}, "policyTypes": []}
    for direction, word, rules in _directions(policy):
        spec["policyTypes"].append(direction.capitalize())
        spec[direction] = [_kubernetes_rule(rule, word) for rule in rules]
    return _document("networking.k8s.io/v1", "NetworkPolicy", policy.name, spec)


def _kubernetes_rule(rule: Rule, word: str) -> dict[str, Any]:
    expression = {"key": "role", "operator": "In", "values": sorted(rule.peers)}
    written: dict[str, Any] = {word: [{"podSelector": {"matchExpressions": [expression]}}]}
    if rule.ports:
        written["ports"] = [{"port": port, "protocol": name} for name, port in rule.ports]
    return written


def manifests(policies: Iterable[Policy]) -> str:
    return "---\n".join(policy.manifest() for policy in policies)
