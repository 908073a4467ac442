"""Parses the peers of a Calico rule: the entities `source` and `destination`.

All fields of an entity must match. Selectors select pods and network sets, never bare addresses; networks match any
address, also pods'. In a namespaced policy a selector applies to its own namespace unless a namespaceSelector is given.
Calico sees labels that Cilium does not: all labels of a pod, of its namespace and of its ServiceAccount.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Final

from l7proxy.model.expression import AllOf, AnyOf, Holds, Not
from l7proxy.model.labels import (
    ACCOUNT,
    CLUSTER_KEY,
    K8S,
    NAMESPACE_KEY,
    NAMESPACE_LABELS_PREFIX,
    OWN,
    SERVICE_ACCOUNT_KEY,
    Label,
    LabelSet,
    Operator,
    Requirement,
    Selects,
)
from l7proxy.model.net import Network
from l7proxy.policy.lang import calico_selector, cidrs, selectors
from l7proxy.policy.lang.calico_selector import Leaf
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field
from l7proxy.policy.rules import (
    AnyPeer,
    CidrPeer,
    EveryPeer,
    NetworkSetPeer,
    Peer,
    Reach,
    SelectorPeer,
    ServicePortPeer,
)

MAX_NETS: Final = 256
SELECTORS: Final = ("selector", "notSelector", "namespaceSelector", "serviceAccounts")
FIELDS: Final = (*SELECTORS, "nets", "notNets", "services", "ports", "notPorts")

_NAMESPACE: Final = "projectcalico.org/namespace"
_ACCOUNT: Final = "projectcalico.org/serviceaccount"
_ORCHESTRATOR: Final = "projectcalico.org/orchestrator"
_NAME: Final = "projectcalico.org/name"
_OF_NAMESPACE: Final = "pcns."
_OF_ACCOUNT: Final = "pcsa."
_IS_IN_KUBERNETES: Final = Requirement(K8S, CLUSTER_KEY, Operator.EXISTS)
"""Matches every pod and no network set."""


def of_pods(term: Requirement | Holds) -> Selects:
    """A term of a selector for endpoints."""
    key = term.key
    if key == _NAMESPACE:
        return replace(term, source=K8S, key=NAMESPACE_KEY)
    if key == _ACCOUNT:
        return replace(term, source=K8S, key=SERVICE_ACCOUNT_KEY)
    if key == _ORCHESTRATOR:
        return _orchestrated(term)
    if key.startswith(_OF_NAMESPACE):
        return of_namespaces(replace(term, key=key.removeprefix(_OF_NAMESPACE)))
    if key.startswith(_OF_ACCOUNT):
        return of_accounts(replace(term, key=key.removeprefix(_OF_ACCOUNT)))
    return replace(term, source=OWN)


def of_namespaces(term: Requirement | Holds) -> Selects:
    if term.key == _NAME:
        return replace(term, source=K8S, key=NAMESPACE_KEY)
    return replace(term, source=K8S, key=NAMESPACE_LABELS_PREFIX + term.key)


def of_accounts(term: Requirement | Holds) -> Selects:
    if term.key == _NAME:
        return replace(term, source=K8S, key=SERVICE_ACCOUNT_KEY)
    return replace(term, source=ACCOUNT)


def _orchestrated(term: Requirement | Holds) -> Selects:
    """Every pod has this label with the value `k8s`, whatever its own labels are."""
    term = replace(term, source=K8S)
    on_pods = term.matches(LabelSet.of((Label(K8S, _ORCHESTRATOR, "k8s"),)))
    elsewhere = term.matches(LabelSet.of(()))
    if on_pods == elsewhere:
        return AllOf() if on_pods else AnyOf()
    return _IS_IN_KUBERNETES if on_pods else Not(_IS_IN_KUBERNETES)


def selector(field: Field, leaf: Leaf) -> Selects:
    """The predicate for a selector."""
    try:
        return calico_selector.parse(field.text(), leaf)
    except calico_selector.SelectorError as error:
        field.fail(f"invalid selector: {error}")


def namespaces(field: Field) -> Selects:
    """`all()`: everything in a namespace; `global()`: everything outside all namespaces."""
    if calico_selector.is_global(field.text()):
        return Not(selectors.IS_POD)
    return AllOf((selectors.IS_POD, selector(field, of_namespaces)))


def accounts(field: Field) -> Selects | None:
    """`serviceAccounts`: names and selector must both match. None when it has neither: then it requires nothing."""
    found = field.mapping(("names", "selector"))
    terms: list[Selects] = []
    names = found["names"].items() if "names" in found else []
    if names:
        terms.append(Requirement(K8S, SERVICE_ACCOUNT_KEY, Operator.IN, tuple(sorted({name.text() for name in names}))))
    if "selector" in found and found["selector"].text():
        terms.append(selector(found["selector"], of_accounts))
    return AllOf((_IS_IN_KUBERNETES, *terms)) if terms else None


def chosen(entity: dict[str, Field], document: Document) -> Selects | None:
    """The conjunction of selector, namespaceSelector and serviceAccounts; None when all are absent."""
    said = {name: field for name, field in entity.items() if name in SELECTORS and field.value != ""}
    of_whom = accounts(said.pop("serviceAccounts")) if "serviceAccounts" in said else None
    terms: list[Selects] = []
    if "namespaceSelector" in said:
        terms.append(namespaces(said["namespaceSelector"]))
    elif (said or of_whom is not None) and document.namespace:
        terms.append(selectors.in_namespace(document.namespace))
    if "selector" in said:
        terms.append(selector(said["selector"], of_pods))
    if of_whom is not None:
        terms.append(of_whom)
    return AllOf(tuple(terms)) if terms else None


def unwanted(entity: dict[str, Field]) -> Selects | None:
    """The predicate for notSelector; None when absent."""
    if "notSelector" not in entity or not entity["notSelector"].text():
        return None
    return selector(entity["notSelector"], of_pods)


def entity_peers(
    entity: dict[str, Field], document: Document, *, version: int | None, on_ports: bool
) -> tuple[Peer, ...] | None:
    """The peers of an entity; None when it names none.

    `version`: the IP version, if the rule names one. `on_ports`: a Service matches only with its ports.
    """
    if "services" in entity:
        return (replace(_service(entity, document, version), on_ports=on_ports),)
    all_of: list[Peer] = []
    none_of: list[Peer] = []
    positive, negative = chosen(entity, document), unwanted(entity)
    if positive is not None:
        all_of.append(AnyPeer(_selected(positive)))
    if negative is not None:
        none_of += _selected(negative)
    nets = tuple(_nets(entity["nets"], version)) if "nets" in entity else ()
    if nets:
        all_of.append(AnyPeer(nets))
    if "notNets" in entity:
        one_of_nets = nets[0].network.version if nets else None
        none_of += _not_nets(entity["notNets"], one_of_nets if version is None else version)
    if version is not None:
        all_of.append(CidrPeer(ip_network("0.0.0.0/0" if version == 4 else "::/0"), reach=Reach.ANYWHERE))
    if not all_of and not none_of:
        return None
    if len(all_of) == 1 and not none_of:
        return tuple(all_of[0].any_of) if isinstance(all_of[0], AnyPeer) else tuple(all_of)
    return (EveryPeer(tuple(all_of), tuple(none_of)),)


def _selected(wanted: Selects) -> tuple[Peer, ...]:
    return SelectorPeer(AllOf((selectors.IS_POD, wanted))), NetworkSetPeer(wanted)


def _nets(field: Field, version: int | None) -> Iterator[CidrPeer]:
    families: set[int] = set()
    for item in field.items(most=MAX_NETS, too_many=f"too many nets, the max is {MAX_NETS}"):
        network = _network(item)
        if version not in (None, network.version):
            item.fail(f"must be of IP version {version}, as the rule is")
        families.add(network.version)
        if len(families) > 1:
            item.fail("IPv4 and IPv6 cannot be mixed in one list: use two rules")
        yield CidrPeer(network, reach=Reach.ANYWHERE)


def _not_nets(field: Field, version: int | None) -> Iterator[CidrPeer]:
    for place, peer in enumerate(_nets(field, version)):
        if not peer.network.prefixlen:
            Field(None, f"{field.at}[{place}]").fail(
                f"{peer.network} covers every address: the rule would match nothing"
            )
        yield peer


def _network(field: Field) -> Network:
    """A prefix or an address."""
    text = field.text()
    if "/" not in text:
        text += "/128" if ":" in text else "/32"
    return cidrs.prefix(Field(text, field.at))


def _service(entity: dict[str, Field], document: Document, version: int | None) -> ServicePortPeer:
    field = entity["services"]
    if version is not None:
        field.fail("services together with ipVersion is not supported yet", unsupported=True)
    others = [name for name in entity if name not in ("services", "ports", "notPorts")]
    if others:
        field.fail(f"services cannot be combined with {others[0]}")
    found = field.mapping(("name", "namespace"))
    if "name" not in found or not found["name"].text():
        field.fail("must specify a service name")
    space = found["namespace"].text() if "namespace" in found else document.namespace
    if not space:
        field.fail("must specify a service namespace")
    return ServicePortPeer(space, found["name"].text())
