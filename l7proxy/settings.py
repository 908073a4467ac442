"""Reads the operator's settings from a YAML file and the command line. Errors name unknown keys and wrong types.

Settings are not passed around as a whole: the composition roots pass each component only the values that it needs.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec

from l7proxy.cluster.identity_labels import LabelFilter
from l7proxy.cluster.state import ClusterState
from l7proxy.errors import ConfigError, SourceError
from l7proxy.gate.options import HttpOptions
from l7proxy.model.verdict import Protocol
from l7proxy.policy.encapsulation import TUNNEL_PORTS, TUNNEL_PROTOCOLS, no_encapsulation
from l7proxy.policy.lang.options import Options
from l7proxy.policy.rules import Reach
from l7proxy.sources.files.yaml_lines import Document, read
from l7proxy.wire.path import PathRules
from tproxy_rules import desired

DEFAULT_RESULTS: Final = Path("/var/lib/cni/results")
KUBERNETES: Final = "kubernetes"
LONGEST_SOCKET_PATH: Final = 107  # unix(7): sun_path


def _node_name() -> str:
    return os.environ.get("NODE_NAME") or socket.gethostname()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one node. In the file, names may be written with `-` as on the command line."""

    source: str = KUBERNETES
    """`kubernetes`, or a directory of manifests."""
    node: str = msgspec.field(default_factory=_node_name)
    cluster: str = "default"
    backend: Literal["auto", "nftables", "iptables"] = "auto"
    workers: int = msgspec.field(default_factory=_cores)
    run_dir: Path = Path("/run/l7proxy")
    cni_results: Path = DEFAULT_RESULTS
    cni_ignored_networks: tuple[str, ...] = ()
    """CNI networks whose containers are not pods (of podman or nerdctl): their interfaces are not closed."""
    refuse: Literal["reset", "drop"] = "reset"
    flow_log: str = ""
    """A file, or `stdout`; empty: none."""
    flow_log_max_bytes: int = 10 << 20
    flow_log_backups: int = 5
    flow_ring: int = 4095
    flow_headers: tuple[str, ...] = ()
    flow_query: bool = False
    audit: bool = False
    """Audit mode on the whole node: traffic that policy denies is allowed and reported as AUDIT."""
    secrets_namespace: str = ""
    """Namespace whose secrets policies may use besides those of their own namespace; empty: none."""
    labels: tuple[str, ...] = ()
    """Regular expressions of pod labels to include in identities, besides Cilium's; a leading `!` excludes labels."""
    enable_node_selector_labels: bool = False
    """Give nodes identities by their labels: enables fromNodes and toNodes."""
    enable_icmp_rules: bool = True
    enable_extended_ip_protocols: bool = False
    """Allow VRRP, IGMP, GRE, IPIP, IPV6, ESP and AH in policies."""
    enable_non_default_deny_policies: bool = True
    """Apply enableDefaultDeny of policies; false: ignore it."""
    policy_enforcement_mode: Literal["default", "always"] = "default"
    """`always`: also deny all traffic of pods that no policy selects."""
    policy_cidr_match_mode: Literal["", "nodes", "nodes,pods"] = ""
    """What CIDRs of Cilium policies match besides external addresses."""
    kubernetes_network_policy: Literal["kubernetes", "cilium"] = "kubernetes"
    """Semantics of Kubernetes NetworkPolicy: those of the Kubernetes API, or those of Cilium."""
    tunnel_ports: tuple[int, ...] = TUNNEL_PORTS
    """UDP ports of tunnels: denied to pods for every destination, unless a policy allows exactly that port."""
    tunnel_protocols: tuple[int, ...] = TUNNEL_PROTOCOLS
    """IP protocols of tunnels: denied to pods for every destination, unless a policy allows exactly that protocol."""
    deny_header: bool = False
    """Put the reason of a denial in the header x-l7proxy-denied of the 403 response."""
    connect: bool = False
    """Evaluate CONNECT by method and host instead of refusing it. Traffic in its tunnel is not inspected."""
    matrix_parameters: Literal["refuse", "pass"] = "refuse"
    """Paths with `;`, which servers parse differently."""
    escaped_slashes: Literal["redirect", "refuse"] = "redirect"
    """Paths with %2F or %5C: redirect to the normalised path, or refuse."""
    proxy_port: int = 15001
    mark_proxy: int = 0x01000000
    mark_upstream: int = 0x02000000
    route_table: int = 7777
    rule_priority: int = 100
    nflog_group: int = 77
    log_rate: int = 1000
    worker_connections: int = 16384
    """Client connections per worker; one endpoint may use half."""
    worker_memory: int = 256
    """MiB per worker for data in transit that the receiver has not read yet. One endpoint may use a quarter. A session
    takes about 25 KiB on top, and a worker without sessions 40 MiB."""
    drain: float = 30.0
    """Seconds for open connections to finish when a worker is stopped."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def agent_socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def link_socket(self) -> Path:
        return self.run_dir / "link.sock"

    @property
    def http(self) -> HttpOptions:
        return HttpOptions(
            paths=PathRules(
                allow_matrix=self.matrix_parameters == "pass",
                redirect_escaped_slashes=self.escaped_slashes == "redirect",
                allow_connect=self.connect,
            ),
            flow_headers=frozenset(name.lower().encode() for name in self.flow_headers),
            flow_query=self.flow_query,
            deny_header=self.deny_header,
        )

    @property
    def policy_options(self) -> Options:
        return Options(
            node_selectors=self.enable_node_selector_labels,
            icmp=self.enable_icmp_rules,
            extended_protocols=self.enable_extended_ip_protocols,
            cidr_reach=CIDR_MATCH[self.policy_cidr_match_mode],
            non_default_deny=self.enable_non_default_deny_policies,
            kubernetes_like_cilium=self.kubernetes_network_policy == "cilium",
        )

    @property
    def kernel(self) -> desired.Settings:
        return desired.Settings(
            listeners=((Protocol.TCP.value, self.proxy_port),),
            mark_proxy=self.mark_proxy,
            mark_upstream=self.mark_upstream,
            route_table=self.route_table,
            rule_priority=self.rule_priority,
            nflog_group=self.nflog_group,
            refuse_with_reset=self.refuse == "reset",
            log_rate=self.log_rate,
        )

    def empty_cluster(self) -> ClusterState:
        """State without resources that reads policies like an agent with these settings."""
        return ClusterState(
            cluster=self.cluster,
            secrets_namespace=self.secrets_namespace,
            audit_all=self.audit,
            options=self.policy_options,
            kept=LabelFilter(self.labels),
            enforce_always=self.policy_enforcement_mode == "always",
            everywhere=no_encapsulation(self.tunnel_ports, self.tunnel_protocols),
        )

    def dump(self) -> str:
        """The content of a file that `load` reads as the same settings."""
        return msgspec.json.encode(self, enc_hook=str).decode() + "\n"


CIDR_MATCH: Final[Mapping[str, Reach]] = {"": Reach.OUTSIDE, "nodes": Reach.NODES, "nodes,pods": Reach.ANYWHERE}
RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "workers": (1, 256),
    "proxy_port": (1, 65535),
    "route_table": (1, 0xFFFFFFFF),
    "rule_priority": (3, 32765),
    "nflog_group": (1, 65535),
    "log_rate": (1, 1_000_000),
    "flow_log_max_bytes": (4096, 1 << 40),
    "flow_log_backups": (0, 1000),
    "worker_connections": (2, 1 << 20),
    "worker_memory": (16, 1 << 20),
    "drain": (0, 3600),
}
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    name: get_args(kind) for name, kind in get_type_hints(Settings).items() if get_origin(kind) is Literal
}
WITH_PORTS: Final = frozenset(protocol.value for protocol in Protocol)
_KERNEL_TABLES: Final = (253, 254, 255)  # ip-route(8): default, main, local


def load(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The file's values, replaced by those of `overrides` that are not None. ConfigError names the wrong setting."""
    values = _file(path) if path is not None else {}
    values |= {key: value for key, value in (overrides or {}).items() if value is not None}
    place = f"{path}: " if path is not None else ""
    for key in values:
        if key not in Settings.__struct_fields__:
            near = difflib.get_close_matches(key, Settings.__struct_fields__, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{place}unknown setting {key!r}{hint}")
    try:
        settings = msgspec.convert(values, Settings, dec_hook=_decode)
    except msgspec.ValidationError as error:
        field = re.search(r"`\$\.(\w+)", str(error))
        what = str(error).partition(" - at")[0]
        if field and (choices := CHOICES.get(field[1])):
            what = f"{values[field[1]]!r} is not supported, must be one of {', '.join(choices)}"
        raise ConfigError(f"{place}{field[1]}: {what}" if field else f"{place}{what}") from error
    _check(settings, place)
    return settings


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"expected a path, not {value!r}")


