"""Which flows to show: Hubble's FlowFilter, field by field.

A filter is an object of fields. A field matches if any of its values matches; a filter if all of its fields match; a
whitelist if any of its filters matches. A flow that matches a blacklist filter is excluded. An empty field counts as
absent, so an empty filter matches everything. Regular expressions are RE2 and match anywhere in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import re2

from l7proxy.errors import ConfigError
from l7proxy.flows import hubble_constants as hubble
from l7proxy.flows.flow import Endpoint, Flow, Http, Service
from l7proxy.flows.selector import selector
from l7proxy.model.labels import Label, LabelSet

Predicate: TypeAlias = Callable[[Flow], bool]
Take: TypeAlias = Callable[[Flow], Any]
Read: TypeAlias = Callable[[str, Any], Any]
"""Checks one value of a field, given the field's name."""
Make: TypeAlias = Callable[[str, list[Any]], Predicate]
"""Checks the values of a field when the filter is built; its predicate matches flows later."""
Fields: TypeAlias = list[tuple[str, Predicate]]
"""One filter: what each of its fields asks."""

SOURCE, DESTINATION = "source", "destination"
MAX_VALUES: Final = 1024
"""Limit per field. Filters come from a socket, and every flow is checked against all values."""
LONGEST_PATTERN: Final = 4096
"""Characters of a regular expression."""
PATTERN_MEMORY: Final = 1 << 20
"""Bytes that RE2 may use for one; a larger one is refused."""


def everything(_: Flow) -> bool:
    """The filter that keeps all. Compared by identity, so that no flow is made only to be filtered."""
    return True


def build(request: Mapping[str, Any] | None) -> Predicate:
    """A predicate of `{"whitelist": [filter…], "blacklist": [filter…]}`. ConfigError names the invalid field."""
    allowed, denied = ([_all(fields) for fields in found] for found in lists(request))
    if not allowed and not denied:
        return everything

    def wanted(flow: Flow) -> bool:
        return (not allowed or any(keep(flow) for keep in allowed)) and not any(drop(flow) for drop in denied)

    return wanted


def lists(request: Mapping[str, Any] | None) -> tuple[list[Fields], list[Fields]]:
    """The filters of the whitelist and of the blacklist, field by field."""
    request = _object({} if request is None else request, "filters")
    for key in request:
        if key not in ("whitelist", "blacklist"):
            raise ConfigError(f"invalid filters: unknown list {key!r}, must be whitelist or blacklist")
    allowed = [_fields(_object(item, "whitelist")) for item in _list(request.get("whitelist"), "whitelist")]
    denied = [_fields(_object(item, "blacklist")) for item in _list(request.get("blacklist"), "blacklist")]
    return allowed, denied


def one(fields: Mapping[str, Any]) -> Predicate:
    """One filter: all of its fields must match."""
    return _all(_fields(fields))


def _all(fields: Fields) -> Predicate:
    predicates = [predicate for _, predicate in fields]
    if len(predicates) == 1:
        return predicates[0]
    return lambda flow: all(predicate(flow) for predicate in predicates)


def _fields(fields: Mapping[str, Any]) -> Fields:
    predicates = []
    for name, values in fields.items():
        if name not in FIELDS:
            raise ConfigError(f"invalid filter: unknown field {name!r}")
        found = _list(values, name)
        if found:
            predicates.append((name, FIELDS[name](name, found)))
    _check_http(fields)
    return predicates


def _check_http(fields: Mapping[str, Any]) -> None:
    """Refuses an HTTP filter combined with other event types only: it could match nothing."""
    asked = [name for name in fields if name.startswith("http_") and fields[name]]
    types = [_object(value, "event_type") for value in _list(fields.get("event_type"), "event_type")]
    if asked and types and not any(kind.get("type", 0) == hubble.EventType.L7 for kind in types):
        what = asked[0].replace("_", " ")
        raise ConfigError(f"filtering by {what} requires the event type filter to only match 'l7' events")


# One function per kind of field.


def _one_of(read: Read, take: Take) -> Make:
    """The flow's value is one of the given values. A flow without a value has None, which never matches."""

    def make(name: str, values: list[Any]) -> Predicate:
        wanted = frozenset(read(name, value) for value in values)
        return lambda flow: take(flow) in wanted

    return make


