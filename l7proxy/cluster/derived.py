"""What follows from a cluster's resources: a graph of pure functions. Each is computed again only if an input changed.

    PolicyDocument ► policies ─┬──────────► bare_services ◄ Service, EndpointSlice
                               │                  ▼
                               │             pod_slices ◄ Pod
                               │                  ▼
                               │               slices ◄ EndpointSlice
                               │                  ▼
                               │             references ◄ Service, CidrGroup, Namespace, Node, NetworkSet, PolicyTier
                               ▼                  │
                             placed ◄─────────────┤
                               ▼                  │
                   Secret ► written               │
                               ▼                  │
                             rules ◄──────────────┘
                 ┌─────────────┴──────┐
                 ▼                    ▼
             label_keys            reaches ───────────► networks ◄ outside ◄ apiservers ◄ EndpointSlice
                 │                    ▼
                 │                  named ────────────► places ◄ Node, apiservers
                 ▼                    │
              PodIndex ◄──────────────┘
                 ▲
    Pod, Namespace, ServiceAccount

    Node, reaches ► singly_named
    places, networks ► below_pods; PodIndex, below_pods ► by_prefix
    PodIndex, places, networks, reserved ► identities
    Node ► node_names, node_addresses, families; endpoints ► kinds
    placed, rules, labels of endpoints ► too_large ► fitting: policies, rules
    Service, EndpointSlice ► services_by_namespace ► of_namespace (with the pods there) ► frontends ► service_names

`ClusterState.view` walks it. The pods' own part is incremental: `PodIndex`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from itertools import chain
from operator import add, is_
from typing import Generic, ParamSpec, TypeVar

from l7proxy.cluster import identities, pattern_limits, policy_status, service_pods
from l7proxy.cluster.frontends import frontends
from l7proxy.cluster.identity_labels import Asked, LabelFilter
from l7proxy.cluster.pod_index import IdentityInputs, PodIndex
from l7proxy.cluster.policy_status import PolicyStatus
from l7proxy.cluster.secrets import SecretResolver
from l7proxy.model import resources
from l7proxy.model.cache import IdentityMemo
from l7proxy.model.endpoint import Frontend
from l7proxy.model.identity import (
    HOST,
    KUBE_APISERVER,
    REMOTE_NODE,
    RESERVED_IDENTITIES,
    UNMANAGED,
    Identity,
)
from l7proxy.model.labels import CLUSTER_KEY, K8S, NODE, Label, LabelSet
from l7proxy.model.net import Network, Networks, family_of, single
from l7proxy.model.resources import EndpointSlice, Pod, PolicyDocument, Problem, Secret, Service
from l7proxy.model.versioned import VersionedMap, changes
from l7proxy.policy.compile import cidrs_of, keys_of
from l7proxy.policy.headers import SecretName
from l7proxy.policy.lang.options import Options
from l7proxy.policy.references import References, resolve
from l7proxy.policy.rules import Reach, Rule, ServicePortPeer

P = ParamSpec("P")
T = TypeVar("T")
Slices = tuple[EndpointSlice, ...]


@dataclass(frozen=True, slots=True)
class Services:
    """Those of one namespace. `need_pods`: one has no EndpointSlice, so that its backends are the pods it selects."""

    services: tuple[Service, ...]
    slices: Slices
    need_pods: bool


class Node(Generic[P, T]):
    """A derived value, with the inputs that it was made of.

    It is computed again if an input is another object. A result that is equal to the one before is the same object, so
    that what depends on it is not computed again.
    """

    def __init__(self, make: Callable[P, T]) -> None:
        self._make = make
        self._inputs: tuple[object, ...] | None = None
        self._value: T

    def __call__(self, *inputs: P.args, **named: P.kwargs) -> T:
        given, known = (*inputs, *named.values()), self._inputs
        if known is None or len(known) != len(given) or not all(map(is_, known, given)):
            made = self._make(*inputs, **named)
            if known is None or made != self._value:
                self._value = made
            self._inputs = given
        return self._value


class Derived:
    """The nodes of one ClusterState, whose parameters it has. `before`: the status of documents known there is kept."""

    def __init__(
        self,
        *,
        cluster: str,
        secrets_namespace: str,
        options: Options,
        kept: LabelFilter,
        everywhere: tuple[Rule, ...],
        before: Derived | None = None,
    ) -> None:
        status_of = partial(policy_status.status_of, secrets_namespace=secrets_namespace)
        self._status_of: IdentityMemo[PolicyDocument, PolicyStatus]
        self._status_of = IdentityMemo(status_of) if before is None else before._status_of.copy()
        self.policies = Node(partial(_policies, self._status_of))
        self.bare_services = Node(_bare_services)
        self.pod_slices = Node(_pod_slices)
        self.slices: Node[[Slices, Slices], Slices] = Node(add)
        self.references = Node(References)
        self.placed = Node(_placed)
        self.written = Node(partial(_written, secrets_namespace))
        self.rules = Node(partial(_rules, everywhere))
        self.label_keys = Node(partial(_label_keys, IdentityMemo(lambda rule: keys_of((rule,))), kept))
        self.reaches = Node(cidrs_of)
        self.named = Node(identities.Named.among)
        self.too_large = Node(pattern_limits.too_large)
        self.fitting = Node(_fitting)
        self.apiservers = Node(_apiservers)
        self.outside: Node[[Iterable[str]], frozenset[str]] = Node(frozenset)
        self.networks = Node(_networks)
        self.places = Node(partial(_places, cluster, options))
        self.singly_named = Node(_singly_named)
        self.services_by_namespace = Node(ServicesByNamespace())
        self.of_namespace: defaultdict[str, Node[[Services, PodIndex, str, object], tuple[Frontend, ...]]]
        self.of_namespace = defaultdict(partial(Node, _of_namespace))
        self.frontends = Node(_frontends)
        self.service_names = Node(_service_names)
        self.below_pods = Node(_below_pods)
        self.reserved = Node(identities.reserved)
        self.identities = Node(identities.table)
        self.kinds: Node[[Iterable[LabelSet]], frozenset[LabelSet]] = Node(frozenset)
        self.families = Node(node_families)
        self.node_names = Node(_node_names)
        self.node_addresses = Node(_node_addresses)
        self.by_prefix = PrefixIdentities()


# --- policies


def _policies(
    status_of: IdentityMemo[PolicyDocument, PolicyStatus], documents: tuple[PolicyDocument, ...]
) -> tuple[PolicyStatus, ...]:
    """The status of each document; only new ones are looked at, since it depends only on the document."""
    found = tuple(map(status_of, documents))
    status_of.turn()
    return found


def _bare_services(
    policies: Iterable[PolicyStatus], services: Iterable[Service], slices: Iterable[EndpointSlice]
) -> tuple[Service, ...]:
    """The Services without EndpointSlices that policies name as a peer."""
    named = {
        (peer.namespace, peer.name)
        for policy in policies
        for rule in policy.rules
        for peer in rule.peers or ()
        if isinstance(peer, ServicePortPeer)
    }
    if not named:
        return ()
    named -= {(piece.namespace, piece.service) for piece in slices}
    return tuple(service for service in services if (service.namespace, service.name) in named)


def _pod_slices(services: Iterable[Service], pods: Iterable[Pod]) -> tuple[EndpointSlice, ...]:
    return tuple(piece for service in services for piece in service_pods.slices(service, pods))


def _placed(policies: Iterable[PolicyStatus], references: References) -> tuple[PolicyStatus, ...]:
    return tuple(policy_status.placed(policy, references) for policy in policies)


def _written(
    secrets_namespace: str, policies: Iterable[PolicyStatus], secrets: Iterable[Secret]
) -> tuple[tuple[Rule, ...], tuple[Problem, ...]]:
    """The rules of all policies with the values of Secrets, and the problems of the Secrets that they refer to."""
    resolver = SecretResolver({SecretName(one.namespace, one.name): one for one in secrets}, secrets_namespace)
    found: list[Rule] = []
    for policy in policies:
        found += resolver.resolve(policy.rules) if policy.needs_secrets else policy.rules
    return tuple(found), tuple(dict.fromkeys(resolver.problems))


def _rules(everywhere: tuple[Rule, ...], written: Iterable[Rule], references: References) -> tuple[Rule, ...]:
    return (*resolve(written, references), *everywhere)


def _fitting(
    policies: tuple[PolicyStatus, ...], rules: tuple[Rule, ...], refused: Mapping[pattern_limits.Name, str]
) -> tuple[tuple[PolicyStatus, ...], tuple[Rule, ...]]:
    """Both without the patterns that exceed the memory limits of workers. Subjects and peers are unchanged."""
    if not refused:
        return policies, rules
    return pattern_limits.refusing(policies, refused), pattern_limits.without_http(rules, refused)


# --- identities


def _label_keys(
    keys: IdentityMemo[Rule, frozenset[tuple[str, str]]], kept: LabelFilter, rules: Iterable[Rule]
) -> Asked:
    """Further label keys that policies select on."""
    found: frozenset[tuple[str, str]] = frozenset().union(*map(keys, rules))
    keys.turn()
    return Asked.among(found, kept)


def identity_inputs(
    asked: Asked,
    named: identities.Named,
    spaces: Iterable[resources.Namespace],
    accounts: Iterable[resources.ServiceAccount],
) -> IdentityInputs:
    """What PodIndex needs besides the pods. Not a node: PodIndex compares it with the one before."""
    of_accounts = {(one.namespace, one.name): one.labels for one in accounts}
    return IdentityInputs(asked, named.far, {space.name: space.labels for space in spaces}, of_accounts)


def _apiservers(slices: Iterable[EndpointSlice]) -> frozenset[str]:
    """Addresses of Cilium's `kube-apiserver` entity: the endpoints of the Service default/kubernetes."""
    found = (piece.addresses for piece in slices if (piece.namespace, piece.service) == ("default", "kubernetes"))
    return frozenset(address for addresses in found for address in addresses)


