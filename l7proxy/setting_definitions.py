"""The one definition of each setting: type, default, range, unit, meaning, and which commands use it.

Flags, environment variables, the file's keys, docs/settings.md, docs/settings.schema.json and the settings of a worker
are made from these definitions: a field added here is all of them. Imported by every process, so it imports little.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from l7proxy.model.tunnels import TUNNEL_PORTS, TUNNEL_PROTOCOLS

KUBERNETES: Final = "kubernetes"
DEFAULT_RESULTS: Final = Path("/var/lib/cni/results")
CLEANUP: Final = "cleanup"
WORKERS: Final = "workers"
POLICY: Final = "policy"

S = TypeVar("S", bound="WorkerSettings")


@dataclass(frozen=True, slots=True)
class About:
    """What a type does not say. `low`, `high`: the range of a number, or of each number in a list."""

    help: str
    low: float | None = None
    high: float | None = None
    unit: str = ""
    bit: bool = False
    """The number is one bit of the packet mark."""
    used_by: tuple[str, ...] = ()
    """Commands that use it besides `run`."""
    default: str = ""
    """The default in words, where it depends on the node."""
    live: bool = False
    """A change of the file is in force at once. Else the process that uses it must be restarted."""


def _bit(help: str) -> About:  # noqa: A002
    return About(help=help, low=1, high=1 << 31, bit=True)


def _policy(help: str, **more: Any) -> About:  # noqa: A002
    return About(help=help, used_by=(POLICY,), **more)


def _node_name() -> str:
    return os.environ.get("NODE_NAME") or socket.gethostname()


def _namespace() -> str:
    return os.environ.get("POD_NAMESPACE") or "kube-system"


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker needs to know at its start."""

    run_dir: Annotated[Path, About("Directory of the Unix sockets.", used_by=(CLEANUP,))] = Path("/run/l7proxy")
    node: Annotated[str, About("Name of this node's Node object.", default="$NODE_NAME, else the host's name")] = (
        msgspec.field(default_factory=_node_name)
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        About("Least severe level that is logged.", used_by=(CLEANUP,), live=True),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], About("Format of the log on standard error.", used_by=(CLEANUP,), live=True)
    ] = "text"
    proxy_port: Annotated[int, About("TCP port of the proxy, the TPROXY target.", 1, 65535)] = 15001
    mark_upstream: Annotated[int, _bit("Packet mark of the proxy's own connections.")] = 0x02000000
    worker_connections: Annotated[
        int, About("Maximum connections per worker; one endpoint may use half.", 2, 1 << 20, live=True)
    ] = 16384
    worker_memory: Annotated[
        int,
        About(
            "Memory per worker for data that its receiver has not read yet; one endpoint may use a quarter. A session "
            "takes about 25 KiB on top, and a worker without sessions 40 MiB.",
            16,
            1 << 20,
            unit="MiB",
            live=True,
        ),
    ] = 256
    drain: Annotated[
        float, About("Time for open connections to finish when a worker stops.", 0, 3600, unit="seconds")
    ] = 30

    @property
    def link_socket(self) -> Path:
        return self.run_dir / "link.sock"

    def dump(self) -> str:
        """One line of JSON that `parse` reads as the same settings."""
        return msgspec.json.encode(self, enc_hook=str).decode()


