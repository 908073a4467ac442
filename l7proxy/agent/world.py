"""The world: facts folded into one picture of the cluster. Pure: no socket, file or clock.

`apply` takes changes, `view` says what they amount to for one node. A view depends on the facts alone, never on the
order they came in (law 4). An address that two pods claim has no identity, and is refused wherever a policy governs
one of the two. An address inside a node's pod CIDR that no known pod has is `unmanaged`, never `world`: a pod we have
not heard of yet must not pass for the outside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Final, TypeVar

from l7proxy.agent import audit, documents, identities, ownership
from l7proxy.agent.documents import PolicyState
from l7proxy.agent.frontends import frontends
from l7proxy.agent.identities import Seat
from l7proxy.agent.identity_labels import Asked, LabelFilter, labels_of
from l7proxy.agent.names import NamedPod, Names
from l7proxy.agent.ownership import Ownership
from l7proxy.agent.secrets import Vault
from l7proxy.model import facts
from l7proxy.model.endpoint import Endpoint, Frontend
from l7proxy.model.facts import Change, Delete, Fact, Key, Pod, PolicyDocument, Problem, Upsert
from l7proxy.model.identity import (
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
from l7proxy.model.labels import NODE, RESERVED, Label, LabelSet, Operator, Requirement, Selector
from l7proxy.model.net import Network, single
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction
from l7proxy.policy.compile import cidrs_of, keys_of
from l7proxy.policy.headers import SecretName
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.policy.references import References, resolve
from l7proxy.policy.rules import Rule

ENDPOINT_IDS: Final = 1 << 16
CONTESTED: Final = "l7proxy-contested-address"
F = TypeVar("F", bound=Fact)


@dataclass(frozen=True)
class View:
    """Everything about one node (or, with `node` None, about all) that enforcement, status and flows need."""

    node: str | None
    endpoints: tuple[Endpoint, ...] = ()
    identities: Mapping[int, Identity] = field(default_factory=dict)
    by_prefix: Mapping[str, int] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    frontends: tuple[Frontend, ...] = ()
    node_addresses: tuple[str, ...] = ()
    policies: tuple[PolicyState, ...] = ()
    problems: tuple[Problem, ...] = ()
    secret_problems: tuple[Problem, ...] = ()
    """Secrets that rules ask for in vain. What is wrong may lie outside the manifests at hand, so it is no fault."""
    names: Names = field(default_factory=Names)


class World:
    """The facts as they stand. Single-threaded; a view shares nothing with it that changes."""

    def __init__(
        self,
        *,
        cluster: str = "default",
        secrets_namespace: str = "",
        audit_all: bool = False,
        options: Options = DEFAULT,
        kept: LabelFilter | None = None,
    ) -> None:
        """Policies may name secrets of `secrets_namespace` besides those of their own. `audit_all`: none
        of what policy refuses is. `options`: how policies are read. `kept`: which labels of pods count.
        """
        self.synced = False
        self._cluster = cluster
        self._secrets_namespace = secrets_namespace
        self._audit = audit_all
        self._options = options
        self._kept = kept or LabelFilter()
        self._facts: dict[Key, Fact] = {}
        self._read: dict[Key, tuple[PolicyDocument, PolicyState]] = {}

    def apply(self, changes: Iterable[Change]) -> None:
        for change in changes:
            match change:
                case Upsert(fact):
                    self._facts[fact.key] = fact
                case Delete(key):
                    self._facts.pop(key, None)
                    self._read.pop(key, None)
                case _:
                    self.synced = True

    @property
    def known(self) -> Iterable[Fact]:
        return self._facts.values()

    def copy(self) -> World:
        """One that later changes do not touch."""
        other = copy(self)
        other._facts, other._read = dict(self._facts), dict(self._read)
        return other

    def view(self, node: str | None, *, local_addresses: Iterable[str] = ()) -> View:
        """`local_addresses` are those that this node's own interfaces have: `host`, as the Node object's are."""
        nodes, pods = self._all(facts.Node), self._all(facts.Pod)
        local = dict.fromkeys(sorted(local_addresses), node or "")
        owners = ownership.settle(nodes, pods, local)
        references = self._references()
        policies = [documents.placed(policy, references) for policy in self._policies()]
        vault = self._vault()
        written = (rule for policy in policies for rule in _with_secrets(policy, vault))
        rules = resolve(written, references)
        cast = self._cast(node, owners, nodes, pods, rules)
        contested = _contested_rules(owners, cast.labels, rules)
        services = frontends(self._all(facts.Service), self._all(facts.EndpointSlice), pods)
        return View(
            node=node,
            endpoints=self._with_audit(cast.endpoints),
            identities=cast.identities,
            by_prefix=cast.by_prefix,
            rules=(*rules, *contested),
            frontends=services,
            node_addresses=tuple(sorted(address for address, name in owners.nodes.items() if name == node)),
            policies=_counted(policies, cast.endpoints),
            problems=(*_unknown(node, nodes, pods), *owners.problems, *self._audit_problems()),
            secret_problems=tuple(dict.fromkeys(vault.problems)),
            names=_names(cast, owners, services),
        )

    def _all(self, kind: type[F]) -> list[F]:
        return sorted((fact for fact in self._facts.values() if isinstance(fact, kind)), key=lambda fact: fact.key)

    def _with_audit(self, endpoints: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        """An address that two pods claim is nobody's, in no namespace: it stays refused."""
        spaces = {space.name for space in self._all(facts.Namespace) if audit.of_namespace(space)[0]}
        if not self._audit and not spaces:
            return endpoints
        return tuple(
            replace(one, audit=one.identity != UNKNOWN and (self._audit or one.namespace in spaces))
            for one in endpoints
        )

    def _audit_problems(self) -> list[Problem]:
        found = (audit.of_namespace(space)[1] for space in self._all(facts.Namespace))
        return [problem for problem in found if problem is not None]

    def _policies(self) -> list[PolicyState]:
        """Read anew only what is new: reading depends on nothing but the document."""
        found = []
        for document in self._all(PolicyDocument):
            known = self._read.get(document.key)
            if known is None or known[0] is not document:
                state = documents.read(document, secrets_namespace=self._secrets_namespace, options=self._options)
                known = self._read[document.key] = document, state
            found.append(known[1])
        return found

    def _references(self) -> References:
        return References(
            services=tuple(self._all(facts.Service)),
            slices=tuple(self._all(facts.EndpointSlice)),
            cidr_groups=tuple(self._all(facts.CidrGroup)),
            namespaces=tuple(self._all(facts.Namespace)),
            nodes=tuple(self._all(facts.Node)),
            network_sets=tuple(self._all(facts.NetworkSet)),
            tiers=tuple(self._all(facts.PolicyTier)),
        )

    def _vault(self) -> Vault:
        secrets = {SecretName(one.namespace, one.name): one for one in self._all(facts.Secret)}
        return Vault(secrets, self._secrets_namespace)

    def _cast(
        self, node: str | None, owners: Ownership, nodes: list[facts.Node], pods: list[Pod], rules: tuple[Rule, ...]
    ) -> Cast:
        """Who is who, and with which number."""
        managed = [pod for pod in pods if not pod.host_network and not pod.finished]
        labels = self._labels(managed, Asked.among(keys_of(rules), self._kept))
        reaches = cidrs_of(rules)
        named = identities.Named.among(reaches)
        seats, of_pods = identities.of_pods(((pod, labels[pod.key]) for pod in managed), named)
        dual = identities.is_dual(address for some in (nodes, managed) for one in some for address in one.addresses)
        apiservers = self._apiservers()
        places, of_places = identities.of_places(self._places(node, owners, nodes, apiservers), named)
        outside = apiservers - owners.nodes.keys() - owners.pods.keys() - owners.contested.keys()
        networks = identities.of_networks(reaches, outside, dual=dual)
        host_is_apiserver = any(owners.nodes[address] == node for address in apiservers & owners.nodes.keys())
        reserved = identities.reserved(dual=dual, host_is_apiserver=host_is_apiserver)
        if HOST in of_places:
            of_places[HOST] = replace(reserved[HOST], networks=of_places[HOST].networks)
        return Cast(
            endpoints=_endpoints(node, owners, managed, labels, seats),
            identities=identities.table(reserved, of_pods, of_places, networks=networks),
            by_prefix=_prefixes(owners, seats, places, networks, dual=dual),
            labels=labels,
        )

    def _places(
        self, node: str | None, owners: Ownership, nodes: list[facts.Node], apiservers: frozenset[str]
    ) -> dict[Network, tuple[IdentityId, LabelSet]]:
        """Nodes' addresses and pod CIDRs: the reserved identity of each, and its labels; nodes' own on demand."""
        own = {one.name: _node_labels(one) for one in nodes if self._options.node_selectors}
        found = {
            ip_network(cidr): (UNMANAGED, RESERVED_IDENTITIES[UNMANAGED]) for one in nodes for cidr in one.pod_cidrs
        }
        for address, name in owners.nodes.items():
            number = HOST if name == node else KUBE_APISERVER if address in apiservers else REMOTE_NODE
            labels = RESERVED_IDENTITIES[number].labels | own.get(name, frozenset())
            found[single(address)] = number, LabelSet(labels)
        return found

    def _labels(self, pods: list[Pod], asked: Asked) -> dict[Key, LabelSet]:
        spaces = {space.name: space.labels for space in self._all(facts.Namespace)}
        accounts = {(one.namespace, one.name): one.labels for one in self._all(facts.ServiceAccount)}
        return {
            pod.key: labels_of(
                pod,
                spaces.get(pod.namespace, {}),
                cluster=self._cluster,
                asked=asked,
                account=accounts.get((pod.namespace, pod.service_account), {}),
                kept=self._kept,
            )
            for pod in pods
        }

    def _apiservers(self) -> frozenset[str]:
        """Cilium's `kube-apiserver` entity: whoever is behind the Service default/kubernetes."""
        slices = self._all(facts.EndpointSlice)
        found = (piece.addresses for piece in slices if (piece.namespace, piece.service) == ("default", "kubernetes"))
        return frozenset(address for addresses in found for address in addresses)


