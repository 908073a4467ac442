"""Turns the flags of `observe` into Hubble's filters, by Hubble's rules.

A flag for both sides (`--pod`) makes two filters, one for the source and one for the destination: either may match.
Flags for one side (`--from-pod`, `--to-port`) and for neither (`--verdict`) are added to both. Flags after `--not` make
separate filters; flows that match those are excluded. Errors are in the words of Hubble's command line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from l7proxy.errors import ConfigError
from l7proxy.flows import hubble_constants as hubble


@dataclass(frozen=True, slots=True)
class Flag:
    """One filter flag: the field it sets and its help text. `short` is its one-letter form. `value`: of a flag that
    takes none."""

    name: str
    field: str
    help: str
    short: str = ""
    value: str = ""


SIDED: Final = (
    Flag(
        "pod",
        "pod",
        "[NAMESPACE/]NAME-PREFIX; `NS/` is every pod of the namespace; without a slash the namespace is default",
    ),
    Flag("namespace", "", "Namespace of the pod", "-n"),
    Flag("all-namespaces", "", "Pods of any namespace", "-A", value="true"),
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
    Flag("verdict", "verdict", "Verdict: FORWARDED, DROPPED, AUDIT, REDIRECTED, ERROR, TRACED or TRANSLATED"),
    Flag("protocol", "protocol", "Protocol: tcp, udp, sctp, icmp, icmpv4, icmpv6, vrrp, igmp, http, dns or kafka"),
    Flag(
        "type",
        "event_type",
        "Event type: l7, drop, policy-verdict, capture, trace-sock or trace[:POINT]; POINT as to-proxy",
        "-t",
    ),
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
    Flag("ipv4", "ip_version", "Only IPv4", "-4", value="v4"),
    Flag("ipv6", "ip_version", "Only IPv6", "-6", value="v6"),
    Flag("ip-version", "ip_version", "IP version: v4, v6 or none"),
    Flag("snat-ip", "source_ip_xlated", "Address, or prefix, of the source after SNAT"),
    Flag("interface", "interface", "Name of the network interface"),
    Flag("encrypted", "encrypted", "Only encrypted traffic (WireGuard, IPsec)", value="true"),
    Flag("unencrypted", "encrypted", "Only traffic that is not encrypted", value="false"),
    Flag("trace-id", "trace_id", "Trace ID of the request"),
    Flag("ip-trace-id", "ip_trace_id", "Trace ID in the packet's IP options"),
    Flag("node-name", "node_name", "Node as [CLUSTER/]NODE, with `*` for any part of it"),
    Flag("node-label", "node_labels", "Label selector for the node"),
    Flag("uuid", "uuid", "UUID of the flow"),
    Flag("cel-expression", "experimental", "Expression in CEL; only with a --server that knows it"),
)

SIDES: Final = ("source", "destination")
IP_VERSIONS: Final = {
    **dict.fromkeys(("4", "v4", "ipv4", "ip4"), "IPv4"),
    **dict.fromkeys(("6", "v6", "ipv6", "ip6"), "IPv6"),
    "none": "IP_NOT_USED",
}
NAMESPACED: Final = ("pod", "service")


def _named() -> Iterator[tuple[str, Flag]]:
    for one in PLAIN:
        yield one.name, one
    for one in SIDED:
        for prefix in ("", "from-", "to-"):
            yield f"{prefix}{one.name}", one


FLAGS: Final[Mapping[str, Flag]] = dict(_named())
"""Every flag, without dashes."""
SHORTS: Final[Mapping[str, str]] = {one.short: one.name for one in (*PLAIN, *SIDED) if one.short}

CONFLICTS: Final = (
    *(
        (f"{side}-fqdn", f"{side}-ip", "ip", "fqdn", *others)
        for side in ("from", "to")
        for others in (
            (f"{side}-namespace", "namespace", f"{side}-all-namespaces", "all-namespaces"),
            (f"{side}-pod", "pod"),
        )
    ),
    *((f"{side}-{name}", "namespace", "all-namespaces") for name in NAMESPACED for side in ("from", "to")),
    *(
        (name, f"{side}-{name}")
        for name in ("label", "service", "port", "identity", "workload")
        for side in ("from", "to")
    ),
    ("encrypted", "unencrypted"),
)
"""Of each group at most one flag may be used."""

Flags = Mapping[str, Sequence[str]]
"""Flag without dashes → its values."""


def request(
    flags: Flags, negated: Flags, allowlist: Sequence[str] = (), denylist: Sequence[str] = ()
) -> dict[str, Any]:
    """The argument of `filters.build`. The lists are filters in JSON, as in `--allowlist`."""
    lists = {
        "whitelist": filters(flags) + raw("allowlist", allowlist),
        "blacklist": filters(negated) + raw("denylist", denylist),
    }
    return {name: found for name, found in lists.items() if found}


def filters(flags: Flags) -> list[dict[str, Any]]:
    """No filter, one, or one for each side."""
    given = {flag: list(values) for flag, values in flags.items() if values}
    if not given:
        return []
    _check_conflicts(given)
    both: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for flag in PLAIN:
        for one in both:
            _add(one, flag.field, flag.name, given)
    for flag in SIDED:
        for side, one in zip(SIDES, both, strict=True):
            _add(one, f"{side}_{flag.field}" if flag.field else "", flag.name, given)
        for side, prefix in zip(SIDES, ("from", "to"), strict=True):
            for one in both:
                _add(one, f"{side}_{flag.field}" if flag.field else "", f"{prefix}-{flag.name}", given)
    _add_namespaces(both, given)
    first, second = both
    return [first] if first == second else [first, second]


def _add(fields: dict[str, Any], field: str, name: str, given: Mapping[str, list[str]]) -> None:
    """The values of one flag, to those that its field has already."""
    if not field or name not in given:
        return
    values = [_read(name, value) for value in given[name]]
    if field == "experimental":
        fields[field] = {"cel_expression": values}
    else:
        fields[field] = fields.get(field, []) + values


def _add_namespaces(both: tuple[dict[str, Any], dict[str, Any]], given: Mapping[str, list[str]]) -> None:
    """A namespace alone selects all its pods; names of pods and Services without one are in it."""
    either, source, destination = (
        [*given.get(f"{prefix}namespace", []), *("" for _ in given.get(f"{prefix}all-namespaces", []))]
        for prefix in ("", "from-", "to-")
    )
    for one, own in zip(both, SIDES, strict=True):
        for side, namespaces in (("destination", destination), ("source", source), (own, either)):
            if namespaces:
                _check_namespaces(one, SIDES if namespaces is either else (side,), namespaces)
                _qualify(one, side, namespaces)
        for side in SIDES:
            _check_services(one.get(f"{side}_pod", []), one.get(f"{side}_service", []))


def _qualify(fields: dict[str, Any], side: str, namespaces: list[str]) -> None:
    names = [f"{side}_{kind}" for kind in NAMESPACED if f"{side}_{kind}" in fields]
    if not names:
        fields[f"{side}_pod"] = [f"{namespace}/" for namespace in namespaces]
    for field in names:
        fields[field] = [
            name
            for value in fields[field]
            for name in ([value] if "/" in value else [f"{namespace}/{value}" for namespace in namespaces])
        ]


def _check_namespaces(fields: Mapping[str, Any], sides: Sequence[str], namespaces: list[str]) -> None:
    for kind in NAMESPACED:
        for side in sides:
            for name in fields.get(f"{side}_{kind}", []):
                own, slash, _ = name.partition("/")
                wrong = [one for one in namespaces if slash and own and own != one]
                if wrong:
                    raise ConfigError(f'namespace conflict: "{wrong[0]}" does not contain "{name}"')


def _check_services(pods: list[str], services: list[str]) -> None:
    for pod in pods:
        namespace = pod.partition("/")[0] if "/" in pod else ""
        for service in services:
            if namespace and (service.partition("/")[0] if "/" in service else "") != namespace:
                raise ConfigError(f'namespace of service "{service}" conflict with pod "{namespace}"')


def _check_conflicts(given: Mapping[str, list[str]]) -> None:
    for group in CONFLICTS:
        found = [flag for flag in group if flag in given]
        if len(found) > 1:
            raise ConfigError(f"filters --{found[0]} and --{found[1]} cannot be combined")


# Values.


def _read(name: str, value: str) -> Any:
    flag = FLAGS[name]
    try:
        return _READ.get(flag.name, str)(value)
    except ConfigError as error:
        names = f"{flag.short}, --{name}" if flag.short and flag.name == name else f"--{name}"
        raise ConfigError(f'invalid argument "{value}" for "{names}" flag: {error}') from error


def _event_type(value: str) -> dict[str, Any]:
    """`l7`, `drop`, `policy-verdict`, `trace:to-endpoint`, or numbers."""
    name, colon, sub = value.partition(":")
    kind = hubble.EVENT_NAMES.get(name, _digits(name))
    if kind is None:
        raise ConfigError(
            f"unable to parse type '{name}', not a known type name and unable to parse as numeric value: "
            f"must be one of {', '.join(sorted(hubble.EVENT_NAMES))}"
        )
    if not colon:
        return {"type": kind}
    words = SUB_TYPES.get(kind, ())
    number = words.index(sub) if sub in words else _digits(sub)
    if number is None:
        hint = f": must be one of {', '.join(words)}" if words else ""
        raise ConfigError(
            f"unable to parse event sub-type '{sub}', not a known sub-type name and unable to parse as numeric value"
            f"{hint}"
        )
    return {"type": kind, "match_sub_type": True, "sub_type": number}


SUB_TYPES: Final[Mapping[int, Sequence[str]]] = {
    hubble.EventType.TRACE: hubble.TRACE_POINTS,
    hubble.EventType.AGENT: hubble.AGENT_EVENTS,
}


def _digits(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _identity(value: str) -> int:
    """A number, or a reserved name such as `world` or `reserved:world`."""
    name = value.removeprefix("reserved:")
    if name in hubble.RESERVED_NAMES:
        return hubble.RESERVED_NAMES.index(name)
    number = _digits(value)
    if number is None:
        raise ConfigError(
            f"invalid security identity, expected one of [{' '.join(hubble.RESERVED_NAMES[1:])}] or a numeric value"
        )
    return number


def _workload(value: str) -> dict[str, str]:
    kind, slash, name = value.partition("/")
    return {"name": name, "kind": kind} if slash else {"name": value}


def _header(value: str) -> dict[str, str]:
    key, colon, text = value.partition(":")
    if not colon:
        raise ConfigError(f'invalid http-header value "{value}", expected name:value')
    return {"key": key, "value": text.strip()}


def _tcp_flags(value: str) -> dict[str, bool]:
    found = dict.fromkeys(value.upper().split(","), True)
    known = [name for name, _ in hubble.TCP_FLAGS]
    for name in found:
        if name not in known:
            raise ConfigError(f"unknown tcp flag: {name.lower()}: must be one of {', '.join(known)}")
    return found


def _one_of(flag: str, words: Sequence[str]) -> Callable[[str], str]:
    """In capitals or not."""

    def read(value: str) -> str:
        if value.upper() not in words:
            raise ConfigError(f"invalid --{flag} value: {value}: must be one of {', '.join(words)}")
        return value.upper()

    return read


def _direction(value: str) -> str:
    if value.lower() not in ("ingress", "egress"):
        raise ConfigError(f"{value}: invalid traffic direction, expected ingress or egress")
    return value.upper()


def _ip_version(value: str) -> str:
    found = IP_VERSIONS.get(value.lower())
    if found is None:
        raise ConfigError("must be v4, v6 or none")
    return found


def _trace_id(value: str) -> str:
    """In JSON a 64-bit number is text."""
    number = _digits(value)
    if number is None or not 0 < number < 2**64:
        raise ConfigError("invalid --ip-trace-id value; must be greater than 0")
    return str(number)


_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    "type": _event_type,
    "identity": _identity,
    "workload": _workload,
    "http-header": _header,
    "tcp-flags": _tcp_flags,
    "ipv4": _ip_version,
    "ipv6": _ip_version,
    "ip-version": _ip_version,
    "traffic-direction": _direction,
    "verdict": _one_of("verdict", hubble.VERDICTS[1:]),
    "drop-reason-desc": _one_of("drop-reason-desc", tuple(hubble.DROP_REASONS)),
    "interface": lambda value: {"name": value},
    "encrypted": lambda value: value == "true",
    "unencrypted": lambda value: value == "true",
    "ip-trace-id": _trace_id,
}
"""Flag → how its value is read; those of other flags are passed on unchanged."""


# Filters as JSON.

FIELDS: Final = (
    "uuid", "source_ip", "source_ip_xlated", "source_pod", "source_fqdn", "source_label", "source_service",
    "source_workload", "source_cluster_name", "destination_ip", "destination_pod", "destination_fqdn",
    "destination_label", "destination_service", "destination_workload", "destination_cluster_name",
    "traffic_direction", "verdict", "drop_reason_desc", "interface", "event_type", "http_status_code", "protocol",
    "source_port", "destination_port", "reply", "dns_query", "source_identity", "destination_identity", "http_method",
    "http_path", "http_url", "http_header", "tcp_flags", "node_name", "node_labels", "ip_version", "trace_id",
    "ip_trace_id", "encrypted", "experimental",
)  # fmt: skip
"""In the order of the API's file, in which they are shown."""