def _networks(
    reaches: Mapping[Network, Reach], outside: frozenset[str], dual: bool
) -> tuple[Mapping[Network, Identity], Mapping[str, int]]:
    """Network → local identity, and the same as prefixes."""
    found = identities.of_networks(reaches, outside, dual=dual)
    return found, {str(network): identity.id for network, identity in found.items()}


def _places(
    cluster: str,
    options: Options,
    node: str | None,
    of_nodes: Mapping[str, str],
    nodes: Iterable[resources.Node],
    apiservers: frozenset[str],
    reaches: Iterable[Network],
    named: identities.Named,
) -> tuple[Mapping[str, int], Mapping[int, Identity]]:
    """The prefixes of node addresses and pod CIDRs, as `node` sees them, and their identities.

    Each has its reserved identity and labels; node labels if options allow. A prefix that a policy names inside a pod
    CIDR stays `unmanaged`: no policy may treat it as external.
    """
    others = (one for one in nodes if options.node_selectors and one.name != node)
    own = {one.name: _node_labels(one, cluster) for one in others}
    mine = identities.host_labels(is_apiserver=any(of_nodes.get(address) == node for address in apiservers))
    of_pods = [ip_network(cidr) for one in nodes for cidr in one.pod_cidrs]
    held, servers = Networks(of_pods), {single(address) for address in apiservers}
    of_pods += [one for one in reaches if one not in servers and held.holding(one)]
    found = dict.fromkeys(of_pods, (UNMANAGED, RESERVED_IDENTITIES[UNMANAGED]))
    for address, name in of_nodes.items():
        number = HOST if name == node else KUBE_APISERVER if address in apiservers else REMOTE_NODE
        labels = {*RESERVED_IDENTITIES[number].labels, *own.get(name, ())}
        found[single(address)] = number, mine if number == HOST else LabelSet.of(labels)
    numbers, their = identities.of_places(found, named)
    return {str(place): number for place, number in numbers.items()}, their