def _word(words: tuple[str, ...], take: Callable[[Flow], str]) -> Make:
    """An enum's value. A flow without one has the enum's zero value."""
    return _one_of(lambda name, value: _enum(name, words, value), lambda flow: take(flow) or words[0])


def _address(side: str) -> Make:
    """An address as text, or a prefix that contains it; host bits in a prefix are allowed."""

    def make(name: str, values: list[Any]) -> Predicate:
        exact, prefixes = set(), []
        for value in values:
            text = _text(name, value)
            try:
                if "/" in text:
                    prefixes.append(ip_network(text, strict=False))
                else:
                    ip_address(text)
                    exact.add(text)
            except ValueError as error:
                kind = "prefix" if "/" in text else "address"
                raise ConfigError(f'invalid IP {kind} "{text}" in filter: {error}') from error

        def matches(flow: Flow) -> bool:
            found = getattr(flow.ip, side) if flow.ip else ""
            return bool(found) and (found in exact or any(ip_address(found) in prefix for prefix in prefixes))

        return matches

    return make


def _name(take: Callable[[Flow], tuple[str, str]]) -> Make:
    """`name` in the namespace default, `ns/`, `ns/name`, `/name`: namespaces are exact, names are prefixes."""

    def make(name: str, values: list[Any]) -> Predicate:
        wanted = []
        for value in values:
            text = _text(name, value)
            if not text:
                raise ConfigError(f"invalid {name} filter: invalid filter, name must not be empty")
            namespace, slash, rest = text.partition("/")
            wanted.append((namespace, rest.partition("/")[0]) if slash else ("default", namespace))

        def matches(flow: Flow) -> bool:
            found, called = take(flow)
            if not found and not called:
                return False
            return any((not ns or found == ns) and called.startswith(prefix) for ns, prefix in wanted)

        return matches

    return make


def _label(take: Callable[[Flow], LabelSet]) -> Make:
    """Kubernetes selectors over the labels of one end, or of the node."""

    def make(name: str, values: list[Any]) -> Predicate:
        selectors = [selector(_text(name, value), what=name) for value in values]

        def matches(flow: Flow) -> bool:
            labels = take(flow)
            return any(one.matches(labels) for one in selectors)

        return matches

    return make


def _workload(side: str) -> Make:
    def make(name: str, values: list[Any]) -> Predicate:
        wanted = [_object(value, name) for value in values]

        def matches(flow: Flow) -> bool:
            end = _end(flow, side)
            return end is not None and any(
                all(not value or getattr(found, key, None) == value for key, value in one.items())
                for found in end.workloads
                for one in wanted
            )

        return matches

    return make


def _fqdn(take: Callable[[Flow], Iterable[str]]) -> Make:
    """DNS names, whole; `*` is any run of letters, digits, dots and dashes."""

    def make(name: str, values: list[Any]) -> Predicate:
        patterns = [_fqdn_pattern(name, _text(name, value)) for value in values]
        return lambda flow: any(pattern.fullmatch(found) for found in take(flow) for pattern in patterns)

    return make


def _node_name(name: str, values: list[Any]) -> Predicate:
    """`node`, `cluster/node`, `cluster/` or `/node`; a flow's name without a cluster is in `default`."""
    wanted = []
    for value in values:
        text = _text(name, value)
        if not text or text.count("/") > 1:
            raise ConfigError(f"invalid {name} filter: {'too many slashes in' if text else 'empty'} pattern")
        cluster, _, node = text.rpartition("/")
        wanted.append([_fqdn_pattern(name, part) if part else None for part in (cluster, node)])

    def matches(flow: Flow) -> bool:
        if not flow.node_name:
            return False
        cluster, slash, node = flow.node_name.rpartition("/")
        found = (cluster if slash else "default", node)
        return any(
            all(not pattern or pattern.fullmatch(part) for pattern, part in zip(patterns, found, strict=True))
            for patterns in wanted
        )

    return matches


