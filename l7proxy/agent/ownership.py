"""Whose is an address? One owner, or none: what two claim belongs to nobody until one of them gives in.

Between a pod and a node the node has it, and the claim is reported: such a pod shares its node's network whatever it
says. Finished pods claim nothing; pods of the host's network have their node's addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from l7proxy.model.facts import Node, Pod, Problem


@dataclass(frozen=True, slots=True)
class Ownership:
    """`nodes` maps an address to its node's name; `pods` to its one pod; `contested` to all who claim it."""

    nodes: Mapping[str, str]
    pods: Mapping[str, Pod]
    contested: Mapping[str, tuple[Pod, ...]]
    problems: tuple[Problem, ...]

    def addresses(self, pod: Pod) -> tuple[str, ...]:
        """Those of the pod's addresses that are the pod's alone."""
        return tuple(address for address in pod.addresses if self.pods.get(address) is pod)


def settle(nodes: Iterable[Node], pods: Iterable[Pod], local: Mapping[str, str]) -> Ownership:
    """`pods` sorted by name. `local` are addresses that this node's kernel has, whatever its Node object says."""
    of_nodes = dict(local)
    problems: list[Problem] = []
    for node in nodes:
        for address in node.addresses:
            first = of_nodes.setdefault(address, node.name)
            if first != node.name:
                problems.append(_problem(node, f"{address} is already the address of node {first}"))
    claims: dict[str, list[Pod]] = {}
    for pod in pods:
        for address in () if pod.finished else pod.addresses:
            if pod.host_network:
                of_nodes.setdefault(address, pod.node)
            else:
                claims.setdefault(address, []).append(pod)
    for address in sorted(claims.keys() & of_nodes.keys()):
        text = f"{address} is the address of node {of_nodes[address]}: the pod has no policy of its own there"
        problems += (_problem(pod, text) for pod in claims.pop(address))
    contested = {address: tuple(found) for address, found in sorted(claims.items()) if len(found) > 1}
    for address, found in contested.items():
        names = " and ".join(f"{pod.namespace}/{pod.name}" for pod in found)
        problems += (
            _problem(pod, f"{address} is claimed by {names}: it is nobody's until one remains") for pod in found
        )
    single = {address: found[0] for address, found in claims.items() if len(found) == 1}
    return Ownership(of_nodes, single, contested, tuple(sorted(problems)))


def _problem(owner: Pod | Node, message: str) -> Problem:
    field = "status.podIPs" if isinstance(owner, Pod) else "status.addresses"
    return Problem(owner.origin.file, owner.origin.line, field, f"{owner.key}: {message}")