def raw(option: str, values: Sequence[str]) -> list[dict[str, Any]]:
    """FlowFilters in JSON, several in a value or one; names as in the API or in camelCase."""
    found = []
    for value in values:
        rest = value.strip()
        while rest:
            try:
                filter_, end = json.JSONDecoder().raw_decode(rest)
            except ValueError as error:
                raise ConfigError(f"invalid --{option} flag: failed to decode '{value}': {error}") from error
            if not isinstance(filter_, dict):
                raise ConfigError(f"invalid --{option} flag: failed to decode '{value}': must be a JSON object")
            named = {_snake(name): _snaked(item) for name, item in filter_.items()}
            unknown = [name for name in named if name not in FIELDS]
            if unknown:
                raise ConfigError(
                    f"invalid --{option} flag: failed to decode '{value}': unknown field \"{unknown[0]}\""
                )
            found.append(named)
            rest = rest[end:].strip()
    return found


def _snaked(value: Any) -> Any:
    if isinstance(value, list):
        return [_snaked(item) for item in value]
    return {_snake(name): item for name, item in value.items()} if isinstance(value, dict) else value


def _snake(name: str) -> str:
    """`sourcePod` → `source_pod`; TCP flags are capitals only."""
    return name if name.isupper() else re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", name)


def as_yaml(found: Mapping[str, Any]) -> Iterator[str]:
    """The filters as `--print-raw-filters` shows them: lists of JSON texts that `--allowlist` and `--denylist` take."""
    for name, title in (("whitelist", "allowlist"), ("blacklist", "denylist")):
        if found.get(name):
            yield f"{title}:"
        for one in found.get(name, []):
            ordered = {field: one[field] for field in FIELDS if field in one}
            text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))
            for letter in "<>&\u2028\u2029":
                text = text.replace(letter, f"\\u{ord(letter):04x}")
            yield "    - '" + text.replace("'", "''") + "'"
    if not found:
        yield "{}"