def _singly_named(pod_cidrs: Iterable[str], reaches: Iterable[Network]) -> frozenset[str]:
    """The addresses in these pod CIDRs that a policy names by a prefix of their own."""
    held = Networks(ip_network(cidr) for cidr in pod_cidrs)
    singles = (one for one in reaches if one.prefixlen == one.max_prefixlen)
    return frozenset(str(one.network_address) for one in singles if held.holding(one))


def _below_pods(places: Mapping[str, int], networks: Mapping[str, int], dual: bool) -> Mapping[str, int]:
    """Prefix → identity of all but pods. The later part overrides the earlier one: places are never `world`."""
    table: dict[str, int] = {str(network): number for network, number in identities.worlds(dual=dual).items()}
    return {**table, **networks, **places}


class PrefixIdentities:
    """Prefix → identity. Addresses of pods override all other prefixes; those of nodes are no pod's (`PodIndex`)."""

    def __init__(self) -> None:
        self._pods: Mapping[str, int] = {}
        self._below: Mapping[str, int] = {}
        self._all: VersionedMap[str, int] = VersionedMap()

    def __call__(self, pods: VersionedMap[str, int], below: Mapping[str, int]) -> VersionedMap[str, int]:
        changed = {*changes(self._pods, pods), *changes(self._below, below)}
        self._pods, self._below = pods, below
        self._all = self._all.updated(changed, lambda prefix: pods.get(prefix, below.get(prefix)))
        return self._all


