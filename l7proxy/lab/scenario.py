"""`lab run`: runs a scenario file, which defines a cluster, its variants, and the expected result of each request.

    manifests: [../../deploy/demo, {apiVersion: v1, kind: Namespace, metadata: {name: extra}}]
    dimensions: {cni: [bridge, ptp], bridge-nf-call: [0, 1], backend: [nftables, iptables], ip-family: ["4", "6"]}
    cases:
    - from: [frontend, frontend-far]            # one row for each
      via: [service, pod]                       # by its name, or by the address of each of its backend pods
      request: GET http://backend/api/x         # or: tcp backend:9000, udp backend:53
      headers: {X-Token: secret}
      expect: 200                               # or: ok, reset, timeout, closed
      flows: l7-allowed                         # what the agents must have recorded (default: by `expect`)

One lab is started for each combination of dimensions; when all is enforced, each request is sent once: a wrong result
is a failure at once, and is not retried. Paths are relative to the scenario's file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec
import yaml
from rich.console import Console

from l7proxy.errors import ConfigError
from l7proxy.lab import lifecycle, names, probe, show
from l7proxy.lab.cluster import Cluster, Pod
from l7proxy.lab.execute import find
from l7proxy.lab.flow_assertions import Account, account
from l7proxy.lab.manifests import Manifest, parse, read
from l7proxy.lab.settings import Cni, Families, Kernel, Settings
from l7proxy.lab.state import Lab
from l7proxy.model.net import family_of

SECONDS: Final = 5.0
"""Time limit of a request; one that is expected to time out waits for `timeout` of the scenario."""


Only = Mapping[str, Sequence[Any]]
"""Dimension → the values selected on the command line; empty selects all."""


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of the file; several rows of the table."""

    from_: tuple[str, ...] | str = msgspec.field(name="from")
    request: str
    expect: int | str
    via: tuple[str, ...] = ("service",)
    headers: dict[str, str] = {}
    body: str = ""
    name: str = ""
    sees_source: bool = msgspec.field(name="sees-source", default=True)
    """If the server answered, it must have seen the client pod's own address."""
    flows: Account | None = None

    @property
    def pods(self) -> tuple[str, ...]:
        return (self.from_,) if isinstance(self.from_, str) else self.from_

    @property
    def account(self) -> Account:
        """The flows it must have, by the expected result."""
        if self.flows is not None:
            return self.flows
        word = str(self.expect)
        if word in {probe.RESET, probe.TIMEOUT}:
            return Account.L4_DENIED
        if word == "403":
            return Account.L7_DENIED
        return Account.L7_ALLOWED if word.isdigit() else Account.ANY


class Dimensions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    cni: tuple[Cni, ...] = (Cni.BRIDGE,)
    bridge_nf_call: tuple[int, ...] = (1,)
    backend: tuple[Kernel, ...] = (Kernel.AUTO,)
    ip_family: tuple[Families, ...] = (Families.FOUR,)
    workers: tuple[int, ...] = (1,)


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    manifests: tuple[str | dict[str, Any], ...]
    cases: tuple[Case, ...]
    dimensions: Dimensions = Dimensions()
    name: str = ""
    timeout: float = 2.0
    objects: tuple[Manifest, ...] = ()


@dataclass(slots=True)
class Row:
    """One request of one pod in one lab, and its result."""

    where: str
    case: Case
    pod: Pod
    via: str
    family: int
    request: probe.Request
    address: str
    seen: probe.Seen | None = None
    faults: list[str] = field(default_factory=list)
    same_node: bool = True

    @property
    def own(self) -> str:
        """The client's address."""
        return next(address for address in self.pod.addresses if family_of(address) == self.family)


def load(path: Path) -> Scenario:
    """ConfigError names the file and the invalid field."""
    try:
        scenario = msgspec.convert(yaml.safe_load(path.read_text()), Scenario)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error
    for case in scenario.cases:
        probe.parse(case.request, case.headers, case.body)
        if unknown := set(case.via) - {"service", "pod"}:
            raise ConfigError(f"{path}: via: {', '.join(unknown)}: must be service or pod")
    found: list[Manifest] = []
    for item in scenario.manifests:
        if isinstance(item, str):
            found.extend(read([path.parent / item]))
        else:
            found.extend(parse(yaml.safe_dump(item), str(path)))
    return msgspec.structs.replace(scenario, name=scenario.name or path.stem, objects=tuple(found))


def variants(scenario: Scenario, name: str, only: Only = MappingProxyType({})) -> list[Settings]:
    """One lab for each combination; bridge-nf-call has no effect without a bridge.

    Values of `only` are used even if the file does not have them.
    """
    given = {dimension: values for dimension, values in only.items() if values}
    dimensions = msgspec.structs.asdict(scenario.dimensions) | given
    found = []
    for values in itertools.product(*dimensions.values()):
        settings = Settings(name=name, **dict(zip(dimensions, values, strict=True)))
        if settings.cni is Cni.PTP:
            settings = msgspec.structs.replace(settings, bridge_nf_call=0)
        found.append(settings)
    return list(dict.fromkeys(found))


