"""Reads settings: a flag wins over an environment variable, that over the file, that over the default.

ConfigError names where the wrong value was written (flag, variable, file and line), the setting and what is allowed.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import msgspec

from l7proxy.cluster.identity_labels import LabelFilter
from l7proxy.errors import ConfigError, SourceError
from l7proxy.link.local import MAX_PATH
from l7proxy.metrics import options as flow_metrics
from l7proxy.model.verdict import Protocol
from l7proxy.setting_definitions import DEFINITIONS, Definition, Settings
from l7proxy.settings.address import host_and_port, listener
from l7proxy.sources.files.yaml_lines import Document, read_filled

log = logging.getLogger(__name__)

WITH_PORTS: Final = frozenset(protocol.value for protocol in Protocol)
SERVICE_LINK: Final = re.compile(r"(?:tcp|udp|sctp)://", re.IGNORECASE)
NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_KERNEL_TABLES: Final = (253, 254, 255)  # ip-route(8): default, main, local


@dataclass(frozen=True, slots=True)
class Given:
    """A value that the operator wrote, and where: `flag --workers`, `c.yaml:3: workers`.

    `text`: it is text that is read as the setting's type; the file has types of its own.
    """

    value: Any
    where: str
    text: bool = False


def load(
    path: Path | None,
    flags: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    used_by: str = "agent",
) -> Settings:
    """Checked settings. `flags`: setting → text (or bool), without those that are None. Variables are read only for
    the settings that the command `used_by` uses."""
    given = _file(path) if path is not None else {}
    given |= _environment(environment, used_by)
    for name, value in (flags or {}).items():
        if value is not None:
            given[name] = Given(value, f"flag {DEFINITIONS[name].flag}", text=not isinstance(value, bool))
    settings = Settings(**{name: _value(DEFINITIONS[name], one) for name, one in given.items()})
    for name, fault in _faults(settings):
        where = given[name].where if name in given else f"default of {DEFINITIONS[name].key}"
        raise ConfigError(f"{where}: {fault}")
    return settings


def _file(path: Path) -> dict[str, Given]:
    try:
        documents = read_filled(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except SourceError as error:
        raise ConfigError(f"{path}: {error.message}") from error
    if not documents:
        return {}
    (first, *rest) = documents
    if not isinstance(first, Document):
        raise ConfigError(f"{path}:{first.error.line or first.line}: {first.error.message}")
    if rest or not isinstance(first.value, dict):
        raise ConfigError(f"{path}: the configuration must be a mapping of settings")
    found: dict[str, Given] = {}
    for key, value in first.value.items():
        where, name = f"{path}:{first.line_of(first.value, key)}", key.replace("-", "_")
        if name not in DEFINITIONS:
            near = difflib.get_close_matches(name, DEFINITIONS, 1)
            hint = f"; did you mean {DEFINITIONS[near[0]].key}?" if near else ""
            raise ConfigError(f"{where}: unknown setting {key!r}{hint}")
        if name in found:
            raise ConfigError(f"{where}: {key}: is set twice, with `-` and with `_`")
        found[name] = Given(value, f"{where}: {key}")
    return found


def _environment(environment: Mapping[str, str], used_by: str) -> dict[str, Given]:
    variables = {one.variable: name for name, one in DEFINITIONS.items()}
    for variable in environment:
        near = difflib.get_close_matches(variable, variables, 1, 0.9) if variable.startswith("L7PROXY_") else []
        if near and variable not in variables:
            log.warning("environment variable %s is not a setting: ignored; did you mean %s?", variable, near[0])
    return {
        name: Given(environment[variable], f"environment variable {variable}", text=True)
        for variable, name in variables.items()
        if variable in environment and used_by in DEFINITIONS[name].used_by
    }


def _value(definition: Definition, given: Given) -> Any:
    """The value in its type and range. ConfigError when it is not allowed.

    Text of a flag or variable is read as its type: numbers may be hexadecimal, commas separate the items of a list.
    """
    try:
        value = given.value
        if not given.text:
            return _checked(definition, value)
        if definition.item is not None:
            return _checked(definition, [_typed(definition.item, part.strip()) for part in value.split(",") if part])
        return _checked(definition, _typed(definition.kind, value))
    except (ValueError, TypeError) as error:
        hint = ""
        if given.text and SERVICE_LINK.match(given.value):
            service = definition.variable.removesuffix("_PORT").lower().replace("_", "-")
            hint = (
                f". Kubernetes sets this variable for a Service named {service}: "
                "set enableServiceLinks: false in the pod's spec, or rename the Service"
            )
        raise ConfigError(f"{given.where}: must be {definition.allowed}, not {given.value!r}{hint}") from error


def _typed(kind: Any, text: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}.get(text, text)
    if kind is int:
        return int(text, 0)
    return float(text) if kind is float else text


def _checked(definition: Definition, value: Any) -> Any:
    """ValueError or TypeError when the value is not allowed."""
    if definition.kind is Path:
        return Path(value)
    value = msgspec.convert(value, definition.kind)
    low, high = definition.about.low, definition.about.high
    for number in value if definition.item is not None else (value,):
        if low is not None and high is not None and not low <= number <= high:
            raise ValueError(number)
        if definition.about.bit and number & (number - 1):
            raise ValueError(number)
    return value


def _faults(settings: Settings) -> Iterator[tuple[str, str]]:
    """(setting, fault) for the rules that a type and a range do not express."""
    if settings.mark_proxy == settings.mark_upstream:
        yield "mark_upstream", f"must be another bit than that of mark-proxy, {settings.mark_proxy:#x}"
    try:
        LabelFilter(settings.labels)
    except ConfigError as error:
        yield "labels", str(error).removeprefix("labels: ")
    if not NAMESPACE.fullmatch(settings.namespace):
        yield "namespace", f"{settings.namespace!r:.80} is not the name of a namespace"
    for name in ("health_address", "metrics_address"):
        if text := getattr(settings, name):
            yield from _unreadable(name, host_and_port, text)
    yield from _unreadable("flow_metrics", flow_metrics.parse, settings.flow_metrics)
    yield from _hubble_faults(settings)
    for protocol in WITH_PORTS.intersection(settings.tunnel_protocols):
        yield "tunnel_protocols", f"{protocol} is not an IP protocol without ports or ICMP types"
    if settings.flow_ring & (settings.flow_ring + 1):
        yield "flow_ring", f"must be one less than a power of two, not {settings.flow_ring}"
    if settings.route_table in _KERNEL_TABLES:
        yield "route_table", f"{settings.route_table} is reserved by the kernel, choose another table"
    if not settings.node or len(settings.node) > 253 or _is_address(settings.node):
        yield "node", f"{settings.node!r} is not a valid node name: must be the name of a Node object"
    if len(os.fsencode(settings.agent_socket)) > MAX_PATH:
        yield "run_dir", f"{settings.run_dir} is too long for the path of a Unix socket: choose a shorter directory"


def _unreadable(name: str, parse: Callable[[str], object], text: str) -> Iterator[tuple[str, str]]:
    """The fault of a setting whose text has a form of its own."""
    try:
        parse(text)
    except ConfigError as error:
        yield name, str(error)


def _hubble_faults(settings: Settings) -> Iterator[tuple[str, str]]:
    if settings.hubble_socket_path and not Path(settings.hubble_socket_path).is_absolute():
        yield "hubble_socket_path", f"must be an absolute path, not {settings.hubble_socket_path!r:.80}"
    if not settings.hubble_listen_address:
        return
    yield from _unreadable("hubble_listen_address", listener, settings.hubble_listen_address)
    for name in ("hubble_tls_cert_file", "hubble_tls_key_file", "hubble_tls_client_ca_files"):
        if not getattr(settings, name):
            key = DEFINITIONS[name].key
            yield "hubble_listen_address", f"needs {key}: flows are served over mutual TLS only"


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
