"""Parses Kubernetes objects into resources: one small reader per kind, and the table of kinds.

Reads only the fields that enforcement needs and checks their types; other fields are ignored. `policy.lang` parses
policies.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from l7proxy.errors import PolicyError, SourceError
from l7proxy.model.endpoint import Workload
from l7proxy.model.identity import NamedPort
from l7proxy.model.resources import (
    CidrGroup,
    EndpointSlice,
    Namespace,
    NetworkSet,
    Node,
    Pod,
    PolicyDocument,
    PolicyTier,
    Resource,
    ResourceKey,
    Secret,
    Service,
    ServiceAccount,
    ServicePort,
    SlicePort,
    SourceLocation,
    located,
)
from l7proxy.model.secret import Sealed
from l7proxy.policy import lang
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.sources.fields import Fields
from l7proxy.sources.probes import probes

NOWHERE: Final = SourceLocation()
CIDR_GROUP: Final = "CiliumCIDRGroup"
SERVICE_NAME: Final = "kubernetes.io/service-name"
CLUSTER_SCOPED_POLICIES: Final = frozenset(
    (
        "CiliumClusterwideNetworkPolicy",
        "GlobalNetworkPolicy",
        "StagedGlobalNetworkPolicy",
        "AdminNetworkPolicy",
        "BaselineAdminNetworkPolicy",
        "ClusterNetworkPolicy",
    )
)
_CRON_RUN = re.compile(r"-\d{8,}$")


def node(fields: Fields, origin: SourceLocation) -> Node:
    spec, status = fields.inside("spec"), fields.inside("status")
    cidrs = spec.networks("podCIDRs")
    if not cidrs and spec.text("podCIDR", ""):
        cidrs = (spec.network("podCIDR"),)
    addresses = [
        item.address("address")
        for item in status.each("addresses")
        if item.text("type") in ("InternalIP", "ExternalIP")
    ]
    metadata = fields.inside("metadata")
    return Node(_name(fields), tuple(dict.fromkeys(addresses)), cidrs, metadata.labels("labels"), origin)


def namespace(fields: Fields, origin: SourceLocation) -> Namespace:
    metadata = fields.inside("metadata")
    annotations = metadata.labels("annotations")
    ours = {key: value for key, value in annotations.items() if key.startswith("l7proxy.io/")}
    return Namespace(_name(fields), metadata.labels("labels"), ours, origin)


def pod(fields: Fields, origin: SourceLocation) -> Pod:
    """Reads of `metadata`: namespace, name, uid, deletionTimestamp, labels, ownerReferences; of `spec`: nodeName,
    hostNetwork, serviceAccountName; of containers and initContainers: restartPolicy, ports; of `status`: phase, podIP,
    podIPs. With `Options.probes_only` also of containers and initContainers: livenessProbe, readinessProbe,
    startupProbe, lifecycle, in them httpGet, tcpSocket, grpc.
    """
    metadata, spec, status = fields.inside("metadata"), fields.inside("spec"), fields.inside("status")
    addresses = [item.address("ip") for item in status.each("podIPs")]
    if status.text("podIP", ""):
        addresses.insert(0, status.address("podIP"))
    labels = metadata.labels("labels")
    on_host, containers = spec.flag("hostNetwork"), _containers(spec)
    return Pod(
        namespace=_namespace(fields),
        name=_name(fields),
        node=spec.text("nodeName", ""),
        addresses=tuple(dict.fromkeys(addresses)),
        labels=labels,
        named_ports=_named_ports(containers),
        service_account=spec.text("serviceAccountName", "default"),
        host_network=on_host,
        workload=_workload(metadata, labels),
        phase=status.text("phase", ""),
        terminating=metadata.value.get("deletionTimestamp") is not None,
        uid="" if addresses or on_host else metadata.text("uid", ""),
        origin=origin,
    )


def _probed(known: Pod, fields: Fields) -> Pod:
    """With its probes. Read only if they count: they would double the cost of reading a pod."""
    return known if known.host_network else replace(known, probes=probes(_containers(fields.inside("spec"))))


def _containers(spec: Fields) -> list[Fields]:
    """Those that run together: not init containers, except sidecars."""
    sidecars = [item for item in spec.each("initContainers") if item.text("restartPolicy", "") == "Always"]
    return [*spec.each("containers"), *sidecars]


def _named_ports(containers: list[Fields]) -> frozenset[NamedPort]:
    """If several containers use the same port name and protocol, the first one counts, as in Kubernetes."""
    found: dict[tuple[str, int], int] = {}
    for container in containers:
        for port in container.each("ports"):
            number, protocol, name = port.port("containerPort"), port.protocol(), port.text("name", "")
            if name:
                found.setdefault((name, protocol), number)
    return frozenset((name, protocol, number) for (name, protocol), number in found.items())


def _workload(metadata: Fields, labels: Mapping[str, str]) -> Workload | None:
    """The controlling owner; for a ReplicaSet its Deployment, for a Job its CronJob."""
    for owner in metadata.each("ownerReferences"):
        if not owner.flag("controller"):
            continue
        kind, name = owner.text("kind"), owner.text("name")
        hashed = f"-{labels.get('pod-template-hash', '')}"
        if kind == "ReplicaSet" and len(hashed) > 1 and name.endswith(hashed):
            return Workload(name.removesuffix(hashed), "Deployment")
        if kind == "Job" and _CRON_RUN.search(name):
            return Workload(_CRON_RUN.sub("", name), "CronJob")
        return Workload(name, kind)
    return None


def service(fields: Fields, origin: SourceLocation) -> Service:
    spec = fields.inside("spec")
    headless = spec.text("clusterIP", "") == "None" or "None" in spec.texts("clusterIPs")
    external = spec.text("type", "ClusterIP") == "ExternalName"
    addresses: tuple[str, ...] = ()
    if not headless and not external:
        balancer = fields.inside("status").inside("loadBalancer")
        addresses = (
            *((spec.address("clusterIP"),) if spec.text("clusterIP", "") else ()),
            *spec.addresses("clusterIPs"),
            *spec.addresses("externalIPs"),
            *(item.address("ip") for item in balancer.each("ingress") if item.text("ip", "")),
        )
    return Service(
        namespace=_namespace(fields),
        name=_name(fields),
        addresses=tuple(dict.fromkeys(addresses)),
        ports=tuple(_service_port(item) for item in spec.each("ports")),
        selector={} if external else spec.labels("selector"),
        headless=headless,
        labels=fields.inside("metadata").labels("labels"),
        origin=origin,
    )


def _service_port(item: Fields) -> ServicePort:
    port = item.port("port")
    target = item.value.get("targetPort")
    if isinstance(target, str) and target and not target.isdigit():
        return ServicePort(port, item.protocol(), target, item.text("name", ""))
    if isinstance(target, str) and target.isdigit():
        target = Fields({"targetPort": int(target)}, item.path).port("targetPort")
    number = port if target in (None, 0, "") else Fields({"targetPort": target}, item.path).port("targetPort")
    return ServicePort(port, item.protocol(), number, item.text("name", ""))


def endpoint_slice(fields: Fields, origin: SourceLocation) -> EndpointSlice:
    family = fields.text("addressType")
    if family not in ("IPv4", "IPv6", "FQDN"):
        raise fields.wrong("addressType", f"must be IPv4, IPv6 or FQDN, not {family!r:.40}")
    ready: list[str] = []
    if family != "FQDN":
        for item in fields.each("endpoints"):
            addresses = item.addresses("addresses")
            for index, address in enumerate(addresses):
                if (":" in address) != (family == "IPv6"):
                    raise item.wrong(f"addresses[{index}]", f"{address} is not {family}, which addressType requires")
            if item.inside("conditions").flag("ready", default=True):
                ready.extend(addresses)
    ports = [
        SlicePort(item.text("name", ""), item.port("port"), item.protocol())
        for item in fields.each("ports")
        if item.value.get("port") is not None
    ]
    name = fields.inside("metadata").labels("labels").get(SERVICE_NAME, "")
    return EndpointSlice(_namespace(fields), _name(fields), name, tuple(dict.fromkeys(ready)), tuple(ports), origin)


def secret(fields: Fields, origin: SourceLocation) -> Secret:
    """No message of this reader contains a value. `stringData` overrides `data`, as in the API server."""
    coded, plain = fields.inside("data"), fields.inside("stringData")
    values = {name: _decoded(coded, name) for name in coded.value}
    values |= {name: plain.text(name, "").encode("utf-8", "surrogatepass") for name in plain.value}
    only = Sealed(next(iter(values.values()))) if len(values) == 1 else None
    return Secret(_namespace(fields), _name(fields), len(values), only, origin)


def _decoded(coded: Fields, name: str) -> bytes:
    text = coded.text(name, "")
    try:
        return b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise coded.wrong(name, "is not base64") from error


def cidr_group(fields: Fields, origin: SourceLocation) -> CidrGroup:
    networks = fields.inside("spec").networks("externalCIDRs")
    labels = fields.inside("metadata").labels("labels")
    return CidrGroup(_name(fields), tuple(dict.fromkeys(networks)), labels, origin=origin)


def unread(document: Mapping[str, Any], origin: SourceLocation) -> CidrGroup | None:
    """Placeholder for a CIDR group that cannot be read: in deny rules it may mean any address."""
    key = key_of(document)
    return CidrGroup(key.name, unread=True, origin=origin) if key is not None and key.kind == CIDR_GROUP else None


def service_account(fields: Fields, origin: SourceLocation) -> ServiceAccount:
    return ServiceAccount(_namespace(fields), _name(fields), fields.inside("metadata").labels("labels"), origin)


def network_set(fields: Fields, origin: SourceLocation) -> NetworkSet:
    spaced = fields.text("kind") == "NetworkSet"
    networks = tuple(dict.fromkeys(fields.inside("spec").networks("nets")))
    labels = fields.inside("metadata").labels("labels")
    return NetworkSet(_namespace(fields) if spaced else "", _name(fields), networks, labels, origin)


def tier(fields: Fields, origin: SourceLocation) -> PolicyTier:
    """A tier without an order is the last."""
    spec = fields.inside("spec")
    order = spec.value.get("order", float("inf"))
    if not isinstance(order, (int, float)) or isinstance(order, bool) or not order > float("-inf"):
        raise spec.wrong("order", f"must be a number, not {order!r:.40}")
    action = spec.text("defaultAction", "Deny")
    if action not in ("Deny", "Pass"):
        raise spec.wrong("defaultAction", f"must be Deny or Pass, not {action!r:.40}")
    return PolicyTier(_name(fields), float(order), action == "Pass", origin)


KINDS: Final[Mapping[tuple[str, str], Callable[[Fields, SourceLocation], Resource]]] = {
    ("v1", "Node"): node,
    ("v1", "Namespace"): namespace,
    ("v1", "Pod"): pod,
    ("v1", "Service"): service,
    ("v1", "Secret"): secret,
    ("v1", "ServiceAccount"): service_account,
    ("discovery.k8s.io/v1", "EndpointSlice"): endpoint_slice,
    ("cilium.io/v2", "CiliumCIDRGroup"): cidr_group,
    ("cilium.io/v2alpha1", "CiliumCIDRGroup"): cidr_group,
    ("projectcalico.org/v3", "NetworkSet"): network_set,
    ("projectcalico.org/v3", "GlobalNetworkSet"): network_set,
    ("projectcalico.org/v3", "Tier"): tier,
    ("crd.projectcalico.org/v1", "NetworkSet"): network_set,
    ("crd.projectcalico.org/v1", "GlobalNetworkSet"): network_set,
    ("crd.projectcalico.org/v1", "Tier"): tier,
}
CLUSTER_SCOPED: Final = (
    frozenset(("Node", "Namespace", "CiliumCIDRGroup", "GlobalNetworkSet", "Tier")) | CLUSTER_SCOPED_POLICIES
)


def key_of(document: Mapping[str, Any]) -> ResourceKey | None:
    """The key of the object; None if it cannot be read."""
    try:
        fields = Fields(document)
        kind = lang.known_as(document) or fields.text("kind")
        return ResourceKey(kind, "" if kind in CLUSTER_SCOPED else _namespace(fields), _name(fields))
    except SourceError:
        return None


def read(
    document: Mapping[str, Any],
    origin: SourceLocation,
    lines: Callable[[], Mapping[str, int]],
    options: Options = DEFAULT,
) -> Resource | None:
    """The resource in a document; None for kinds that are not used. SourceError names field and line."""
    fields = Fields(document)
    try:
        kind, version = fields.text("kind"), fields.text("apiVersion")
        if lang.is_policy(document):
            return policy(document, origin, lines(), options)
        reader = KINDS.get((version, kind))
        found = reader(fields, origin) if reader else None
        return _probed(found, fields) if options.probes_only and isinstance(found, Pod) else found
    except SourceError as error:
        file, line = located(lines(), origin, error.field)
        raise SourceError(error.message, file=file, line=line, field=error.field) from error


def policy(
    document: Mapping[str, Any],
    origin: SourceLocation = NOWHERE,
    lines: Mapping[str, int] = MappingProxyType({}),
    options: Options = DEFAULT,
) -> PolicyDocument:
    """A policy, parsed: `lang.Read`, or the PolicyError that refuses it."""
    fields = Fields(document)
    kind, metadata = lang.known_as(document) or fields.text("kind"), fields.inside("metadata")
    name = metadata.text("name", "")
    if not name:
        raise metadata.wrong("name", f"{fields.text('kind')} must have name")
    namespace = "" if kind in CLUSTER_SCOPED else _namespace(fields)
    parsed: lang.Read | PolicyError
    try:
        parsed = lang.read(document, locate=partial(located, lines, origin), options=options)
    except PolicyError as error:
        parsed = error
    return PolicyDocument(kind, namespace, name, document, parsed, lines, origin=origin)


def placeholder(
    document: Mapping[str, Any], origin: SourceLocation, lines: Mapping[str, int], fault: SourceError
) -> PolicyDocument:
    """Placeholder for a policy with broken metadata, to refuse what it may cover. Without a name: FILE:LINE."""
    fields = Fields(document)
    name, space = f"{origin.file}:{origin.line}", "default"
    with suppress(SourceError):
        space = _namespace(fields)
    with suppress(SourceError):
        name = _name(fields)
    kind = lang.known_as(document) or str(document.get("kind", ""))
    space = "" if kind in CLUSTER_SCOPED else space
    named = {**document, "metadata": {"name": name} | ({"namespace": space} if space else {})}
    error = PolicyError(fault.message, at=fault.field)
    return PolicyDocument(kind, space, name, named, error, lines, fault.message, origin)


def _name(fields: Fields) -> str:
    return fields.inside("metadata").text("name")


def _namespace(fields: Fields) -> str:
    return fields.inside("metadata").text("namespace", "default")
