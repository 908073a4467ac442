"""Values of the labels that name the two ends of a flow, as Hubble's context options define them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from l7proxy.flows.flow import Endpoint, Flow
from l7proxy.metrics.options import Metric

APP_LABELS: Final = ("k8s:app.kubernetes.io/name=", "k8s:k8s-app=", "k8s:app=")
API_SERVER: Final = "reserved:kube-apiserver"
DIRECTIONS: Final[Mapping[str, str]] = {"INGRESS": "ingress", "EGRESS": "egress"}
OF_A_POD: Final = frozenset({"pod", "pod-name", "ip"})
_NOBODY: Final = Endpoint()


class End(NamedTuple):
    """One end of a flow. `names`: from DNS."""

    endpoint: Endpoint
    address: str
    names: tuple[str, ...]


def ends(flow: Flow) -> tuple[End, End]:
    """(source, destination)."""
    ip = flow.ip
    return (
        End(flow.source or _NOBODY, ip.source if ip else "", flow.source_names),
        End(flow.destination or _NOBODY, ip.destination if ip else "", flow.destination_names),
    )


def direction(flow: Flow) -> str:
    return DIRECTIONS.get(flow.traffic_direction, "unknown")


class Contexts:
    """The context labels of one metric: their names, and their values for a flow."""

    def __init__(self, metric: Metric) -> None:
        self._labels = metric.labels
        self._ends = metric.ends
        self._shown = [side for side in ("source", "destination") if any(key.startswith(side) for key in metric.ends)]
        self.names = (*metric.labels, *self._shown)
        self.pod_labels = frozenset(label for label in self.names if label.endswith(("_ip", "_pod"))) | {
            side
            for side in self._shown
            if any(key.startswith(side) and OF_A_POD.intersection(one) for key, one in metric.ends.items())
        }
        """The labels whose value may belong to one pod alone."""

    def values(self, flow: Flow, *, swapped: bool = False) -> tuple[str, ...]:
        """In the order of `names`. `swapped`: of a response, as its request would have them."""
        if not self.names:
            return ()
        source, destination = ends(flow)
        if swapped:
            source, destination = destination, source
        way = direction(flow)
        values = [way if label == "traffic_direction" else _label(label, source, destination) for label in self._labels]
        values += [self._identified(side, way, source if side == "source" else destination) for side in self._shown]
        return tuple(values)

    def _identified(self, side: str, way: str, end: End) -> str:
        own = self._ends.get(f"{side}{way.capitalize()}Context")
        wanted = own if own is not None else self._ends.get(f"{side}Context", ())
        return next((value for one in wanted if (value := IDENTIFIED[one](end))), "")


def _label(label: str, source: End, destination: End) -> str:
    side, _, what = label.partition("_")
    return LABELLED[what](source if side == "source" else destination)


def _pod(end: End) -> str:
    one = end.endpoint
    return f"{one.namespace}/{one.pod_name}" if one.namespace else one.pod_name


def _reserved(end: End) -> str:
    labels = end.endpoint.labels
    if API_SERVER in labels:
        return API_SERVER
    return next((label for label in labels if label.startswith("reserved:")), "")


def _workload(end: End) -> str:
    name = _workload_name(end)
    return f"{end.endpoint.namespace}/{name}" if name and end.endpoint.namespace else name


def _workload_name(end: End) -> str:
    found = end.endpoint.workloads
    return found[0].name if found else ""


def _workload_kind(end: End) -> str:
    found = end.endpoint.workloads
    return found[0].kind if found else ""


def _app(end: End) -> str:
    return next((label.partition("=")[2] for label in end.endpoint.labels if label.startswith(APP_LABELS)), "")


IDENTIFIED: Final[Mapping[str, Callable[[End], str]]] = {
    "identity": lambda end: ",".join(end.endpoint.labels),
    "namespace": lambda end: end.endpoint.namespace,
    "pod": _pod,
    "pod-name": lambda end: end.endpoint.pod_name,
    "dns": lambda end: ",".join(end.names),
    "ip": lambda end: end.address,
    "reserved-identity": _reserved,
    "workload": _workload,
    "workload-name": _workload_name,
    "app": _app,
}
LABELLED: Final[Mapping[str, Callable[[End], str]]] = {
    "ip": lambda end: end.address,
    "pod": lambda end: end.endpoint.pod_name,
    "namespace": lambda end: end.endpoint.namespace,
    "workload": _workload_name,
    "workload_kind": _workload_kind,
    "app": _app,
}
