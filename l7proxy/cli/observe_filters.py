"""Turns the flags of `observe` into Hubble's filters, by Hubble's rules.

A flag for both sides (`--pod`) makes two filters, one for the source and one for the destination: either may match.
Flags for one side (`--from-pod`, `--to-port`) and for neither (`--verdict`) are added to every filter. Flags after
`--not` make separate filters; flows that match those are excluded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from l7proxy.errors import ConfigError
from l7proxy.flows import hubble_constants as hubble


@dataclass(frozen=True, slots=True)
class Flag:
    """One filter flag: the field it sets and its help text. `short` is its one-letter form."""

    name: str
    field: str
    help: str
    short: str = ""


SIDED: Final = (
    Flag(
        "pod",
        "pod",
        "[NAMESPACE/]NAME-PREFIX; `NS/` is every pod of the namespace; without a slash the namespace is default",
    ),
    Flag("namespace", "", "Namespace of the pod", "-n"),
    Flag("label", "label", "Label selector: `app=web`, `tier in (a,b)`, `!canary`, `reserved:world`", "-l"),
    Flag("ip", "ip", "Address, or prefix as 10.0.0.0/8"),
    Flag("port", "port", "Port number"),
    Flag("identity", "identity", "Identity: a number, or host, world, remote-node…"),
    Flag("service", "service", "[NAMESPACE/]NAME-PREFIX of a Service"),
    Flag("workload", "workload", "[KIND/]NAME of the pod's owner, as Deployment/web"),
    Flag("fqdn", "fqdn", "DNS name, with `*` for any part of it"),
    Flag("cluster", "cluster_name", "Cluster name"),
)
"""Each flag is --X for either end, --from-X for the source and --to-X for the destination."""

PLAIN: Final = (
    Flag("verdict", "verdict", "Verdict: FORWARDED, DROPPED, REDIRECTED, AUDIT or ERROR"),
    Flag("protocol", "protocol", "Protocol: tcp, udp, sctp, icmp, icmpv6, http or dns"),
    Flag("type", "event_type", "Event type: l7, drop, policy-verdict or trace[:POINT]", "-t"),
    Flag("traffic-direction", "traffic_direction", "Direction: ingress or egress"),
    Flag(
        "drop-reason-desc",
        "drop_reason_desc",
        "Drop reason: POLICY_DENIED (no rule allows it), POLICY_DENY (a rule denies it)…",
    ),
    Flag("http-status", "http_status_code", "HTTP status code, or its first digits as 5+ or 40+"),
    Flag("http-method", "http_method", "Method"),
    Flag("http-path", "http_path", "Regular expression (RE2) that matches anywhere in the path"),
    Flag("http-url", "http_url", "Regular expression (RE2) that matches anywhere in the URL"),
    Flag("http-header", "http_header", "Header as KEY:VALUE; only where the configuration records headers"),
    Flag("tcp-flags", "tcp_flags", "TCP flags that are set, as SYN,ACK"),
    Flag("ip-version", "ip_version", "IP version: v4 or v6"),
    Flag("node-name", "node_name", "Node as [CLUSTER/]NODE, with `*` for any part of it"),
    Flag("node-label", "node_labels", "Label selector for the node"),
    Flag("uuid", "uuid", "UUID of the flow"),
)

SIDES: Final = (("source", "from-"), ("destination", "to-"))
IP_VERSIONS: Final = {"v4": "IPv4", "4": "IPv4", "v6": "IPv6", "6": "IPv6"}
NAMESPACED: Final = ("pod", "service")
NAMES: Final = frozenset(
    [flag.name for flag in PLAIN] + [f"{prefix}{flag.name}" for flag in SIDED for prefix in ("", "from-", "to-")]
)
"""Every flag, without dashes."""

Flags = Mapping[str, Sequence[str]]
"""Flag without dashes → its values."""


def request(flags: Flags, negated: Flags) -> dict[str, Any]:
    """The argument of `filters.build`."""
    lists = {"whitelist": filters(flags), "blacklist": filters(negated)}
    return {name: found for name, found in lists.items() if found}


def filters(flags: Flags) -> list[dict[str, Any]]:
    """No filter, one, or one for each side."""
    given = {flag: list(values) for flag, values in flags.items() if values}
    _check_sides(given)
    common: dict[str, Any] = {flag.field: _values(flag.name, given[flag.name]) for flag in PLAIN if flag.name in given}
    for side, prefix in SIDES:
        common |= _side(given, side, prefix)
    either = [_side(given, side, "") for side, _ in SIDES]
    if not any(either):
        return [common] if common else []
    return [common | one for one in either]


def _side(given: Mapping[str, list[str]], side: str, prefix: str) -> dict[str, Any]:
    """The fields of one side. A namespace alone selects all its pods; with names it qualifies them."""
    found = {
        f"{side}_{flag.field}": _values(flag.name, given[f"{prefix}{flag.name}"])
        for flag in SIDED
        if flag.field and f"{prefix}{flag.name}" in given
    }
    namespaces = given.get(f"{prefix}namespace", [])
    if not namespaces:
        return found
    qualified = [f"{side}_{flag}" for flag in NAMESPACED if f"{side}_{flag}" in found]
    for field in qualified:
        found[field] = [
            name if "/" in name else f"{namespace}/{name}" for name in found[field] for namespace in namespaces
        ]
    if not qualified:
        found[f"{side}_pod"] = [f"{namespace}/" for namespace in namespaces]
    return found


def _event_type(value: str) -> dict[str, Any]:
    """`l7`, `drop`, `policy-verdict`, `trace:to-endpoint`, or numbers."""
    name, colon, sub = value.partition(":")
    kind = hubble.EVENT_NAMES.get(name, int(name) if name.isascii() and name.isdigit() else None)
    if kind is None:
        raise ConfigError(
            f"--type {value}: unknown type {name!r}, must be one of {', '.join(sorted(hubble.EVENT_NAMES))}"
        )
    if not colon:
        return {"type": kind}
    if kind == hubble.EventType.TRACE and sub in hubble.TRACE_POINTS:
        return {"type": kind, "match_sub_type": True, "sub_type": hubble.TRACE_POINTS.index(sub)}
    if sub.isascii() and sub.isdigit():
        return {"type": kind, "match_sub_type": True, "sub_type": int(sub)}
    raise ConfigError(f"--type {value}: unknown sub type {sub!r}")


def _identity(value: str) -> int:
    """A number, or a reserved name such as `world` or `reserved:world`."""
    name = value.removeprefix("reserved:")
    if name in hubble.RESERVED_NAMES:
        return hubble.RESERVED_NAMES.index(name)
    if not value.isascii() or not value.isdigit():
        raise ConfigError(f"--identity {value}: must be a number or one of {', '.join(hubble.RESERVED_NAMES)}")
    return int(value)


def _workload(value: str) -> dict[str, str]:
    kind, slash, name = value.partition("/")
    return {"kind": kind, "name": name} if slash else {"name": value}


def _header(value: str) -> dict[str, str]:
    key, colon, text = value.partition(":")
    if not colon:
        raise ConfigError(f"--http-header {value}: must be KEY:VALUE")
    return {"key": key, "value": text.strip()}


_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    "type": _event_type,
    "identity": _identity,
    "workload": _workload,
    "http-header": _header,
    "tcp-flags": lambda value: dict.fromkeys(value.upper().split(","), True),
    "ip-version": lambda value: IP_VERSIONS.get(value.lower(), value),
    "traffic-direction": str.upper,
    "verdict": str.upper,
    "drop-reason-desc": str.upper,
}
"""Flag → how its value is read; those of other flags are passed on unchanged."""


def _values(flag: str, values: list[str]) -> list[Any]:
    return [_READ.get(flag, str)(value) for value in values]


def _check_sides(given: Mapping[str, list[str]]) -> None:
    """Refuses combinations with an unclear meaning."""
    for flag in SIDED:
        for _, prefix in SIDES:
            if flag.name in given and f"{prefix}{flag.name}" in given:
                raise ConfigError(
                    f"--{flag.name} covers both ends already: it cannot be combined with --{prefix}{flag.name}"
                )
    if "namespace" in given:
        for other in ("from-pod", "to-pod", "from-service", "to-service"):
            if other in given:
                raise ConfigError(
                    f"--namespace cannot be combined with --{other}: use --{other.split('-')[0]}-namespace"
                )
    for prefix in ("", "from-", "to-"):
        named = [f"{prefix}{flag}" for flag in ("pod", "ip", "fqdn") if f"{prefix}{flag}" in given]
        if len(named) > 1:
            raise ConfigError(f"--{named[0]} cannot be combined with --{named[1]}: each names the same end")
        if f"{prefix}namespace" in given and named and named[0] != f"{prefix}pod":
            raise ConfigError(f"--{prefix}namespace cannot be combined with --{named[0]}: each names the same end")