class Settings(WorkerSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one node: those of workers, and those that only the agent uses."""

    source: Annotated[
        str, About("`kubernetes`: the API server; or a directory of Kubernetes manifests, watched for changes.")
    ] = KUBERNETES
    kubeconfig: Annotated[
        str,
        About(
            "Kubeconfig for the API server.",
            default="the pod's ServiceAccount; outside of a pod `$KUBECONFIG`, else `~/.kube/config`",
        ),
    ] = ""
    kube_context: Annotated[
        str, About("Context of the kubeconfig.", default="the current context of the kubeconfig")
    ] = ""
    state_dir: Annotated[
        Path,
        About(
            "Directory of the last known objects of the API server: policy stays in force when the agent restarts "
            "while the server cannot be reached.",
            used_by=(CLEANUP,),
        ),
    ] = Path("/var/lib/l7proxy")
    cluster: Annotated[str, _policy("Cluster name, used in identity labels.")] = "default"
    backend: Annotated[Literal["auto", "nftables", "iptables"], About("Kernel backend.", used_by=(CLEANUP,))] = "auto"
    workers: Annotated[int, About("Number of proxy workers.", 1, 256, used_by=(WORKERS,), default="one per core")] = (
        msgspec.field(default_factory=_cores)
    )
    cni_results: Annotated[Path, About("Directory of cached CNI results.")] = DEFAULT_RESULTS
    cni_ignored_networks: Annotated[
        tuple[str, ...],
        About("CNI networks whose containers are not pods (of podman or nerdctl): their interfaces are not closed."),
    ] = ()
    refuse: Annotated[Literal["reset", "drop"], About("How to refuse TCP connections.", live=True)] = "reset"
    flow_log: Annotated[str, About("File to write flows to as JSON lines, or `stdout`; empty: none.")] = ""
    flow_log_max_bytes: Annotated[int, About("Size at which the flow log is rotated.", 4096, 1 << 40, unit="bytes")] = (
        10 << 20
    )
    flow_log_backups: Annotated[int, About("Rotated flow logs that are kept.", 0, 1000)] = 5
    flow_log_compress: Annotated[bool, About("Compress rotated flow logs with gzip.")] = False
    flow_log_allow: Annotated[
        str, About("Only flows that one of these filters matches are logged: a JSON list of Hubble's filters.")
    ] = ""
    flow_log_deny: Annotated[
        str, About('Flows that one of these filters matches are not logged, as `[{"verdict":["FORWARDED"]}]`.')
    ] = ""
    flow_log_fields: Annotated[
        tuple[str, ...], About("Fields of a flow that are logged, as `time` or `source.labels`; empty: all.")
    ] = ()
    flow_log_sampling: Annotated[
        int, About("Of so many allowed flows one is logged. Refused ones always are; metrics count all.", 1, 1_000_000)
    ] = 1
    flow_logs_config: Annotated[
        str,
        About("File with more flow logs, as Hubble's dynamic exporter has it (`flowLogs`), read again on change."),
    ] = ""
    flow_otlp_endpoint: Annotated[
        str,
        About("Collector that gets flows as OpenTelemetry logs (OTLP over HTTP): https://HOST:4318; empty: none."),
    ] = ""
    flow_otlp_headers_file: Annotated[
        str, About("File with headers for flow-otlp-endpoint, as `authorization: Bearer …`; needs https.")
    ] = ""
    flow_otlp_ca_file: Annotated[
        str, About("PEM CA certificates that verify the collector; empty: those of the system, or of certifi.")
    ] = ""
    flow_otlp_cert_file: Annotated[
        str, About("PEM client certificate for flow-otlp-endpoint (mutual TLS); needs flow-otlp-key-file.")
    ] = ""
    flow_otlp_key_file: Annotated[str, About("PEM private key of flow-otlp-cert-file, unencrypted.")] = ""
    shadow_policies: Annotated[
        str,
        About("Directory of policies that are judged on the node's flows, and never enforced; empty: none."),
    ] = ""
    flow_ring: Annotated[
        int,
        About("Flows that the agent keeps for `l7proxy observe`: one less than a power of two.", 1, (1 << 24) - 1),
    ] = 4095
    flow_headers: Annotated[
        tuple[str, ...],
        About(
            "Names of HTTP headers whose values are shown in flows. Headers that hold a secret never are.", live=True
        ),
    ] = ()
    flow_query: Annotated[bool, About("Flows show the query of a URL.", live=True)] = False
    hubble_socket_path: Annotated[
        str,
        About(
            "Unix socket of Hubble's API, for root; empty: none. `hubble` looks for /var/run/cilium/hubble.sock where "
            "HUBBLE_SERVER says so."
        ),
    ] = ""
    hubble_listen_address: Annotated[
        str,
        About("ADDRESS:PORT of Hubble's API over mutual TLS, for Hubble Relay: `:4244` is every address; empty: none."),
    ] = ""
    hubble_tls_cert_file: Annotated[str, About("PEM certificate of hubble-listen-address, read again on change.")] = ""
    hubble_tls_key_file: Annotated[str, About("PEM key of hubble-tls-cert-file.")] = ""
    hubble_tls_client_ca_files: Annotated[
        tuple[str, ...], About("PEM certificates of the authorities that sign clients of hubble-listen-address.")
    ] = ()
    audit: Annotated[bool, _policy("Audit mode: allow what policy denies, and report it as AUDIT.", live=True)] = False
    secrets_namespace: Annotated[
        str, _policy("Namespace whose secrets policies may use besides those of their own namespace; empty: none.")
    ] = ""
    labels: Annotated[
        tuple[str, ...],
        _policy("Regular expressions of pod labels in identities, besides Cilium's; a leading `!` excludes labels."),
    ] = ()
    enable_node_selector_labels: Annotated[
        bool, _policy("Give nodes identities by their labels: enables fromNodes and toNodes.")
    ] = False
    enable_icmp_rules: Annotated[bool, _policy("Policies may have `icmps`.")] = True
    enable_extended_ip_protocols: Annotated[
        bool, _policy("Allow VRRP, IGMP, GRE, IPIP, IPV6, ESP and AH in policies.")
    ] = False
    enable_non_default_deny_policies: Annotated[
        bool, _policy("Apply enableDefaultDeny of policies; false: ignore it.")
    ] = True
    policy_enforcement_mode: Annotated[
        Literal["default", "always"], _policy("`always`: also deny all traffic of pods that no policy selects.")
    ] = "default"
    node_access: Annotated[
        Literal["all", "probes"],
        _policy(
            "What a node may reach in its own pods that a policy selects: everything, as with Cilium, or only what its "
            "kubelet probes."
        ),
    ] = "all"
    policy_cidr_match_mode: Annotated[
        Literal["", "nodes", "nodes,pods"], _policy("What CIDR rules match besides external addresses.")
    ] = ""
    kubernetes_network_policy: Annotated[
        Literal["kubernetes", "cilium"],
        _policy("Semantics of Kubernetes NetworkPolicy: those of the Kubernetes API, or those of Cilium."),
    ] = "kubernetes"
    tunnel_ports: Annotated[
        tuple[int, ...],
        _policy(
            "UDP ports of tunnels: denied to pods for every destination, unless a policy allows exactly that port.",
            low=1,
            high=65535,
        ),
    ] = TUNNEL_PORTS
    tunnel_protocols: Annotated[
        tuple[int, ...],
        _policy(
            "IP protocols of tunnels: denied to pods for every destination, unless a policy allows exactly that one.",
            low=0,
            high=255,
        ),
    ] = TUNNEL_PROTOCOLS
    deny_header: Annotated[
        bool, About("Put the reason of a denial in the header x-l7proxy-denied of the 403 response.", live=True)
    ] = False
    connect: Annotated[
        bool,
        _policy("Allow CONNECT where method and host match, else refuse it; its tunnel is not inspected.", live=True),
    ] = False
    matrix_parameters: Annotated[
        Literal["refuse", "pass"],
        _policy(
            "Paths with `;`, which servers parse differently: `pass` allows them if both readings match.", live=True
        ),
    ] = "refuse"
    escaped_slashes: Annotated[
        Literal["redirect", "refuse"],
        _policy("Paths with %2F or %5C: redirect to the normalised path, or refuse.", live=True),
    ] = "redirect"
    mark_proxy: Annotated[int, _bit("Packet mark of redirected packets.")] = 0x01000000
    route_table: Annotated[int, About("Routing table for l7proxy.", 1, 0xFFFFFFFF)] = 7777
    rule_priority: Annotated[int, About("Priority of l7proxy's routing rules.", 3, 32765)] = 100
    policy_status: Annotated[
        bool, About("Report what the nodes enforce in the cluster: conditions of policies and Events.")
    ] = True
    namespace: Annotated[
        str, About("Namespace of the Leases that policy-status needs.", default="$POD_NAMESPACE, else kube-system")
    ] = msgspec.field(default_factory=_namespace)
    health_address: Annotated[
        str, About("ADDRESS:PORT of /livez and /readyz, for probes; empty: none. Keep it on loopback.")
    ] = "127.0.0.1:9878"
    metrics_address: Annotated[
        str,
        About(
            "ADDRESS:PORT of /metrics for Prometheus, as 0.0.0.0:9965; empty: none. Who reaches it can read which pods "
            "talk to each other."
        ),
    ] = ""
    flow_metrics: Annotated[
        str,
        About(
            "Metrics of flows, separated by blanks, with options as Hubble has them; empty: only those of the agent. "
            "See docs/metrics.md."
        ),
    ] = "flow drop tcp icmp dns port-distribution policy httpV2 cilium"
    metrics_series: Annotated[
        int, About("Series per metric of flows; further ones are folded into the label value `overflow`.", 1, 1_000_000)
    ] = 10_000
    nflog_group: Annotated[int, About("NFLOG group for verdict events.", 1, 65535)] = 77
    log_rate: Annotated[
        int, About("Kernel flow events per second; one sender may cause a tenth of them.", 1, 1_000_000, live=True)
    ] = 1000

    @property
    def agent_socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def sysctls_record(self) -> Path:
        """What sysctls were before the agent set them: lost when the node restarts, as their values are."""
        return self.run_dir / "sysctls.json"

    @property
    def of_workers(self) -> WorkerSettings:
        return WorkerSettings(**{name: getattr(self, name) for name in WorkerSettings.__struct_fields__})


@dataclass(frozen=True, slots=True)
class Definition:
    """One setting, as commands and documentation see it."""

    name: str
    kind: Any
    about: About
    value: Any
    """The default."""

    @property
    def key(self) -> str:
        """The name in files."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        return f"--{self.key}"

    @property
    def variable(self) -> str:
        return f"L7PROXY_{self.name.upper()}"

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def item(self) -> Any:
        """The type of a list's items; None when it is no list."""
        return get_args(self.kind)[0] if get_origin(self.kind) is tuple else None

    @property
    def used_by(self) -> tuple[str, ...]:
        worker = ("worker", WORKERS) if self.name in WorkerSettings.__struct_fields__ else ()
        return ("agent", *worker, *self.about.used_by)

    @property
    def default(self) -> str:
        """The default as it is written in a flag; empty: none."""
        if self.about.default:
            return self.about.default
        if isinstance(self.value, bool):
            return str(self.value).lower()
        if isinstance(self.value, tuple):
            return ",".join(map(str, self.value))
        return f"{self.value:#x}" if self.about.bit else f"{self.value}"

    @property
    def allowed(self) -> str:
        """What a value must be: `one of reset, drop`."""
        if self.choices:
            return "one of " + ", ".join(choice or "(empty)" for choice in self.choices)
        if self.about.bit:
            return "a single bit of the packet mark, as 0x1000000"
        low, high = self.about.low, self.about.high
        limits = "" if low is None else f" from {low} to {high}" + (f" {self.about.unit}" if self.about.unit else "")
        if self.item is not None:
            return "a list of numbers" + limits if self.item is int else "a list of texts"
        names = {bool: "true or false", int: "a whole number", float: "a number", Path: "a path", str: "text"}
        return names[self.kind] + limits


def _definitions() -> Mapping[str, Definition]:
    hints = get_type_hints(Settings, include_extras=True)
    found = {}
    for field in msgspec.structs.fields(Settings):
        kind, about = get_args(hints[field.name])
        found[field.name] = Definition(field.name, kind, about, field.default)
    return found


DEFINITIONS: Final = _definitions()


def parse(line: str, kind: type[S]) -> S:
    """The settings that `dump` wrote. msgspec.ValidationError when it is no such line."""
    return msgspec.json.decode(line, type=kind, dec_hook=lambda wanted, value: wanted(value))
