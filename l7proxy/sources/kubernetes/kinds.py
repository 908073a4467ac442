"""What is read of a cluster: one line per kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

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
    Secret,
    Service,
    ServiceAccount,
)
from l7proxy.sources.kubernetes import trim


@dataclass(frozen=True, slots=True)
class Kind:
    """`name`: the kind in our keys. `api`: the kind in the API; `plural`: in its paths. `versions`: those that we read,
    the preferred one first; a `built_in` kind has one, which every cluster serves. `shape`: the decoded fields.
    """

    name: str
    api: str
    plural: str
    versions: tuple[str, ...]
    resource: type[Resource]
    shape: Any
    built_in: bool = False
    namespaced: bool = True

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(version.partition("/")[0] for version in self.versions))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cluster serves a kind."""

    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    """If set, only this object."""

    @property
    def path(self) -> str:
        root = f"/apis/{self.version}" if "/" in self.version else f"/api/{self.version}"
        inside = f"/namespaces/{self.namespace}" if self.namespace else ""
        return f"{root}{inside}/{self.plural}"

    @property
    def resource(self) -> str:
        """As RBAC and `kubectl` name it: `ciliumnetworkpolicies.cilium.io`."""
        group, slash, _ = self.version.partition("/")
        return f"{self.plural}.{group}" if slash else self.plural


def _built_in(
    api: str, plural: str, resource: type[Resource], shape: Any, version: str = "v1", *, namespaced: bool = True
) -> Kind:
    return Kind(api, api, plural, (version,), resource, shape, built_in=True, namespaced=namespaced)


def _policy(api: str, plural: str, *versions: str, name: str = "", namespaced: bool = True) -> Kind:
    return Kind(name or api, api, plural, versions, PolicyDocument, trim.Policy, namespaced=namespaced)


_CILIUM: Final = "cilium.io/v2"
_CALICO: Final = ("projectcalico.org/v3", "crd.projectcalico.org/v1")
_ADMIN: Final = "policy.networking.k8s.io"

KINDS: Final[tuple[Kind, ...]] = (
    _built_in("Node", "nodes", Node, trim.Node, namespaced=False),
    _built_in("Namespace", "namespaces", Namespace, trim.Namespace, namespaced=False),
    _built_in("Pod", "pods", Pod, trim.Pod),
    _built_in("Service", "services", Service, trim.Service),
    _built_in("ServiceAccount", "serviceaccounts", ServiceAccount, trim.Plain),
    _built_in("EndpointSlice", "endpointslices", EndpointSlice, trim.EndpointSlice, "discovery.k8s.io/v1"),
    _built_in("NetworkPolicy", "networkpolicies", PolicyDocument, trim.Policy, "networking.k8s.io/v1"),
    _policy("CiliumNetworkPolicy", "ciliumnetworkpolicies", _CILIUM),
    _policy("CiliumClusterwideNetworkPolicy", "ciliumclusterwidenetworkpolicies", _CILIUM, namespaced=False),
    Kind("CiliumCIDRGroup", "CiliumCIDRGroup", "ciliumcidrgroups", (_CILIUM, "cilium.io/v2alpha1"), CidrGroup,
         trim.Spec, namespaced=False),
    _policy("AdminNetworkPolicy", "adminnetworkpolicies", f"{_ADMIN}/v1alpha1", namespaced=False),
    _policy("BaselineAdminNetworkPolicy", "baselineadminnetworkpolicies", f"{_ADMIN}/v1alpha1", namespaced=False),
    _policy("ClusterNetworkPolicy", "clusternetworkpolicies", f"{_ADMIN}/v1alpha2", namespaced=False),
    _policy("NetworkPolicy", "networkpolicies", *_CALICO, name="CalicoNetworkPolicy"),
    _policy("GlobalNetworkPolicy", "globalnetworkpolicies", *_CALICO, namespaced=False),
    _policy("StagedNetworkPolicy", "stagednetworkpolicies", *_CALICO),
    _policy("StagedGlobalNetworkPolicy", "stagedglobalnetworkpolicies", *_CALICO, namespaced=False),
    _policy("StagedKubernetesNetworkPolicy", "stagedkubernetesnetworkpolicies", *_CALICO),
    Kind("NetworkSet", "NetworkSet", "networksets", _CALICO, NetworkSet, trim.Spec),
    Kind("GlobalNetworkSet", "GlobalNetworkSet", "globalnetworksets", _CALICO, NetworkSet, trim.Spec, namespaced=False),
    Kind("Tier", "Tier", "tiers", _CALICO, PolicyTier, trim.Spec, namespaced=False),
)  # fmt: skip
SECRET: Final = _built_in("Secret", "secrets", Secret, trim.Secret)
"""Never listed as a whole: only those that policies name."""
DEFINITIONS: Final = Place("apiextensions.k8s.io/v1", "customresourcedefinitions")
API_SERVICES: Final = Place("apiregistration.k8s.io/v1", "apiservices")
