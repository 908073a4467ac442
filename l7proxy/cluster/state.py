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
from typing import Final, TypeVar, cast

from l7proxy.cluster import audit
from l7proxy.cluster.derived import Derived, identity_inputs
from l7proxy.cluster.identities import CONTESTED_KEY
from l7proxy.cluster.identity_labels import LabelFilter
from l7proxy.cluster.names import Names
from l7proxy.cluster.pod_index import PodIndex
from l7proxy.cluster.policy_status import PolicyStatus
from l7proxy.model import resources
from l7proxy.model.endpoint import Assignment, Endpoint, Frontend
from l7proxy.model.identity import UNKNOWN, Identity, allocate
from l7proxy.model.ids import EndpointId
from l7proxy.model.labels import RESERVED, Label, LabelSet, Operator, Requirement, Selector
from l7proxy.model.net import Network
from l7proxy.model.ref import RuleRef
from l7proxy.model.resources import (
    KINDS,
    Change,
    Delete,
    Pod,
    PolicyDocument,
    Problem,
    Resource,
    ResourceKey,
    Synced,
    Upsert,
)
from l7proxy.model.verdict import Action, Direction
from l7proxy.model.versioned import VersionedMap
from l7proxy.policy.always import ALWAYS
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.policy.references import References
from l7proxy.policy.rules import Reach, Rule
from l7proxy.policy.tiers import GUARD

ENDPOINT_IDS: Final = 1 << 16
F = TypeVar("F", bound=Resource)