@dataclass(frozen=True, slots=True)
class Cast:
    """What `_cast` finds, all by one allocation."""

    endpoints: tuple[Endpoint, ...]
    identities: Mapping[int, Identity]
    by_prefix: Mapping[str, int]
    labels: Mapping[Key, LabelSet]


def _endpoints(
    node: str | None,
    owners: Ownership,
    managed: list[Pod],
    labels: Mapping[Key, LabelSet],
    seats: Mapping[Seat, IdentityId],
) -> tuple[Endpoint, ...]:
    """Local pods that have an address, and one endpoint of nobody per contested address."""
    local = [pod for pod in managed if node is None or pod.node == node]
    here = [pod for pod in local if owners.addresses(pod)]
    keys = {pod.key for pod in local}
    torn = [address for address, pods in owners.contested.items() if any(pod.key in keys for pod in pods)]
    names = [f"{pod.namespace}/{pod.name}" for pod in here] + torn
    ids = allocate(names, first=1, end=max(ENDPOINT_IDS, 2 * len(names)))
    found = [
        Endpoint(
            id=EndpointId(ids[f"{pod.namespace}/{pod.name}"]),
            namespace=pod.namespace,
            name=pod.name,
            identity=seats[pod.key, owners.addresses(pod)[0]],
            labels=labels[pod.key],
            addresses=owners.addresses(pod),
            named_ports=pod.named_ports,
            workload=pod.workload,
        )
        for pod in here
    ]
    found += [
        Endpoint(EndpointId(ids[address]), "", f"contested {address}", UNKNOWN, _contested_labels(address), (address,))
        for address in torn
    ]
    return tuple(found)