def _protocol(name: str, values: list[Any]) -> Predicate:
    """By the layers that the flow has: an HTTP request is both `tcp` and `http`."""
    wanted = [_text(name, value).lower() for value in values]
    for word in wanted:
        if word not in PROTOCOLS:
            raise ConfigError(f'invalid protocol filter: unknown protocol: "{word}"')
    return lambda flow: any(PROTOCOLS[word](flow) for word in wanted)


def _status(name: str, values: list[Any]) -> Predicate:
    """`404` exactly, or a prefix such as `4+` and `40+`. A flow without a status does not match."""
    given = [str(value) for value in values]
    for text in given:
        if not re.fullmatch(r"[1-5](?:[0-9][0-9]|[0-9]?\+)", text, re.ASCII):
            raise ConfigError(f'invalid http status code filter: invalid status code prefix: "{text}"')
    exact = frozenset(given)
    prefixes = tuple(text[:-1] for text in given if text.endswith("+"))

    def matches(flow: Flow) -> bool:
        code = str(http.code) if (http := _http(flow)) and http.code else ""
        return code in exact or code.startswith(prefixes)

    return matches


def _pattern(what: str, take: Callable[[Flow], str | None]) -> Make:
    """Matches anywhere in the text; a flow without the text does not match."""

    def make(name: str, values: list[Any]) -> Predicate:
        patterns = [_regex(what, _text(name, value)) for value in values]
        return lambda flow: (text := take(flow)) is not None and any(one.search(text) for one in patterns)

    return make


def _header(name: str, values: list[Any]) -> Predicate:
    wanted = {
        (_text(name, item.get("key", "")), _text(name, item.get("value", "")))
        for item in (_object(value, "http header filter") for value in values)
    }

    return lambda flow: (
        (http := _http(flow)) is not None and any((one.key, one.value) in wanted for one in http.headers)
    )


def _event_type(name: str, values: list[Any]) -> Predicate:
    """Type 0 is any. The sub type is compared only if `match_sub_type` is set, because 0 is a valid sub type."""
    wanted = []
    for value in values:
        item = _object(value, name)
        sub_type = _number(name, item.get("sub_type", 0)) if item.get("match_sub_type") else None
        wanted.append((_number(name, item.get("type", 0)), sub_type))

    def matches(flow: Flow) -> bool:
        event = flow.event_type
        return event is not None and any(
            kind in (0, event.type) and sub_type in (None, event.sub_type) for kind, sub_type in wanted
        )

    return matches


def _tcp_flags(name: str, values: list[Any]) -> Predicate:
    """All flags named in a filter must be set; others may be set too."""
    wanted = [{flag.lower() for flag, on in _object(value, name).items() if on} for value in values]
    known = {flag.lower() for flag, _ in hubble.TCP_FLAGS}
    for flags in wanted:
        if flags - known:
            raise ConfigError(f"invalid tcp flags filter: unknown flag {min(flags - known)!r}")

    def matches(flow: Flow) -> bool:
        found = flow.l4.tcp.flags if flow.l4 and flow.l4.tcp else None
        return found is not None and any(all(getattr(found, flag) for flag in flags) for flags in wanted)

    return matches


def _interface(name: str, values: list[Any]) -> Predicate:
    """By index, name, or both; a flow without an interface does not match."""
    wanted = [
        (_number(name, item.get("index", 0)), _text(name, item.get("name", "")))
        for item in (_object(value, name) for value in values)
    ]

    def matches(flow: Flow) -> bool:
        found = flow.interface
        return found is not None and any(
            index in (0, found.index) and called in ("", found.name) for index, called in wanted
        )

    return matches


def _experimental(name: str, values: list[Any]) -> Predicate:
    """Refused if it is used: ignoring it would show flows that the user excluded."""
    if any(_object(value, name).get("cel_expression") for value in values):
        raise ConfigError("error compiling CEL expression: CEL filters are not supported")
    return everything


# Values read from a flow.


def _identity_of(side: str) -> Take:
    return lambda flow: end.identity if (end := _end(flow, side)) else None


def _cluster_of(side: str) -> Take:
    return lambda flow: end.cluster_name if (end := _end(flow, side)) else ""


def _port_of(side: str) -> Take:
    def take(flow: Flow) -> int | None:
        ports = flow.l4.ports if flow.l4 else None
        return getattr(ports, f"{side}_port") if ports else None

    return take


