"""Who is who among pods: whose an address is, which labels a pod has, and which number these give it.

Kept up to date pod by pod, since clusters have many pods and change few at a time. What it tells depends only on the
pods, the terms and the nodes' addresses as they stand, never on the way there (law 4; a property test compares it with
one that was told all at once).

An address has one owner, or none: what two pods claim belongs to nobody until one of them gives in. Between a pod and a
node the node has it, and the claim is reported: such a pod shares its node's network whatever it says. Finished pods
claim nothing; pods of the host's network have their node's addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from l7proxy.cluster.identity_labels import NOTHING, Asked, LabelFilter, labels_of
from l7proxy.model.identity import FIRST_POD_IDENTITY, LOCAL_SCOPE, Identity, allocate
from l7proxy.model.ids import IdentityId
from l7proxy.model.labels import LabelSet
from l7proxy.model.net import Network, Networks, single, single_text
from l7proxy.model.resources import Node, Pod, Problem, ResourceKey

_NO_LABELS: Final[Mapping[str, str]] = {}


@dataclass(frozen=True)
class IdentityInputs:
    """What labels and numbers of pods depend on besides the pods.

    The keys that policies ask for, the networks that they mean for pods' own addresses, and the labels of namespaces
    and ServiceAccounts.
    """

    asked: Asked = NOTHING
    networks: frozenset[Network] = frozenset()
    spaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    accounts: Mapping[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PodEntry:
    """One pod under the terms.

    `identity_keys` are its addresses ("" for a pod that has none yet), each with the spelling that its number is made
    from: equal spellings, equal numbers.
    """

    pod: Pod
    labels: LabelSet
    identity_keys: Mapping[str, str]


class PodIndex:
    """`put` and `drop` pods, `under` terms, `beside` nodes; then read."""

    def __init__(self, *, cluster: str, kept: LabelFilter) -> None:
        self._cluster = cluster
        self._kept = kept
        self._inputs = IdentityInputs()
        self._inside = Networks(())
        self._entries: dict[ResourceKey, PodEntry] = {}
        self._claims: dict[str, dict[ResourceKey, Pod]] = {}
        self._spelled: dict[str, int] = {}
        self._meant: dict[str, Identity] = {}
        self._numbers: Mapping[str, int] | None = {}
        self._last: Mapping[str, int] = {}
        self._on_host: dict[ResourceKey, Pod] = {}
        self._families = [0, 0]
        self.nodes: dict[str, str] = {}
        self.owned: dict[str, Pod] = {}
        self.contested: dict[str, tuple[Pod, ...]] = {}
        self.by_node: dict[str, dict[ResourceKey, Pod]] = {}
        self._by_space: dict[str, dict[ResourceKey, Pod]] = {}
        self._stamps: dict[str, object] = {}
        self._identities: dict[str, Identity] = {}
        self._moved: set[str] = set()
        self._prefixes: dict[str, int] = {}

    # --- being told

    def upsert(self, pod: Pod) -> None:
        self.delete(pod.key)
        if pod.finished:
            return
        self._by_space.setdefault(pod.namespace, {})[pod.key] = pod
        self._stamps[pod.namespace] = object()
        if pod.host_network:
            self._on_host[pod.key] = pod
            return
        self._enter(self._entry(pod))
        self.by_node.setdefault(pod.node, {})[pod.key] = pod
        for address in dict.fromkeys(pod.addresses):
            self._families[":" in address] += 1
            self._claims.setdefault(address, {})[pod.key] = pod
            self._settle(address)

    def delete(self, key: ResourceKey) -> None:
        self._on_host.pop(key, None)
        if self._by_space.get(key.namespace, {}).pop(key, None) is not None:
            self._stamps[key.namespace] = object()
        entry = self._entries.get(key)
        if entry is None:
            return
        self._leave(entry)
        local = self.by_node[entry.pod.node]
        del local[key]
        if not local:
            del self.by_node[entry.pod.node]
        for address in dict.fromkeys(entry.pod.addresses):
            self._families[":" in address] -= 1
            claims = self._claims[address]
            del claims[key]
            if not claims:
                del self._claims[address]
            self._settle(address)

    def set_inputs(self, inputs: IdentityInputs) -> None:
        """Every pod whose labels or networks are others under these terms is read anew."""
        before = self._inputs
        if inputs == before:
            return
        self._inputs = inputs
        self._inside = Networks(inputs.networks)
        if (inputs.asked, inputs.networks) != (before.asked, before.networks):
            again = list(self._entries.values())
        else:
            again = [
                entry for entry in self._entries.values() if self._given(entry.pod, before) != self._given(entry.pod)
            ]
        for entry in again:
            self._leave(entry)
            self._enter(self._entry(entry.pod))
            self._moved.update(entry.pod.addresses)

    def set_nodes(self, nodes: Iterable[Node], local: Mapping[str, str]) -> list[Problem]:
        """`nodes` sorted by name; `local` are addresses that this node's kernel has, whatever its Node object says."""
        of_nodes, problems = dict(local), []
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
            for address in changed & self._claims.keys():
                self._settle(address)
        return problems

    # --- being asked

    @property
    def pods(self) -> Iterable[Pod]:
        return (entry.pod for entry in self._entries.values())

    def of_space(self, namespace: str) -> list[Pod]:
        """All that have not finished, those of the host's network too, sorted."""
        known = self._by_space.get(namespace, {})
        return [known[key] for key in sorted(known)]

    def stamp(self, namespace: str) -> object:
        """Another one whenever a pod of this namespace has changed."""
        return self._stamps.setdefault(namespace, object())

    def labels(self, pod: Pod) -> LabelSet:
        return self._entries[pod.key].labels

    def addresses(self, pod: Pod) -> tuple[str, ...]:
        """Those of the pod's addresses that are the pod's alone."""
        return tuple(address for address in pod.addresses if self.owned.get(address) is pod)

    def families(self) -> frozenset[int]:
        """Of pods' addresses: 4, 6."""
        return frozenset((4, 6)[index] for index, count in enumerate(self._families) if count)

    def number(self, pod: Pod, address: str) -> IdentityId:
        return IdentityId(self._allocated()[self._entries[pod.key].identity_keys[address]])

    def identities(self) -> dict[int, Identity]:
        """By number: one for those of the same labels and named ports whose addresses lie in the same networks."""
        numbers = self._allocated()
        return {number: self._identities[text] for text, number in numbers.items()}

    def prefixes(self) -> Mapping[str, int]:
        """The single-address prefix of every owned address → number. A view: copy what must not change."""
        numbers = self._allocated()
        for address in self._moved:
            prefix = single_text(address)
            owner = self.owned.get(address)
            if owner is None:
                self._prefixes.pop(prefix, None)
            else:
                self._prefixes[prefix] = numbers[self._entries[owner.key].identity_keys[address]]
        self._moved.clear()
        return self._prefixes

    def problems(self) -> list[Problem]:
        """Claims that cannot be granted."""
        return [*self._against_nodes(), *self._among_pods()]

    # --- within

    def _against_nodes(self) -> Iterator[Problem]:
        for address in self._claims.keys() & self.nodes.keys():
            text = (
                f"{address} is the address of node {self.nodes[address]}: no policy applies to the pod at that address"
            )
            yield from (_problem(pod, text) for pod in self._claims[address].values())

    def _among_pods(self) -> Iterator[Problem]:
        for address, pods in self.contested.items():
            names = " and ".join(f"{pod.namespace}/{pod.name}" for pod in pods)
            text = f"{address} is claimed by {names}: traffic to and from it is refused until only one claims it"
            yield from (_problem(pod, text) for pod in pods)

    def _given(self, pod: Pod, inputs: IdentityInputs | None = None) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """What the terms say of this pod's namespace and account."""
        inputs = inputs or self._inputs
        account = inputs.accounts.get((pod.namespace, pod.service_account), _NO_LABELS)
        return inputs.spaces.get(pod.namespace, _NO_LABELS), account

    def _entry(self, pod: Pod) -> PodEntry:
        space, account = self._given(pod)
        labels = labels_of(
            pod, space, cluster=self._cluster, asked=self._inputs.asked, account=account, kept=self._kept
        )
        text = repr((labels.text, sorted(pod.named_ports)))
        identity_keys = {}
        for address in pod.addresses or ("",):
            networks = self._inside.holding(single(address)) if address and self._inputs.networks else frozenset()
            spelling = text + (repr(sorted(map(str, networks))) if networks else "")
            known = self._meant.get(spelling)
            if known is None:
                known = self._meant[spelling] = Identity(IdentityId(0), labels, pod.named_ports, networks)
                self._spelled[spelling] = 0
            labels = known.labels  # one value for all that are equal
            identity_keys[address] = spelling
        return PodEntry(pod, labels, identity_keys)

    def _enter(self, entry: PodEntry) -> None:
        self._entries[entry.pod.key] = entry
        for spelling in entry.identity_keys.values():
            self._spelled[spelling] += 1
            if self._spelled[spelling] == 1:
                self._numbers = None

    def _leave(self, entry: PodEntry) -> None:
        del self._entries[entry.pod.key]
        for spelling in entry.identity_keys.values():
            self._spelled[spelling] -= 1
            if not self._spelled[spelling]:
                self._numbers = None

    def _settle(self, address: str) -> None:
        """Decide anew whose an address is."""
        claims = self._claims.get(address, {})
        self._moved.add(address)
        self.owned.pop(address, None)
        self.contested.pop(address, None)
        if address in self.nodes:
            return
        if len(claims) == 1:
            (self.owned[address],) = claims.values()
        elif claims:
            self.contested[address] = tuple(claims[key] for key in sorted(claims))

    def _allocated(self) -> Mapping[str, int]:
        """Spelling → number: a pure function of the spellings alive. A number that moved moves those who have it."""
        if self._numbers is None:
            for spelling in [text for text, count in self._spelled.items() if not count]:
                del self._spelled[spelling], self._meant[spelling]
            before = self._last
            self._numbers = self._last = allocate(self._meant, first=FIRST_POD_IDENTITY, end=LOCAL_SCOPE)
            if any(self._numbers.get(text, number) != number for text, number in before.items()):
                self._moved.update(self._claims)
            self._identities = {text: self._identity(text, number) for text, number in self._numbers.items()}
        return self._numbers

    def _identity(self, spelling: str, number: int) -> Identity:
        known = self._identities.get(spelling)
        return known if known and known.id == number else replace(self._meant[spelling], id=IdentityId(number))


def _problem(owner: Pod | Node, message: str) -> Problem:
    field = "status.podIPs" if isinstance(owner, Pod) else "status.addresses"
    return Problem(owner.origin.file, owner.origin.line, field, f"{owner.key}: {message}")