def _node_labels(node: facts.Node) -> frozenset[Label]:
    return frozenset(Label(NODE, key, value) for key, value in node.labels.items())


def _with_secrets(policy: PolicyState, vault: Vault) -> Iterable[Rule]:
    return vault.resolve(policy.rules) if policy.needs_secrets else policy.rules


def _unknown(node: str | None, nodes: list[facts.Node], pods: list[Pod]) -> Iterator[Problem]:
    """A node that nobody speaks of has no pods, so a mistyped name would enforce nothing without a word."""
    if node and all(one.name != node for one in nodes) and all(pod.node != node for pod in pods):
        known = ", ".join(sorted({one.name for one in nodes})[:5]) or "none"
        yield facts.Problem(
            "", 0, "", f"no Node and no Pod is of node {node}: nothing is enforced here (nodes: {known})"
        )


def _contested_labels(address: str) -> LabelSet:
    return LabelSet.of([Label(RESERVED, CONTESTED, address)])


def _contested_rules(owners: Ownership, labels: Mapping[Key, LabelSet], rules: Iterable[Rule]) -> list[Rule]:
    """Deny rules for an address of nobody, in each direction in which a policy governs someone who claims it."""
    found = []
    rules = tuple(rules)
    for address, pods in owners.contested.items():
        claims = [labels[pod.key] for pod in pods]
        governed = {rule.direction for rule in rules if any(rule.subject.matches(one) for one in claims)}
        subject = Selector((Requirement(RESERVED, CONTESTED, Operator.IN, (address,)),))
        names = " and ".join(f"{pod.namespace}/{pod.name}" for pod in pods)
        reason = f"{address} is claimed by {names}"
        found += [
            Rule(RuleRef("Address", "", address), subject, direction, Action.DENY, refusal=reason)
            for direction in sorted(governed, key=Direction)
        ]
    return found