def _http(flow: Flow) -> Http | None:
    return flow.l7.http if flow.l7 else None


def _method_of(flow: Flow) -> str | None:
    return http.method.upper() if (http := _http(flow)) else None


def _drop_reason(flow: Flow) -> str | None:
    return flow.drop_reason_desc or "DROP_REASON_UNKNOWN" if flow.verdict == "DROPPED" else None


def _reply(flow: Flow) -> bool | None:
    """A dropped packet counts as not a reply: older clients send `false` and expect dropped packets too."""
    return False if flow.is_reply is None and flow.verdict == "DROPPED" else flow.is_reply


def _trace_id(flow: Flow) -> str:
    context = flow.trace_context
    return context.parent.trace_id if context and context.parent else ""


def _end(flow: Flow, side: str) -> Endpoint | None:
    return flow.source if side == SOURCE else flow.destination


def _pod_of(side: str) -> Callable[[Flow], tuple[str, str]]:
    return lambda flow: (end.namespace, end.pod_name) if (end := _end(flow, side)) else ("", "")


def _service_of(side: str) -> Callable[[Flow], tuple[str, str]]:
    def take(flow: Flow) -> tuple[str, str]:
        service: Service | None = getattr(flow, f"{side}_service")
        return (service.namespace, service.name) if service else ("", "")

    return take


def _url(flow: Flow) -> str | None:
    return http.url if (http := _http(flow)) else None


def _path(flow: Flow) -> str | None:
    """The path of the URL, without the query; None without a valid URL."""
    url = _url(flow)
    if not url:
        return None
    try:
        return urlsplit(url).path
    except ValueError:
        return None


def _dns_query(flow: Flow) -> str | None:
    return flow.l7.dns.query if flow.l7 and flow.l7.dns else None


PROTOCOLS: Final[Mapping[str, Predicate]] = {
    "tcp": lambda flow: bool(flow.l4 and flow.l4.tcp is not None),
    "udp": lambda flow: bool(flow.l4 and flow.l4.udp is not None),
    "sctp": lambda flow: bool(flow.l4 and flow.l4.sctp is not None),
    "icmp": lambda flow: bool(flow.l4 and (flow.l4.icmpv4 is not None or flow.l4.icmpv6 is not None)),
    "icmpv4": lambda flow: bool(flow.l4 and flow.l4.icmpv4 is not None),
    "icmpv6": lambda flow: bool(flow.l4 and flow.l4.icmpv6 is not None),
    "vrrp": lambda flow: bool(flow.l4 and flow.l4.vrrp is not None),
    "igmp": lambda flow: bool(flow.l4 and flow.l4.igmp is not None),
    "dns": lambda flow: bool(flow.l7 and flow.l7.dns is not None),
    "http": lambda flow: bool(flow.l7 and flow.l7.http is not None),
    "kafka": lambda flow: bool(flow.l7 and flow.l7.kafka is not None),
}


# Labels.


def _labels_of(side: str) -> Callable[[Flow], LabelSet]:
    return lambda flow: _label_set(end.labels if (end := _end(flow, side)) else ())


def _node_labels(flow: Flow) -> LabelSet:
    """The labels of a node have no source."""
    return LabelSet.of(Label("", *_split(text)) for text in flow.node_labels)


@lru_cache(maxsize=4096)
def _label_set(labels: tuple[str, ...]) -> LabelSet:
    """Parses `source:key=value` texts. Cached: the same few ends occur again and again."""
    found = []
    for text in labels:
        source, colon, rest = text.partition(":")
        found.append(Label(source if colon else "", *_split(rest if colon else text)))
    return LabelSet.of(found)