@dataclass(frozen=True, slots=True)
class HostNetworkPod:
    """A pod that uses its node's network: it has the node's identity, and no policy of pods is enforced on it."""

    namespace: str
    name: str
    labels: LabelSet

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class NodeView:
    """All data about one node (or about all nodes, if `node` is None) that enforcement, status and flows need."""

    node: str | None
    endpoints: tuple[Endpoint, ...] = ()
    identities: Mapping[int, Identity] = field(default_factory=dict)
    by_prefix: VersionedMap[str, int] = field(default_factory=VersionedMap)
    rules: tuple[Rule, ...] = ()
    frontends: tuple[Frontend, ...] = ()
    node_addresses: tuple[str, ...] = ()
    policies: tuple[PolicyStatus, ...] = ()
    judged: tuple[PolicyStatus, ...] = ()
    """The policies before the limits of this node: equal on every node. `policies` holds the same objects but for those
    that a limit refuses here."""
    nodes: tuple[str, ...] = ()
    """The names of all nodes of the cluster."""
    audited: frozenset[str] = frozenset()
    """The namespaces in audit mode."""
    problems: tuple[Problem, ...] = ()
    secret_problems: tuple[Problem, ...] = ()
    """Secrets that rules refer to but cannot use. Not errors: the Secret may exist outside the given manifests."""
    names: Names = field(default_factory=Names)
    host_network: tuple[HostNetworkPod, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    """Of this node."""
    only_named: frozenset[str] = frozenset()
    """Addresses in `pod_cidrs` of no pod and no node, with a prefix in `by_prefix` because a policy names them."""

    def selected(self, policy: PolicyStatus) -> int:
        """The number of endpoints that a policy selects."""
        subjects = {rule.subject for rule in policy.rules}
        return sum(size for labels, size in self._sizes.items() if any(subject.matches(labels) for subject in subjects))

    def selected_on_host(self, policy: PolicyStatus) -> tuple[HostNetworkPod, ...]:
        """The hostNetwork pods that a policy selects, and that it is not enforced on."""
        subjects = {rule.subject for rule in policy.rules}
        return tuple(pod for pod in self.host_network if any(subject.matches(pod.labels) for subject in subjects))

    @cached_property
    def _sizes(self) -> Mapping[LabelSet, int]:
        """Label set → number of endpoints, so that endpoints with equal labels are matched once."""
        return Counter(endpoint.labels for endpoint in self.endpoints)


class ClusterState:
    """The current resources. Single-threaded; a view shares no mutable data with it.

    Costly results are cached by their inputs (`cluster.derived`, and PodIndex for pods), so that the cost of a view
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
        is in audit mode. `options`: those with which the policies are parsed. `kept`: which pod labels count.
        `enforce_always`: all traffic of pods that no policy selects is refused. `everywhere`: further rules that apply
        independently of policies.
        """
        self._synced: set[type[Resource]] = set()
        self._audit = audit_all
        self._probes_only = options.probes_only
        kept = kept or LabelFilter()
        self._new_pod_index = partial(PodIndex, cluster=cluster, kept=kept)
        self._resources: dict[type, dict[ResourceKey, Resource]] = {}
        self._sorted: dict[type, tuple[Resource, ...]] = {}
        self._pod_index = self._new_pod_index()
        self._changed_pods: dict[ResourceKey, Pod | None] = {}
        self._early: dict[ResourceKey, Pod] = {}
        """Pods with addresses that their objects do not have yet."""
        self._new_derived = partial(
            Derived,
            cluster=cluster,
            secrets_namespace=secrets_namespace,
            options=options,
            kept=kept,
            everywhere=(*(ALWAYS if enforce_always else ()), *everywhere),
        )
        self._derived = self._new_derived()

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
                case Synced(kind):
                    self._synced.add(kind)

    def _forget(self, key: ResourceKey, but: type | None = None) -> None:
        """Remove the resource with this key, of any type but `but`: a key identifies one resource of all types."""
        for kind, known in self._resources.items():
            if kind is not but and known.pop(key, None) is not None:
                self._sorted.pop(kind, None)
                if kind is Pod:
                    self._changed_pods[key] = None

    @property
    def synced(self) -> bool:
        """Whether the source has yielded all resources of every kind."""
        return self._synced.issuperset(KINDS)

    @property
    def known(self) -> Iterable[Resource]:
        return (resource for known in self._resources.values() for resource in known.values())

    @property
    def audits_all(self) -> bool:
        """Whether the node is in audit mode."""
        return self._audit

    def audit_all(self, audits: bool) -> None:
        """Whether the node is in audit mode, from the next view on."""
        self._audit = audits

    def copy(self) -> ClusterState:
        """A copy that later changes do not affect."""
        other = copy(self)
        other._resources = {kind: dict(known) for kind, known in self._resources.items()}
        other._sorted, other._derived = {}, self._new_derived(before=self._derived)
        other._pod_index, other._synced = self._new_pod_index(), set(self._synced)
        other._changed_pods, other._early = {pod.key: pod for pod in self._all(Pod)}, {}
        return other

    def nodes(self) -> tuple[resources.Node, ...]:
        return self._all(resources.Node)

    def view(
        self, node: str | None, *, local_addresses: Iterable[str] = (), assignments: Iterable[Assignment] = ()
    ) -> NodeView:
        """`local_addresses`: addresses of this node's own interfaces; `host`, like those of its Node object.
        `assignments`: what the CNI has assigned to pods of this node."""
        derived, nodes = self._derived, self._all(resources.Node)
        policies, rules, secret_problems = self._policies_and_rules()
        reaches = derived.reaches(rules)
        pod_index = self._enrol(rules, reaches, node, tuple(assignments))
        node_problems = pod_index.set_nodes(nodes, dict.fromkeys(sorted(local_addresses), node or ""))
        known, by_prefix = self._cast(node, pod_index, nodes, reaches)
        here = next((one for one in nodes if one.name == node), resources.Node(node or ""))
        pod_cidrs = here.pod_cidrs
        owned = (pod_index.owned, pod_index.contested, pod_index.nodes)
        audited = self._audited()
        endpoints = self._with_audit(_endpoints(node, pod_index, probes_only=self._probes_only), audited)
        ids = {(endpoint.namespace, endpoint.name): endpoint.id for endpoint in endpoints}
        refused = derived.too_large(policies, derived.kinds(one.labels for one in endpoints), of_node=node is not None)
        judged = policies
        policies, rules = derived.fitting(judged, rules, refused)
        services = self._frontends(pod_index)
        return NodeView(
            node=node,
            endpoints=endpoints,
            identities=known,
            by_prefix=by_prefix,
            rules=(*rules, *_contested_rules(pod_index, rules)) if pod_index.contested else rules,
            frontends=services,
            node_addresses=derived.node_addresses(pod_index.nodes, node),
            policies=policies,
            judged=judged,
            nodes=derived.node_names(nodes),
            audited=audited,
            problems=(
                *self._unknown(node, nodes),
                *sorted((*node_problems, *pod_index.problems())),
                *self._audit_problems(),
            ),
            secret_problems=secret_problems,
            names=Names(
                pod_index.owners(),
                ids,
                derived.service_names(services),
                known,
                tuple(sorted(f"{key}={value}" for key, value in here.labels.items())),
            ),
            pod_cidrs=pod_cidrs,
            only_named=frozenset(
                one for one in derived.singly_named(pod_cidrs, reaches) if not any(one in known for known in owned)
            ),
            host_network=tuple(
                HostNetworkPod(pod.namespace, pod.name, labels) for pod, labels in pod_index.host_network(node)
            ),
        )

    def _all(self, kind: type[F]) -> tuple[F, ...]:
        """All resources of this type, sorted by name; the same object until one of them changes."""
        if kind not in self._sorted:
            known = self._resources.get(kind, {})
            order = sorted(known, key=lambda key: (key.kind, key.namespace, key.name))
            self._sorted[kind] = tuple(known[key] for key in order)
        return cast("tuple[F, ...]", self._sorted[kind])

    def _enrol(
        self,
        rules: tuple[Rule, ...],
        reaches: Mapping[Network, Reach],
        node: str | None,
        assignments: tuple[Assignment, ...],
    ) -> PodIndex:
        """The pod index, brought up to date."""
        derived = self._derived
        inputs = identity_inputs(
            derived.label_keys(rules),
            derived.named(reaches),
            self._all(resources.Namespace),
            self._all(resources.ServiceAccount),
        )
        changed, self._changed_pods = self._changed_pods, {}
        changed |= self._addressed(node, assignments, changed)
        for key, pod in changed.items():
            if pod is None:
                self._pod_index.delete(key)
        self._pod_index.set_inputs(inputs)
        for pod in changed.values():
            if pod is not None:
                self._pod_index.upsert(pod)
        self._pod_index.set_assigned(_assigned(assignments))
        return self._pod_index

    def _addressed(
        self, node: str | None, assignments: tuple[Assignment, ...], changed: Mapping[ResourceKey, Pod | None]
    ) -> dict[ResourceKey, Pod | None]:
        """The pods without an address in their object, with those that the CNI has assigned: the kubelet reports an
        address a second after the pod has it. Also the pods that had one in this way, and have it no more."""
        known = self._resources.get(Pod, {})
        before, self._early = self._early, _early(node, assignments, known)
        lost = {key: cast("Pod", known[key]) for key in before.keys() - self._early.keys() if key in known}
        new = {key: pod for key, pod in self._early.items() if pod != before.get(key) or key in changed}
        return {**lost, **new}

    def _with_audit(self, endpoints: tuple[Endpoint, ...], spaces: frozenset[str]) -> tuple[Endpoint, ...]:
        """The endpoints with audit mode set. A conflicting IP belongs to no namespace, so it stays refused."""
        if not self._audit and not spaces:
            return endpoints
        return tuple(
            replace(one, audit=one.identity != UNKNOWN and (self._audit or one.namespace in spaces))
            for one in endpoints
        )

    def _audited(self) -> frozenset[str]:
        return frozenset(space.name for space in self._all(resources.Namespace) if audit.of_namespace(space)[0])

    def _audit_problems(self) -> list[Problem]:
        found = (audit.of_namespace(space)[1] for space in self._all(resources.Namespace))
        return [problem for problem in found if problem is not None]

    def _policies_and_rules(self) -> tuple[tuple[PolicyStatus, ...], tuple[Rule, ...], tuple[Problem, ...]]:
        """All policies, their rules with all references resolved, and problems of the Secrets that they refer to."""
        derived, references = self._derived, self.references
        policies = derived.placed(self._policies(), references)
        written, problems = derived.written(policies, self._all(resources.Secret))
        return policies, derived.rules(written, references), problems

    def _policies(self) -> tuple[PolicyStatus, ...]:
        return self._derived.policies(self._all(PolicyDocument))

    @property
    def references(self) -> References:
        """The current objects that policies may refer to."""
        return self._derived.references(
            self._all(resources.Service),
            self._slices(),
            self._all(resources.CidrGroup),
            self._all(resources.Namespace),
            self._all(resources.Node),
            self._all(resources.NetworkSet),
            self._all(resources.PolicyTier),
        )

    def _slices(self) -> tuple[resources.EndpointSlice, ...]:
        """All EndpointSlices, plus slices made from pods for Services without any that policies name as a peer."""
        slices = self._all(resources.EndpointSlice)
        bare = self._derived.bare_services(self._policies(), self._all(resources.Service), slices)
        made = self._derived.pod_slices(bare, self._all(Pod)) if bare else ()
        return self._derived.slices(slices, made)

    def _cast(
        self,
        node: str | None,
        pod_index: PodIndex,
        nodes: tuple[resources.Node, ...],
        reaches: Mapping[Network, Reach],
    ) -> tuple[Mapping[int, Identity], VersionedMap[str, int]]:
        """All identities by number, and prefix → identity number."""
        derived, of_nodes = self._derived, pod_index.nodes
        apiservers = derived.apiservers(self._all(resources.EndpointSlice))
        places, of_places = derived.places(node, of_nodes, nodes, apiservers, reaches, derived.named(reaches))
        inside = (of_nodes, pod_index.owned, pod_index.contested)  # the pods' part changes in place
        outside = derived.outside(one for one in apiservers if not any(one in known for known in inside))
        dual = len(pod_index.families() | derived.families(nodes)) == 2
        networks, prefixes = derived.networks(reaches, outside, dual)
        host_is_apiserver = any(of_nodes[address] == node for address in apiservers & of_nodes.keys())
        reserved = derived.reserved(dual=dual, host_is_apiserver=host_is_apiserver, contested=bool(pod_index.contested))
        known = derived.identities(reserved, pod_index.identities(), of_places, networks=networks)
        return known, derived.by_prefix(pod_index.prefixes(), derived.below_pods(places, prefixes, dual))

    def _frontends(self, pod_index: PodIndex) -> tuple[Frontend, ...]:
        """Cached per namespace, since pods affect only the Services of their namespace that have no EndpointSlices."""
        derived = self._derived
        by_space = derived.services_by_namespace(self._all(resources.Service), self._all(resources.EndpointSlice))
        for gone in derived.of_namespace.keys() - by_space.keys():
            del derived.of_namespace[gone]
        found = (
            derived.of_namespace[space](some, pod_index, space, pod_index.stamp(space) if some.need_pods else None)
            for space, some in by_space.items()
        )
        return derived.frontends(*found)

    def _has_pods(self, node: str) -> bool:
        known = cast("Mapping[ResourceKey, Pod]", self._resources.get(Pod, {}))
        return any(pod.node == node for pod in known.values())

    def _unknown(self, node: str | None, nodes: tuple[resources.Node, ...]) -> Iterator[Problem]:
        """A problem if no Node and no Pod has this node name: a mistyped name would silently enforce nothing."""
        if not node or any(one.name == node for one in nodes) or self._has_pods(node):
            return
        known = ", ".join(sorted({one.name for one in nodes})[:5]) or "none"
        what = f"node {node}: no Node object has this name and no Pod is on it: nothing is enforced"
        yield resources.Problem("", 0, "", f"{what} (known nodes: {known})")


def _early(
    node: str | None, assignments: Iterable[Assignment], known: Mapping[ResourceKey, Resource]
) -> dict[ResourceKey, Pod]:
    """The pods of the node that have an address from the CNI, but none in their object. The UID must be the object's: a
    container of another tool may have any name, and so may a pod that was deleted and made anew."""
    found = {}
    for one in assignments:
        pod = known.get(ResourceKey("Pod", one.namespace, one.name))
        if not isinstance(pod, Pod) or pod.node != node or pod.finished or pod.host_network or pod.addresses:
            continue
        if pod.uid and pod.uid == one.uid:
            found[pod.key] = replace(pod, addresses=one.addresses)
    return found


def _assigned(assignments: Iterable[Assignment]) -> dict[str, ResourceKey]:
    """Address → the pod to which the CNI of this node has assigned it, also one without an object."""
    return {address: ResourceKey("Pod", one.namespace, one.name) for one in assignments for address in one.addresses}


def _endpoints(node: str | None, pod_index: PodIndex, *, probes_only: bool) -> tuple[Endpoint, ...]:
    """Local pods that have an address, sorted, and one endpoint without a pod per conflicting IP."""
    local = {pod.key: pod for pod in pod_index.pods} if node is None else pod_index.by_node.get(node, {})
    here = [local[key] for key in sorted(local) if pod_index.addresses(local[key])]
    conflicting = [
        address for address, pods in sorted(pod_index.contested.items()) if any(pod.key in local for pod in pods)
    ]
    names = [f"{pod.namespace}/{pod.name}" for pod in here] + conflicting
    ids = allocate(names, first=1, end=max(ENDPOINT_IDS, 2 * len(names)))
    found = [
        _endpoint(EndpointId(ids[f"{pod.namespace}/{pod.name}"]), pod, pod_index, probes_only=probes_only)
        for pod in here
    ]
    found += [
        Endpoint(
            EndpointId(ids[address]),
            "",
            f"conflicting address {address}",
            UNKNOWN,
            _contested_labels(address),
            (address,),
            node_access=() if probes_only else None,
        )
        for address in conflicting
    ]
    return tuple(found)


def _endpoint(number: EndpointId, pod: Pod, pod_index: PodIndex, *, probes_only: bool) -> Endpoint:
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
        node_access=pod.probes if probes_only else None,
    )


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
