"""Index of pods: the owner of each address, and each pod's identity labels and identity numbers.

Updated pod by pod, since clusters have many pods and few change at a time. The result depends only on the current pods,
identity inputs and node addresses, never on the order of updates (law 4; a property test compares it with an index
built in one step).

An address has one owner or none: an address that two pods claim has no owner until only one claims it. But what the
CNI of this node has assigned belongs to the pod that its result names, or to none: objects may be outdated for as long
as the API server does not answer. Elsewhere pods that are being deleted yield to the one that is not, since an address
is assigned again before the object of its last owner is gone. If a pod and a node claim the same address, the node owns
it and the pod's claim is reported: such a pod shares its node's network, whatever its spec says. Finished pods claim no
address; host-network pods have their node's addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from l7proxy.cluster.identity_labels import NOTHING, Asked, LabelFilter, labels_of
from l7proxy.model.identity import (
    CONTESTED,
    FIRST_POD_IDENTITY,
    LOCAL_SCOPE,
    NO_NETWORKS,
    Identity,
    allocated,
    digest,
)
from l7proxy.model.ids import IdentityId
from l7proxy.model.labels import LabelSet
from l7proxy.model.net import Network, Networks, single, single_text
from l7proxy.model.resources import Node, Pod, Problem, ResourceKey
from l7proxy.model.versioned import VersionedMap

_NO_LABELS: Final[Mapping[str, str]] = {}
NO_PODS: Final = object()
"""`PodIndex.stamp` of a namespace without pods."""


@dataclass(frozen=True)
class IdentityInputs:
    """The inputs besides the pods that determine their labels and identity numbers.

    The label keys that policies select on, the networks that policies match against pod addresses, and the labels of
    namespaces (`spaces`) and ServiceAccounts (`accounts`).
    """

    asked: Asked = NOTHING
    networks: frozenset[Network] = frozenset()
    spaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    accounts: Mapping[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Meaning:
    """What an identity number is allocated for. Pods with equal labels, named ports and networks share one object.

    `spelling`: a digest of it; equal ones get equal numbers. `users`: how many addresses have it. `alone`: of most
    pods, which have one address.
    """

    spelling: bytes
    identity: Identity
    users: int = 0
    alone: tuple[Meaning, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.alone = (self,)


class PodIndex:
    """Written by `upsert`, `delete`, `set_inputs` and `set_nodes`; then read."""

    def __init__(self, *, cluster: str, kept: LabelFilter) -> None:
        self._cluster = cluster
        self._kept = kept
        self._inputs = IdentityInputs()
        self._inside = Networks(())
        self._meanings: dict[ResourceKey, tuple[Meaning, ...]] = {}
        """Of each pod with a network of its own, under the current inputs: one per address, one if it has none yet."""
        self._disputed: dict[str, tuple[Pod, ...]] = {}
        """Address → the pods that claim it, if they are not just its owner: several, or the address is another's."""
        self._assigned: Mapping[str, ResourceKey] = {}
        self._meant: dict[bytes, Meaning] = {}
        self._numbers: Mapping[bytes, int] | None = {}
        self._last: Mapping[bytes, int] = {}
        self._on_host: dict[ResourceKey, Pod] = {}
        self._on_host_of: dict[str, dict[ResourceKey, Pod]] = {}
        self._families = [0, 0]
        self.nodes: dict[str, str] = {}
        self._of_nodes: tuple[tuple[Node, ...], Mapping[str, str], list[Problem]] | None = None
        """What `nodes` was made of besides the pods, and the problems found; None if pods on hosts have changed."""
        self.owned: dict[str, Pod] = {}
        self.contested: dict[str, tuple[Pod, ...]] = {}
        self.by_node: dict[str, dict[ResourceKey, Pod]] = {}
        self._by_space: dict[str, dict[ResourceKey, Pod]] = {}
        self._stamps: dict[str, object] = {}
        self._identities: dict[bytes, Identity] = {}
        self._by_number: Mapping[int, Identity] = {}
        self._moved: set[str] = set()
        """Addresses whose owner or number may have changed since `_settle_all`."""
        self._owners: VersionedMap[str, Pod] = VersionedMap()
        self._prefixes: VersionedMap[str, int] = VersionedMap()

    # --- updates

    def upsert(self, pod: Pod) -> None:
        self.delete(pod.key)
        if pod.finished:
            return
        self._by_space.setdefault(pod.namespace, {})[pod.key] = pod
        self._stamps[pod.namespace] = object()
        if pod.host_network:
            self._of_nodes = None
            self._on_host[pod.key] = pod
            self._on_host_of.setdefault(pod.node, {})[pod.key] = pod
            return
        self._enter(pod)
        self.by_node.setdefault(pod.node, {})[pod.key] = pod
        for address in dict.fromkeys(pod.addresses):
            self._families[":" in address] += 1
            self._settle(address, (*self._claims(address), pod))

    def delete(self, key: ResourceKey) -> None:
        host_pod = self._on_host.pop(key, None)
        if host_pod is not None:
            self._of_nodes = None
            _remove(self._on_host_of, host_pod.node, key)
        pod = self._by_space.get(key.namespace, {}).get(key)
        if pod is not None:
            _remove(self._by_space, key.namespace, key)
            if key.namespace in self._by_space:
                self._stamps[key.namespace] = object()
            else:
                del self._stamps[key.namespace]
        if pod is None or key not in self._meanings:
            return
        self._leave(pod)
        _remove(self.by_node, pod.node, key)
        for address in dict.fromkeys(pod.addresses):
            self._families[":" in address] -= 1
            self._settle(address, tuple(one for one in self._claims(address) if one.key != key))

    def set_inputs(self, inputs: IdentityInputs) -> None:
        """Recompute every pod whose labels or networks may differ with these inputs."""
        before = self._inputs
        if inputs == before:
            return
        self._inputs = inputs
        self._inside = Networks(inputs.networks)
        if (inputs.asked, inputs.networks) != (before.asked, before.networks):
            again = list(self.pods)
        else:
            again = [pod for pod in self.pods if self._given(pod, before) != self._given(pod)]
        for pod in again:
            self._leave(pod)
            self._enter(pod)
            self._moved.update(pod.addresses)

    def set_nodes(self, nodes: tuple[Node, ...], local: Mapping[str, str]) -> list[Problem]:
        """`nodes`: sorted by name. `local`: addresses of this node's own interfaces, in or out of its Node object."""
        known = self._of_nodes
        if known is not None and known[0] is nodes and known[1] == local:
            return known[2]
        of_nodes, problems = dict(local), list[Problem]()
        for node in nodes:
            for address in node.addresses:
                first = of_nodes.setdefault(address, node.name)
                if first != node.name:
                    problems.append(_problem(node, f"{address} is already the address of node {first}"))
        for key in sorted(self._on_host):
            pod = self._on_host[key]
            for address in pod.addresses:
                of_nodes.setdefault(address, pod.node)
        if of_nodes != self.nodes:
            changed = {address for address, _ in of_nodes.items() ^ self.nodes.items()}
            self.nodes = of_nodes
            for address in changed:
                self._settle(address, self._claims(address))
        self._of_nodes = nodes, local, problems
        return problems

    def set_assigned(self, assigned: Mapping[str, ResourceKey]) -> None:
        """`assigned`: address → the pod to which the CNI of this node has assigned it, also one without an object."""
        before, self._assigned = self._assigned, assigned
        for address, _ in before.items() ^ assigned.items():
            if claims := self._claims(address):
                self._settle(address, claims)

    # --- queries

    @property
    def pods(self) -> Iterable[Pod]:
        """Those with a network of their own."""
        return (pod for known in self.by_node.values() for pod in known.values())

    def of_space(self, namespace: str) -> list[Pod]:
        """All unfinished pods of the namespace, host-network pods included, sorted."""
        known = self._by_space.get(namespace, {})
        return [known[key] for key in sorted(known)]

    def stamp(self, namespace: str) -> object:
        """A cache key: a new object after every change of a pod in this namespace."""
        return self._stamps.get(namespace, NO_PODS)

    def labels(self, pod: Pod) -> LabelSet:
        return self._meanings[pod.key][0].identity.labels

    def addresses(self, pod: Pod) -> tuple[str, ...]:
        """The addresses that this pod owns."""
        return tuple(address for address in pod.addresses if self.owned.get(address) is pod)

    def host_network(self, node: str | None) -> list[tuple[Pod, LabelSet]]:
        """The pods of a node (None: of all nodes) that use its network, with the labels that selectors match."""
        known = self._on_host if node is None else self._on_host_of.get(node, {})
        return [(known[key], self._labels_of(known[key])) for key in sorted(known)]

    def families(self) -> frozenset[int]:
        """IP versions of all pod addresses: 4, 6."""
        return frozenset((4, 6)[index] for index, count in enumerate(self._families) if count)

    def number(self, pod: Pod, address: str) -> IdentityId:
        return IdentityId(self._allocated()[self._at(pod, address).spelling])

    def identities(self) -> Mapping[int, Identity]:
        """Number → identity, the same object until one changes. Addresses with equal labels, named ports and networks
        share one."""
        self._allocated()
        return self._by_number

    def prefixes(self) -> VersionedMap[str, int]:
        """The single-address prefix of every address that pods claim, and no node has → identity number."""
        self._settle_all()
        return self._prefixes

    def owners(self) -> VersionedMap[str, Pod]:
        """Address → its owner."""
        self._settle_all()
        return self._owners

    def problems(self) -> list[Problem]:
        """Address claims that conflict with a node or with another pod."""
        return [*self._against_nodes(), *self._among_pods()]

    # --- internal

    def _settle_all(self) -> None:
        numbers = self._allocated()
        if not self._moved:
            return
        moved = {single_text(address): address for address in self._moved}

        def number(prefix: str) -> int | None:
            address = moved[prefix]
            owner = self.owned.get(address)
            if owner is not None:
                return numbers[self._at(owner, address).spelling]
            return CONTESTED if address in self.contested else None

        self._owners = self._owners.updated(self._moved, self.owned.get)
        self._prefixes = self._prefixes.updated(moved, number)
        self._moved.clear()

    def _against_nodes(self) -> Iterator[Problem]:
        for address in self._disputed.keys() & self.nodes.keys():
            text = (
                f"{address} is the address of node {self.nodes[address]}: no policy applies to the pod at that address"
            )
            yield from (_problem(pod, text) for pod in self._disputed[address])

    def _among_pods(self) -> Iterator[Problem]:
        for address, pods in self.contested.items():
            names = " and ".join(f"{pod.namespace}/{pod.name}" for pod in pods)
            text = f"{address} is claimed by {names}: traffic to and from it is refused until only one claims it"
            yield from (_problem(pod, text) for pod in pods)

    def _given(self, pod: Pod, inputs: IdentityInputs | None = None) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """The labels of this pod's namespace and of its ServiceAccount."""
        inputs = inputs or self._inputs
        account = inputs.accounts.get((pod.namespace, pod.service_account), _NO_LABELS)
        return inputs.spaces.get(pod.namespace, _NO_LABELS), account

    def _at(self, pod: Pod, address: str) -> Meaning:
        """What the number of this address is allocated for."""
        return self._meanings[pod.key][pod.addresses.index(address) if pod.addresses else 0]

    def _meanings_of(self, pod: Pod) -> tuple[Meaning, ...]:
        labels = self._labels_of(pod)
        text = repr((labels.spelled(), sorted(pod.named_ports)))
        meanings = tuple(self._meaning(pod, labels, text, address) for address in pod.addresses or ("",))
        return meanings[0].alone if len(meanings) == 1 else meanings

    def _meaning(self, pod: Pod, labels: LabelSet, text: str, address: str) -> Meaning:
        networks = NO_NETWORKS
        if address and self._inputs.networks:
            networks = self._inside.holding(single(address)) or NO_NETWORKS
        spelling = digest(text + (repr(sorted(map(str, networks))) if networks else ""))
        known = self._meant.get(spelling)
        if known is None:
            identity = Identity(IdentityId(0), labels, pod.named_ports, networks)
            known = self._meant[spelling] = Meaning(spelling, identity)
        return known

    def _labels_of(self, pod: Pod) -> LabelSet:
        space, account = self._given(pod)
        return labels_of(pod, space, cluster=self._cluster, asked=self._inputs.asked, account=account, kept=self._kept)

    def _enter(self, pod: Pod) -> None:
        meanings = self._meanings[pod.key] = self._meanings_of(pod)
        for meaning in meanings:
            meaning.users += 1
            if meaning.users == 1:
                self._numbers = None

    def _leave(self, pod: Pod) -> None:
        for meaning in self._meanings.pop(pod.key):
            meaning.users -= 1
            if not meaning.users:
                self._numbers = None

    def _claims(self, address: str) -> tuple[Pod, ...]:
        """The pods that have this address."""
        owner = self.owned.get(address)
        return self._disputed.get(address) or (() if owner is None else (owner,))

    def _settle(self, address: str, claims: tuple[Pod, ...]) -> None:
        """Recompute the owner of an address that these pods have."""
        self._moved.add(address)
        for known in (self.owned, self.contested, self._disputed):
            known.pop(address, None)
        contenders = () if address in self.nodes else self._contenders(address, claims)
        if len(claims) > 1 or contenders != claims:
            self._disputed[address] = claims
        if len(contenders) == 1:
            self.owned[address] = contenders[0]
        elif contenders:
            self.contested[address] = tuple(sorted(contenders, key=lambda pod: pod.key))

    def _contenders(self, address: str, claims: tuple[Pod, ...]) -> tuple[Pod, ...]:
        """The pods that may own an address; several are a conflict."""
        assigned = self._assigned.get(address)
        if assigned is not None:
            return tuple(pod for pod in claims if pod.key == assigned)
        staying = tuple(pod for pod in claims if not pod.terminating)
        return staying or claims

    def _allocated(self) -> Mapping[bytes, int]:
        """Digest → number, a pure function of the keys in use. If a number changes, all prefixes are updated."""
        if self._numbers is None:
            self._meant = {text: meaning for text, meaning in self._meant.items() if meaning.users}
            before = self._last
            self._numbers = self._last = allocated(self._meant, first=FIRST_POD_IDENTITY, end=LOCAL_SCOPE)
            if any(self._numbers.get(text, number) != number for text, number in before.items()):
                self._moved.update(self.owned)
            self._identities = {text: self._identity(text, number) for text, number in self._numbers.items()}
            self._by_number = {number: self._identities[text] for text, number in self._numbers.items()}
        return self._numbers

    def _identity(self, spelling: bytes, number: int) -> Identity:
        known = self._identities.get(spelling)
        return known if known and known.id == number else replace(self._meant[spelling].identity, id=IdentityId(number))


def _remove(groups: dict[str, dict[ResourceKey, Pod]], name: str, key: ResourceKey) -> None:
    """Remove a pod from its group, and the group when it is empty: names of namespaces and nodes come and go."""
    del groups[name][key]
    if not groups[name]:
        del groups[name]


def _problem(owner: Pod | Node, message: str) -> Problem:
    field = "status.podIPs" if isinstance(owner, Pod) else "status.addresses"
    return Problem(owner.origin.file, owner.origin.line, field, f"{owner.key}: {message}")
