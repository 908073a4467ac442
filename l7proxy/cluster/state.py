"""Combines all resources into the state of the cluster. Pure: no socket, file or clock.

`apply` takes changes, `view` computes their result for one node. A view depends on the resources only, never on the
order of changes (law 4). An address that two pods claim (a conflicting IP) has no owner: every rule that denies any
peer matches it, and its traffic is refused in each direction in which a policy selects one of the two pods. An address
in a node's pod CIDR without a known pod is `unmanaged`, never `world`: an unknown pod must not count as external.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from ipaddress import ip_network
from typing import Final, TypeVar, cast

from l7proxy.cluster import audit, identities, pattern_limits, policy_status, service_pods
from l7proxy.cluster.frontends import frontends
from l7proxy.cluster.identity_labels import Asked, LabelFilter
from l7proxy.cluster.memo import Memory
from l7proxy.cluster.names import Names
from l7proxy.cluster.pod_index import IdentityInputs, PodIndex
from l7proxy.cluster.policy_status import PolicyStatus
from l7proxy.cluster.secrets import SecretResolver
from l7proxy.model import resources
from l7proxy.model.cache import IdentityMemo
from l7proxy.model.endpoint import Endpoint, Frontend
from l7proxy.model.identity import (
    CONTESTED,
    HOST,
    KUBE_APISERVER,
    REMOTE_NODE,
    RESERVED_IDENTITIES,
    UNKNOWN,
    UNMANAGED,
    Identity,
    allocate,
)
from l7proxy.model.ids import EndpointId, IdentityId
from l7proxy.model.labels import CLUSTER_KEY, K8S, NODE, RESERVED, Label, LabelSet, Operator, Requirement, Selector
from l7proxy.model.net import Network, Networks, family_of, single, single_text
from l7proxy.model.ref import RuleRef
from l7proxy.model.resources import Change, Delete, Pod, PolicyDocument, Problem, Resource, ResourceKey, Upsert
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.always import ALWAYS
from l7proxy.policy.compile import cidrs_of, keys_of
from l7proxy.policy.headers import SecretName
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.policy.references import References, resolve
from l7proxy.policy.rules import Reach, Rule, ServicePortPeer
from l7proxy.policy.tiers import GUARD

ENDPOINT_IDS: Final = 1 << 16
CONTESTED_KEY: Final = "l7proxy-contested-address"
F = TypeVar("F", bound=Resource)


@dataclass(frozen=True)
class NodeView:
    """All data about one node (or about all nodes, if `node` is None) that enforcement, status and flows need."""

    node: str | None
    endpoints: tuple[Endpoint, ...] = ()
    identities: Mapping[int, Identity] = field(default_factory=dict)
    by_prefix: Mapping[str, int] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    frontends: tuple[Frontend, ...] = ()
    node_addresses: tuple[str, ...] = ()
    policies: tuple[PolicyStatus, ...] = ()
    problems: tuple[Problem, ...] = ()
    secret_problems: tuple[Problem, ...] = ()
    """Secrets that rules refer to but cannot use. Not errors: the Secret may exist outside the given manifests."""
    names: Names = field(default_factory=Names)

    def selected(self, policy: PolicyStatus) -> int:
        """The number of endpoints that a policy selects."""
        subjects = {rule.subject for rule in policy.rules}
        return sum(size for labels, size in self._sizes.items() if any(subject.matches(labels) for subject in subjects))

    @cached_property
    def _sizes(self) -> Mapping[LabelSet, int]:
        """Label set → number of endpoints, so that endpoints with equal labels are matched once."""
        return Counter(endpoint.labels for endpoint in self.endpoints)


class ClusterState:
    """The current resources. Single-threaded; a view shares no mutable data with it.

    Costly results are cached by their inputs (`cluster.memo`, and PodIndex for pods), so that the cost of a view
    depends on what has changed since the last one.
    """

    def __init__(
        self,
        *,
        cluster: str = "default",
        secrets_namespace: str = "",
        audit_all: bool = False,
        options: Options = DEFAULT,
        kept: LabelFilter | None = None,
        enforce_always: bool = False,
        everywhere: tuple[Rule, ...] = (),
    ) -> None:
        """`secrets_namespace`: policies may use its Secrets besides those of their own namespace. `audit_all`: the node
        is in audit mode. `options`: how policies are read. `kept`: which pod labels count.
        `enforce_always`: all traffic of pods that no policy selects is refused. `everywhere`: further rules that apply
        independently of policies.
        """
        self.synced = False
        self._secrets_namespace = secrets_namespace
        self._audit = audit_all
        self._options = options
        self._everywhere = (*(ALWAYS if enforce_always else ()), *everywhere)
        self._cluster = cluster
        self._new_pod_index = partial(PodIndex, cluster=cluster, kept=kept or LabelFilter())
        self._kept = kept or LabelFilter()
        self._resources: dict[type, dict[ResourceKey, Resource]] = {}
        self._sorted: dict[type, tuple[Resource, ...]] = {}
        self._read = IdentityMemo(partial(policy_status.read, secrets_namespace=secrets_namespace, options=options))
        self._pod_index = self._new_pod_index()
        self._changed_pods: dict[ResourceKey, Pod | None] = {}
        self._memory = Memory()
        self._keys = IdentityMemo(_keys)

    def apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            match change:
                case Upsert(resource):
                    self._forget(resource.key, type(resource))
                    self._sorted.pop(type(resource), None)
                    self._resources.setdefault(type(resource), {})[resource.key] = resource
                    if isinstance(resource, Pod):
                        self._changed_pods[resource.key] = resource
                case Delete(key):
                    self._forget(key)
                case _:
                    self.synced = True

    def _forget(self, key: ResourceKey, but: type | None = None) -> None:
        """Remove the resource with this key, of any type but `but`: a key identifies one resource of all types."""
        for kind, known in self._resources.items():
            if kind is not but and known.pop(key, None) is not None:
                self._sorted.pop(kind, None)
                if kind is Pod:
                    self._changed_pods[key] = None

    @property
    def known(self) -> Iterable[Resource]:
        return (resource for known in self._resources.values() for resource in known.values())

    @property
    def audits_all(self) -> bool:
        """Whether the node is in audit mode."""
        return self._audit

    def copy(self) -> ClusterState:
        """A copy that later changes do not affect."""
        other = copy(self)
        other._resources = {kind: dict(known) for kind, known in self._resources.items()}
        other._sorted, other._memory = {}, Memory()
        other._read, other._keys = self._read.copy(), self._keys.copy()
        other._pod_index = self._new_pod_index()
        other._changed_pods = {pod.key: pod for pod in self._all(Pod)}
        return other

    def view(self, node: str | None, *, local_addresses: Iterable[str] = ()) -> NodeView:
        """`local_addresses`: addresses of this node's own interfaces; `host`, like those of its Node object."""
        nodes = self._all(resources.Node)
        policies, rules, secret_problems = self._policies_and_rules()
        asked, reaches = self._memory.of("asked", (rules,), lambda: (self._asked(rules), self._reaches(rules)))
        named = self._memory.of("named", (reaches,), lambda: identities.Named.among(reaches))
        pod_index = self._enrol(asked, named)
        node_problems = pod_index.set_nodes(nodes, dict.fromkeys(sorted(local_addresses), node or ""))
        who = self._cast(node, pod_index, nodes, reaches, named)
        endpoints = self._with_audit(_endpoints(node, pod_index))
        policies, rules = self._that_fit(policies, rules, endpoints, of_node=node is not None)
        services = self._frontends(pod_index)
        return NodeView(
            node=node,
            endpoints=endpoints,
            identities=who.identities,
            by_prefix=who.by_prefix,
            rules=(*rules, *_contested_rules(pod_index, rules)) if pod_index.contested else rules,
            frontends=services,
            node_addresses=tuple(sorted(address for address, name in pod_index.nodes.items() if name == node)),
            policies=policies,
            problems=(
                *self._unknown(node, nodes),
                *sorted((*node_problems, *pod_index.problems())),
                *self._audit_problems(),
            ),
            secret_problems=secret_problems,
            names=self._names(endpoints, pod_index, services, who.identities),
        )

    def _all(self, kind: type[F]) -> tuple[F, ...]:
        """All resources of this type, sorted by name; the same object until one of them changes."""
        if kind not in self._sorted:
            known = self._resources.get(kind, {})
            order = sorted(known, key=lambda key: (key.kind, key.namespace, key.name))
            self._sorted[kind] = tuple(known[key] for key in order)
        return cast("tuple[F, ...]", self._sorted[kind])

    def _enrol(self, asked: Asked, named: identities.Named) -> PodIndex:
        """The pod index, brought up to date."""
        spaces, accounts = self._all(resources.Namespace), self._all(resources.ServiceAccount)
        inputs = self._memory.of(
            "terms",
            (asked, named, spaces, accounts),
            lambda: IdentityInputs(
                asked,
                named.far,
                {space.name: space.labels for space in spaces},
                {(one.namespace, one.name): one.labels for one in accounts},
            ),
        )
        changed, self._changed_pods = self._changed_pods, {}
        for key, pod in changed.items():
            if pod is None:
                self._pod_index.delete(key)
        self._pod_index.set_inputs(inputs)
        for pod in changed.values():
            if pod is not None:
                self._pod_index.upsert(pod)
        return self._pod_index

    def _asked(self, rules: Iterable[Rule]) -> Asked:
        keys = frozenset().union(*map(self._keys, rules))
        self._keys.turn()
        return self._memory.equal("asked keys", Asked.among(keys, self._kept))

    def _reaches(self, rules: Iterable[Rule]) -> Mapping[Network, Reach]:
        """The same object while rules name the same prefixes: with thousands, results that depend on it are costly."""
        return self._memory.equal("reaches", cidrs_of(rules))

    def _with_audit(self, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        """The endpoints with audit mode set. A conflicting IP belongs to no namespace, so it stays refused."""
        spaces = {space.name for space in self._all(resources.Namespace) if audit.of_namespace(space)[0]}
        if not self._audit and not spaces:
            return endpoints
        return tuple(
            replace(one, audit=one.identity != UNKNOWN and (self._audit or one.namespace in spaces))
            for one in endpoints
        )

    def _audit_problems(self) -> list[Problem]:
        found = (audit.of_namespace(space)[1] for space in self._all(resources.Namespace))
        return [problem for problem in found if problem is not None]

    def _policies_and_rules(self) -> tuple[tuple[PolicyStatus, ...], tuple[Rule, ...], tuple[Problem, ...]]:
        """All policies, their rules with all references resolved, and problems of the Secrets that they refer to."""
        documents_, references, secrets = self._all(PolicyDocument), self.references, self._all(resources.Secret)
        return self._memory.of("rules", (documents_, references, secrets), partial(self._resolved, references))

    def _resolved(
        self, references: References
    ) -> tuple[tuple[PolicyStatus, ...], tuple[Rule, ...], tuple[Problem, ...]]:
        policies = tuple(policy_status.placed(policy, references) for policy in self._policies())
        self._read.turn()
        secret_resolver = self._secret_resolver()
        written = (rule for policy in policies for rule in _with_secrets(policy, secret_resolver))
        rules = self._memory.equal("resolved", (*resolve(written, references), *self._everywhere))
        return policies, rules, tuple(dict.fromkeys(secret_resolver.problems))

    def _that_fit(
        self,
        policies: tuple[PolicyStatus, ...],
        rules: tuple[Rule, ...],
        endpoints: tuple[Endpoint, ...],
        *,
        of_node: bool,
    ) -> tuple[tuple[PolicyStatus, ...], tuple[Rule, ...]]:
        """Both without the patterns that exceed the memory limits of workers. Subjects and peers are unchanged."""
        kinds = {endpoint.labels for endpoint in endpoints}
        refused = self._memory.equal("too large patterns", pattern_limits.too_large(policies, kinds, of_node=of_node))
        if not refused:
            return policies, rules
        return self._memory.of(
            "what fits",
            (policies, rules, refused),
            lambda: (pattern_limits.refusing(policies, refused), pattern_limits.without_http(rules, refused)),
        )

    def _policies(self) -> list[PolicyStatus]:
        """The policies; only new documents are parsed, since the result depends only on the document."""
        return [self._read(document) for document in self._all(PolicyDocument)]

    @property
    def references(self) -> References:
        """The current objects that policies may refer to."""
        parts = (
            self._all(resources.Service),
            self._slices(),
            self._all(resources.CidrGroup),
            self._all(resources.Namespace),
            self._all(resources.Node),
            self._all(resources.NetworkSet),
            self._all(resources.PolicyTier),
        )
        return self._memory.of("references", parts, lambda: References(*parts))

    def _slices(self) -> tuple[resources.EndpointSlice, ...]:
        """All EndpointSlices, plus slices made from pods for Services without any that policies name as a peer."""
        services, slices, documents_ = (
            self._all(resources.Service),
            self._all(resources.EndpointSlice),
            self._all(PolicyDocument),
        )
        bare = self._memory.of(
            "services without slices", (services, slices, documents_), lambda: self._bare(services, slices)
        )
        if not bare:
            return slices
        made = self._memory.equal("slices of pods", tuple(_made(bare, self._all(Pod))))
        return self._memory.of("slices", (slices, made), lambda: slices + made)

    def _bare(
        self, services: Iterable[resources.Service], slices: Iterable[resources.EndpointSlice]
    ) -> tuple[resources.Service, ...]:
        named = {
            (peer.namespace, peer.name)
            for policy in self._policies()
            for rule in policy.rules
            for peer in rule.peers or ()
            if isinstance(peer, ServicePortPeer)
        }
        named -= {(piece.namespace, piece.service) for piece in slices}
        return tuple(service for service in services if (service.namespace, service.name) in named)

    def _secret_resolver(self) -> SecretResolver:
        secrets = {SecretName(one.namespace, one.name): one for one in self._all(resources.Secret)}
        return SecretResolver(secrets, self._secrets_namespace)

    def _cast(
        self,
        node: str | None,
        pod_index: PodIndex,
        nodes: tuple[resources.Node, ...],
        reaches: Mapping[Network, Reach],
        named: identities.Named,
    ) -> IPCache:
        """All identities and the prefixes that map to them."""
        apiservers = self._memory.equal("apiservers", self._apiservers())
        of_nodes = self._memory.equal("addresses of nodes", dict(pod_index.nodes))
        places, of_places = self._memory.of(
            f"places of {node}",
            (of_nodes, nodes, apiservers, named),
            lambda: identities.of_places(self._places(node, of_nodes, nodes, apiservers, reaches), named),
        )
        inside = (of_nodes, pod_index.owned, pod_index.contested)
        outside = self._memory.equal(
            "outside", frozenset(one for one in apiservers if not any(one in known for known in inside))
        )
        dual = len(pod_index.families() | self._node_families(nodes)) == 2
        networks = self._memory.of(
            f"networks, dual {dual}", (reaches, outside), lambda: identities.of_networks(reaches, outside, dual=dual)
        )
        host_is_apiserver = any(of_nodes[address] == node for address in apiservers & of_nodes.keys())
        reserved = identities.reserved(dual=dual, host_is_apiserver=host_is_apiserver)
        if pod_index.contested:
            reserved[CONTESTED] = Identity(CONTESTED, LabelSet.reserved(CONTESTED_KEY))
        return IPCache(
            identities=identities.table(reserved, pod_index.identities(), of_places, networks=networks),
            by_prefix=self._prefixes(pod_index, places, networks, dual=dual),
        )

    def _node_families(self, nodes: tuple[resources.Node, ...]) -> frozenset[int]:
        """IP versions of addresses in Node objects; the kernel's link-local addresses do not make a dual stack."""
        return self._memory.of(
            "families of nodes",
            (nodes,),
            lambda: frozenset(family_of(address) for one in nodes for address in one.addresses),
        )

    def _prefixes(
        self,
        pod_index: PodIndex,
        places: Mapping[Network, IdentityId],
        networks: Mapping[Network, Identity],
        *,
        dual: bool,
    ) -> dict[str, int]:
        """Prefix → identity. Later updates below override earlier ones: cluster addresses are never `world`."""
        table: dict[str, int] = {
            str(cluster_state): number for cluster_state, number in identities.worlds(dual=dual).items()
        }
        table |= self._memory.of(
            "prefixes of networks", (networks,), lambda: {str(one): identity.id for one, identity in networks.items()}
        )
        of_places = self._memory.of(
            "prefixes of places", (places,), lambda: {str(place): number for place, number in places.items()}
        )
        table |= of_places
        table |= pod_index.prefixes()
        table |= {single_text(address): CONTESTED for address in pod_index.contested}
        table |= {prefix: of_places[prefix] for prefix in map(single_text, pod_index.nodes)}
        return table

    def _places(
        self,
        node: str | None,
        of_nodes: Mapping[str, str],
        nodes: Iterable[resources.Node],
        apiservers: frozenset[str],
        named: Iterable[Network],
    ) -> dict[Network, tuple[IdentityId, LabelSet]]:
        """Node addresses and pod CIDRs, each with its reserved identity and labels; node labels if options allow.

        A prefix that a policy names inside a pod CIDR stays `unmanaged`: no policy may treat it as external.
        """
        others = (one for one in nodes if self._options.node_selectors and one.name != node)
        own = {one.name: _node_labels(one, self._cluster) for one in others}
        mine = identities.host_labels(is_apiserver=any(of_nodes.get(address) == node for address in apiservers))
        of_pods = [ip_network(cidr) for one in nodes for cidr in one.pod_cidrs]
        held, servers = Networks(of_pods), {single(address) for address in apiservers}
        of_pods += [one for one in named if one not in servers and held.holding(one)]
        found = dict.fromkeys(of_pods, (UNMANAGED, RESERVED_IDENTITIES[UNMANAGED]))
        for address, name in of_nodes.items():
            number = HOST if name == node else KUBE_APISERVER if address in apiservers else REMOTE_NODE
            labels = RESERVED_IDENTITIES[number].labels | own.get(name, frozenset())
            found[single(address)] = number, mine if number == HOST else LabelSet(labels)
        return found

    def _apiservers(self) -> frozenset[str]:
        """Addresses of Cilium's `kube-apiserver` entity: the endpoints of the Service default/kubernetes."""
        slices = self._all(resources.EndpointSlice)
        found = (piece.addresses for piece in slices if (piece.namespace, piece.service) == ("default", "kubernetes"))
        return frozenset(address for addresses in found for address in addresses)

    def _frontends(self, pod_index: PodIndex) -> tuple[Frontend, ...]:
        """Cached per namespace, since pods affect only the Services of their namespace."""
        services, slices = self._all(resources.Service), self._all(resources.EndpointSlice)
        by_space = self._memory.of("services by namespace", (services, slices), lambda: _by_space(services, slices))
        found = tuple(
            self._memory.of(
                f"frontends of {space}",
                (some, pod_index.stamp(space)),
                partial(lambda space, some: frontends(some[0], some[1], pod_index.of_space(space)), space, some),
            )
            for space, some in by_space.items()
        )
        return self._memory.of("frontends", found, lambda: tuple(one for some in found for one in some))

    def _names(
        self,
        endpoints: tuple[Endpoint, ...],
        pod_index: PodIndex,
        services: tuple[Frontend, ...],
        known: Mapping[int, Identity],
    ) -> Names:
        of_services = self._memory.of(
            "names of services",
            (services,),
            lambda: {(one.address, one.port, one.protocol): (one.namespace, one.service) for one in services},
        )
        ids = {(endpoint.namespace, endpoint.name): endpoint.id for endpoint in endpoints}
        return Names(dict(pod_index.owned), ids, of_services, dict(pod_index.nodes), known)

    def _unknown(self, node: str | None, nodes: tuple[resources.Node, ...]) -> Iterator[Problem]:
        """A problem if no Node and no Pod has this node name: a mistyped name would silently enforce nothing."""
        if not node or any(one.name == node for one in nodes) or any(pod.node == node for pod in self._all(Pod)):
            return
        known = ", ".join(sorted({one.name for one in nodes})[:5]) or "none"
        what = f"node {node}: no Node object has this name and no Pod is on it: nothing is enforced"
        yield resources.Problem("", 0, "", f"{what} (known nodes: {known})")


def _keys(rule: Rule) -> frozenset[tuple[str, str]]:
    return keys_of((rule,))


@dataclass(frozen=True, slots=True)
class IPCache:
    """All identities by number, and prefix → identity number."""

    identities: Mapping[int, Identity]
    by_prefix: Mapping[str, int]


def _endpoints(node: str | None, pod_index: PodIndex) -> tuple[Endpoint, ...]:
    """Local pods that have an address, sorted, and one endpoint without a pod per conflicting IP."""
    local = {pod.key: pod for pod in pod_index.pods} if node is None else pod_index.by_node.get(node, {})
    here = [local[key] for key in sorted(local) if pod_index.addresses(local[key])]
    torn = [address for address, pods in sorted(pod_index.contested.items()) if any(pod.key in local for pod in pods)]
    names = [f"{pod.namespace}/{pod.name}" for pod in here] + torn
    ids = allocate(names, first=1, end=max(ENDPOINT_IDS, 2 * len(names)))
    found = [_endpoint(EndpointId(ids[f"{pod.namespace}/{pod.name}"]), pod, pod_index) for pod in here]
    found += [
        Endpoint(
            EndpointId(ids[address]),
            "",
            f"conflicting address {address}",
            UNKNOWN,
            _contested_labels(address),
            (address,),
        )
        for address in torn
    ]
    return tuple(found)


def _endpoint(number: EndpointId, pod: Pod, pod_index: PodIndex) -> Endpoint:
    addresses = pod_index.addresses(pod)
    return Endpoint(
        id=number,
        namespace=pod.namespace,
        name=pod.name,
        identity=pod_index.number(pod, addresses[0]),
        labels=pod_index.labels(pod),
        addresses=addresses,
        named_ports=pod.named_ports,
        workload=pod.workload,
    )


def _node_labels(node: resources.Node, cluster: str) -> frozenset[Label]:
    return frozenset((Label(K8S, CLUSTER_KEY, cluster), *(Label(NODE, *each) for each in node.labels.items())))


def _with_secrets(policy: PolicyStatus, secret_resolver: SecretResolver) -> Iterable[Rule]:
    return secret_resolver.resolve(policy.rules) if policy.needs_secrets else policy.rules


def _contested_labels(address: str) -> LabelSet:
    return LabelSet.of([Label(RESERVED, CONTESTED_KEY, address)])


def _contested_rules(pod_index: PodIndex, rules: Iterable[Rule]) -> list[Rule]:
    """Deny rules for each conflicting IP, in each direction in which a policy selects a pod that claims it."""
    found = []
    policies = [rule for rule in rules if rule.level != GUARD]
    for address, pods in sorted(pod_index.contested.items()):
        claims = [pod_index.labels(pod) for pod in pods]
        governed = {rule.direction for rule in policies if any(rule.subject.matches(one) for one in claims)}
        subject = Selector((Requirement(RESERVED, CONTESTED_KEY, Operator.IN, (address,)),))
        names = " and ".join(f"{pod.namespace}/{pod.name}" for pod in pods)
        reason = f"{address} is claimed by {names}"
        found += [
            Rule(RuleRef("Address", "", address), subject, direction, Action.DENY, refusal=reason)
            for direction in sorted(governed, key=Direction)
        ]
    return found


def _made(services: Iterable[resources.Service], pods: Iterable[Pod]) -> Iterator[resources.EndpointSlice]:
    return (piece for service in services for piece in service_pods.slices(service, pods))


def _by_space(
    services: Iterable[resources.Service], slices: Iterable[resources.EndpointSlice]
) -> dict[str, tuple[list[resources.Service], list[resources.EndpointSlice]]]:
    """Namespace → (Services, EndpointSlices), in namespace order."""
    found: dict[str, tuple[list[resources.Service], list[resources.EndpointSlice]]] = {}
    for service in services:
        found.setdefault(service.namespace, ([], []))[0].append(service)
    for piece in slices:
        if piece.namespace in found:
            found[piece.namespace][1].append(piece)
    return found