def _prefixes(
    owners: Ownership,
    seats: Mapping[Seat, IdentityId],
    places: Mapping[Network, IdentityId],
    networks: Mapping[Network, Identity],
    *,
    dual: bool,
) -> dict[str, int]:
    """Prefix → identity. Of equal prefixes the later line below has it: what is ours is never the world's."""
    table: dict[str, int] = {str(world): number for world, number in identities.worlds(dual=dual).items()}
    table |= {str(network): identity.id for network, identity in networks.items()}
    table |= {str(place): number for place, number in places.items()}
    table |= {str(single(address)): seats[pod.key, address] for address, pod in owners.pods.items()}
    table |= {str(single(address)): UNKNOWN for address in owners.contested}
    table |= {str(single(address)): places[single(address)] for address in owners.nodes}
    return dict(sorted(table.items()))


def _counted(policies: list[PolicyState], endpoints: tuple[Endpoint, ...]) -> tuple[PolicyState, ...]:
    """How many endpoints each policy selects; those that share an identity are matched once."""
    sizes: dict[LabelSet, int] = {}
    for endpoint in endpoints:
        sizes[endpoint.labels] = sizes.get(endpoint.labels, 0) + 1
    found = []
    for policy in policies:
        subjects = {rule.subject for rule in policy.rules}
        count = sum(size for labels, size in sizes.items() if any(subject.matches(labels) for subject in subjects))
        found.append(replace(policy, endpoints=count))
    return tuple(found)


def _names(cast: Cast, owners: Ownership, services: tuple[Frontend, ...]) -> Names:
    ids = {(endpoint.namespace, endpoint.name): endpoint.id for endpoint in cast.endpoints}
    pods = {
        address: NamedPod(ids.get((pod.namespace, pod.name), EndpointId(0)), pod.namespace, pod.name, pod.workload)
        for address, pod in owners.pods.items()
    }
    of_services = {(one.address, one.port, one.protocol): (one.namespace, one.service) for one in services}
    return Names(pods, of_services, dict(owners.nodes), cast.identities)