def _split(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


# Values from a socket.


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"invalid {where}: expected an object, not {type(value).__name__}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    """A repeated field; a single value is a list of one."""
    if value is None:
        return []
    found = list(value) if isinstance(value, list | tuple) else [value]
    if len(found) > MAX_VALUES:
        raise ConfigError(f"invalid {where}: {len(found)} values, the limit is {MAX_VALUES}")
    return found


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"invalid {name} filter: expected a string, not {value!r}")
    return value


def _some_text(name: str, value: Any) -> str:
    text = _text(name, value)
    if not text:
        raise ConfigError(f"invalid {name} filter: must not be empty")
    return text


def _number(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str) or not _is_number(str(value)):
        raise ConfigError(f"invalid {name} filter: expected a number, not {value!r}")
    return int(value)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _port(name: str, value: Any) -> int:
    text = str(value)
    if not _is_number(text) or int(text) > 65535:
        side = name.replace("_", " ")
        raise ConfigError(f'invalid {side} filter: invalid port "{text}": must be a number from 0 to 65535')
    return int(text)


def _enum(name: str, words: tuple[str, ...], value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(words):
        return words[value]
    if value not in words:
        raise ConfigError(f"invalid {name} filter: {value!r} is not supported, must be one of {', '.join(words[1:])}")
    return str(value)


def _regex(what: str, pattern: str) -> Any:
    if len(pattern) > LONGEST_PATTERN:
        raise ConfigError(f"invalid {what} filter: longer than {LONGEST_PATTERN} characters")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = PATTERN_MEMORY
    try:
        return re2.compile(pattern, options=options)
    except re2.error as error:
        text = error.args[0] if error.args else ""
        raise ConfigError(
            f"invalid {what} filter: {text.decode('utf-8', 'replace') if isinstance(text, bytes) else text}"
        ) from error


def _fqdn_pattern(name: str, text: str) -> Any:
    """An RE2 pattern: a client may send many stars, and matching must stay linear."""
    wanted = text.strip().lower().removesuffix(".")
    if not wanted or not re.fullmatch(r"[a-z0-9._*-]+", wanted) or wanted.endswith("."):
        raise ConfigError(f"invalid {name} filter: {text!r} is not a DNS name (letters, digits, . - _ and *)")
    parts = re.split(r"(\*)", wanted)
    return _regex(name, "".join("[-.0-9a-z]*" if part == "*" else re.escape(part) for part in parts))


def _of_end(side: str) -> dict[str, Make]:
    """The fields that each end has."""
    fields = {
        "ip": _address(side),
        "pod": _name(_pod_of(side)),
        "service": _name(_service_of(side)),
        "label": _label(_labels_of(side)),
        "workload": _workload(side),
        "identity": _one_of(_number, _identity_of(side)),
        "port": _one_of(_port, _port_of(side)),
        "fqdn": _fqdn(lambda flow: getattr(flow, f"{side}_names")),
        "cluster_name": _one_of(_some_text, _cluster_of(side)),
    }
    return {f"{side}_{field}": make for field, make in fields.items()}


FIELDS: Final[Mapping[str, Make]] = {
    **_of_end(SOURCE),
    **_of_end(DESTINATION),
    "source_ip_xlated": _address("source_xlated"),
    "verdict": _word(hubble.VERDICTS, lambda flow: flow.verdict),
    "traffic_direction": _word(hubble.DIRECTIONS, lambda flow: flow.traffic_direction),
    "ip_version": _word(hubble.IP_VERSIONS, lambda flow: flow.ip.version if flow.ip else ""),
    "drop_reason_desc": _one_of(_text, _drop_reason),
    "event_type": _event_type,
    "protocol": _protocol,
    "tcp_flags": _tcp_flags,
    "http_status_code": _status,
    "http_method": _one_of(lambda name, value: _text(name, value).upper(), _method_of),
    "http_path": _pattern("http path", _path),
    "http_url": _pattern("http url", _url),
    "http_header": _header,
    "dns_query": _pattern("DNS query", _dns_query),
    "node_name": _node_name,
    "node_labels": _label(_node_labels),
    "reply": _one_of(lambda _, value: bool(value), _reply),
    "encrypted": _one_of(lambda _, value: bool(value), lambda flow: flow.ip is not None and flow.ip.encrypted),
    "interface": _interface,
    "trace_id": _one_of(_text, _trace_id),
    "ip_trace_id": _one_of(_number, lambda flow: int(flow.ip_trace_id.trace_id or 0) if flow.ip_trace_id else 0),
    "experimental": _experimental,
    "uuid": _one_of(_text, lambda flow: flow.uuid),
}