def _file(path: Path) -> dict[str, Any]:
    try:
        parts = read(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except SourceError as error:
        raise ConfigError(f"{path}: {error.message}") from error
    documents = [part for part in parts if not (isinstance(part, Document) and part.value is None)]
    if not documents:
        return {}
    (first, *rest) = documents
    if not isinstance(first, Document):
        raise ConfigError(f"{path}:{first.error.line or first.line}: {first.error.message}")
    if rest or not isinstance(first.value, dict):
        raise ConfigError(f"{path}: the configuration must be a mapping of settings")
    return {key.replace("-", "_"): value for key, value in first.value.items()}


def _check(settings: Settings, place: str) -> None:
    for name, (low, high) in RANGES.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ConfigError(f"{place}{name}: must be from {low} to {high}, not {value}")
    for name in ("mark_proxy", "mark_upstream"):
        value = getattr(settings, name)
        if not 0 < value <= 0x80000000 or value & (value - 1):
            raise ConfigError(f"{place}{name}: must be a single bit of the packet mark, not {value:#x}")
    if settings.mark_proxy == settings.mark_upstream:
        raise ConfigError(f"{place}mark_proxy and mark_upstream must be different bits")
    try:
        LabelFilter(settings.labels)
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from error
    _check_tunnels(settings, place)
    if settings.route_table in _KERNEL_TABLES:
        raise ConfigError(f"{place}route_table: {settings.route_table} is reserved by the kernel")
    if not settings.node or len(settings.node) > 253 or _is_address(settings.node):
        raise ConfigError(f"{place}node: {settings.node!r} is not a valid node name")
    if len(os.fsencode(settings.agent_socket)) > LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"{place}run_dir: {settings.run_dir} is too long for the path of a Unix socket: choose a shorter directory"
        )


def _check_tunnels(settings: Settings, place: str) -> None:
    for port in settings.tunnel_ports:
        if not 1 <= port <= 65535:
            raise ConfigError(f"{place}tunnel_ports: {port} is not a UDP port (1 to 65535)")
    for protocol in settings.tunnel_protocols:
        if not 0 <= protocol <= 255 or protocol in WITH_PORTS:
            raise ConfigError(
                f"{place}tunnel_protocols: {protocol} is not an IP protocol (0 to 255) without ports or ICMP types"
            )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