def _node_labels(node: resources.Node, cluster: str) -> frozenset[Label]:
    return frozenset((Label(K8S, CLUSTER_KEY, cluster), *(Label(NODE, *each) for each in node.labels.items())))


def _node_names(nodes: Iterable[resources.Node]) -> tuple[str, ...]:
    return tuple(one.name for one in nodes)


def _node_addresses(of_nodes: Mapping[str, str], node: str | None) -> tuple[str, ...]:
    return tuple(sorted(address for address, name in of_nodes.items() if name == node))


def node_families(nodes: Iterable[resources.Node]) -> frozenset[int]:
    """IP versions of addresses in Node objects; the kernel's link-local addresses do not make a dual stack."""
    return frozenset(family_of(address) for one in nodes for address in one.addresses)


# --- Services


class ServicesByNamespace:
    """Namespace → Services, in namespace order. Those of a namespace in which nothing changed are the same object."""

    def __init__(self) -> None:
        self._last: dict[str, Services] = {}

    def __call__(self, services: Iterable[Service], slices: Iterable[EndpointSlice]) -> dict[str, Services]:
        found: dict[str, tuple[list[Service], list[EndpointSlice]]] = {}
        for service in services:
            found.setdefault(service.namespace, ([], []))[0].append(service)
        for piece in slices:
            if piece.namespace in found:
                found[piece.namespace][1].append(piece)
        before = self._last
        made = {space: _services(*some) for space, some in found.items()}
        self._last = {space: before[space] if before.get(space) == some else some for space, some in made.items()}
        return self._last


def _services(services: list[Service], slices: list[EndpointSlice]) -> Services:
    with_slices = {piece.service for piece in slices}
    return Services(tuple(services), tuple(slices), any(one.name not in with_slices for one in services))


def _of_namespace(services: Services, pod_index: PodIndex, namespace: str, _stamp: object) -> tuple[Frontend, ...]:
    """The frontends of a namespace. `_stamp` is another object when a pod there has changed (`PodIndex.stamp`), and its
    Services need pods."""
    return frontends(services.services, services.slices, pod_index.of_space(namespace) if services.need_pods else ())


def _frontends(*found: tuple[Frontend, ...]) -> tuple[Frontend, ...]:
    return tuple(chain.from_iterable(found))


def _service_names(services: Iterable[Frontend]) -> Mapping[tuple[str, int, int], tuple[str, str]]:
    return {(one.address, one.port, one.protocol): (one.namespace, one.service) for one in services}