def describe(settings: Settings) -> str:
    bridge = f" nf-call={settings.bridge_nf_call}" if settings.cni is Cni.BRIDGE else ""
    return f"{settings.cni.value}{bridge} {settings.backend.value}"


def rows(scenario: Scenario, settings: Settings, cluster: Cluster) -> Iterator[Row]:
    """Every case, for each of its pods, each `via`, and each address family of the lab."""
    for case in scenario.cases:
        for name, via, family in itertools.product(case.pods, case.via, settings.families):
            pod = _pod(cluster, name)
            request = probe.parse(case.request, case.headers, case.body)
            for target, address, port in _targets(cluster, pod, request, via, family):
                sent = replace(request, host=target, port=port)
                node = _node_of(cluster, address) or (_backend_nodes(cluster, pod, request) or {pod.node}).pop()
                yield Row(describe(settings), case, pod, via, family, sent, address, same_node=node == pod.node)


def _pod(cluster: Cluster, name: str) -> Pod:
    full = name if "/" in name else f"default/{name}"
    for pod in cluster.pods:
        if str(pod) == full:
            return pod
    raise ConfigError(f"from: pod {full} not found")


def _targets(cluster: Cluster, pod: Pod, request: probe.Request, via: str, family: int) -> list[tuple[str, str, int]]:
    """(host name, address, port): those of the Service, or of each of its backend pods."""
    if via == "service":
        address = names.resolve(cluster, pod.namespace, request.host, family)
        if address is None:
            raise ConfigError(f"{request.host!r} has no IPv{family} address for {pod}")
        return [(request.host, address, request.port)]
    name, _, namespace = request.host.partition(".")
    for service in cluster.services:
        if (service.name, service.namespace) == (name, namespace.partition(".")[0] or pod.namespace):
            return [
                (backend.address, backend.address, backend.port)
                for one in cluster.frontends(family)
                if (one.service, one.namespace, one.port) == (service.name, service.namespace, request.port)
                for backend in one.backends
            ]
    raise ConfigError(f"via pod: {request.host!r} is not a Service")


def _node_of(cluster: Cluster, address: str) -> str | None:
    return next((pod.node for pod in cluster.pods if address in pod.addresses), None)


def _backend_nodes(cluster: Cluster, pod: Pod, request: probe.Request) -> set[str]:
    """The nodes of a Service's backend pods (one node, in a scenario that separates near from far)."""
    name = request.host.partition(".")[0]
    found = [one for family in (4, 6) for one in cluster.frontends(family) if one.service == name]
    return {_node_of(cluster, backend.address) or "" for one in found for backend in one.backends}


# Running


def run(scenario: Scenario, only: Only, name: str, out: Console, progress: Console) -> bool:
    """Runs every variant, one after the other. True if no row fails."""
    done: list[Row] = []
    for settings in variants(scenario, name, only):
        progress.print(f"{scenario.name}: {describe(settings)}, IP {settings.ip_family.value}", highlight=False)
        lab = lifecycle.up(settings, scenario.objects)
        try:
            done.extend(check(lab, scenario))
        finally:
            lifecycle.down(lab)
    render(done, out)
    return not any(row.faults for row in done)


def check(lab: Lab, scenario: Scenario) -> list[Row]:
    """Send every request once, then check the flows."""
    state, cluster = lab.load(), lifecycle.cluster_of(lab)
    found = list(rows(scenario, state.settings, cluster))
    for row in found:
        namespace = find(state, str(row.pod))[1].namespace
        seconds = scenario.timeout if row.case.expect == probe.TIMEOUT else SECONDS
        row.seen = probe.send(namespace, row.own, row.request, row.address, seconds=seconds)
        row.faults.extend(_faults(row, row.seen))
    if state.settings.agent:
        sent = [(row.seen.local, row.case.account) for row in found if row.seen is not None]
        for row, fault in zip(found, account(lab, list(state.nodes), sent), strict=True):
            row.faults.extend(fault)
    return found


def _faults(row: Row, seen: probe.Seen) -> Iterator[str]:
    if seen.word != str(row.case.expect):
        yield f"expected {row.case.expect}"
    if row.case.sees_source and seen.source and seen.source != row.own:
        yield f"the server received the source address {seen.source}, not {row.own}"


def render(done: Sequence[Row], out: Console) -> None:
    """Prints all rows, and a line with the total."""
    table = show.table("LAB", "IP", "FROM", "TO", "REQUEST", "EXPECTED", "RESULT", "")
    for row in done:
        word = row.seen.word if row.seen else "-"
        path = f"{row.via}, {'same' if row.same_node else 'other'} node"
        verdict = f"[red]{'; '.join(row.faults)}[/]" if row.faults else "[green]✓[/]"
        table.add_row(
            row.where, str(row.family), str(row.pod), path, _words(row.case), str(row.case.expect), word, verdict
        )
    out.print(table)
    failed = sum(bool(row.faults) for row in done)
    out.print(f"{len(done)} rows, {failed} failed" if failed else f"{len(done)} rows, all passed", highlight=False)


def _words(case: Case) -> str:
    headers = "".join(f" {name}: {value}" for name, value in case.headers.items())
    return case.name or f"{case.request}{headers}"
