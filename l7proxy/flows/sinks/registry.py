"""Which sinks there are. A new sink is one module beside this, its settings, and a line in SINKS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from l7proxy.errors import ConfigError
from l7proxy.flows import field_mask
from l7proxy.flows.event_filter import everything
from l7proxy.flows.sinks import filtered
from l7proxy.flows.sinks.exporters import STDOUT, Chosen
from l7proxy.flows.sinks.jsonl import JsonLinesFile, JsonLinesStream
from l7proxy.flows.sinks.sink import Sink


class SinkSettings(Protocol):
    """What sinks need of the settings."""

    @property
    def flow_log(self) -> str: ...
    @property
    def flow_log_max_bytes(self) -> int: ...
    @property
    def flow_log_backups(self) -> int: ...
    @property
    def flow_log_compress(self) -> bool: ...
    @property
    def flow_log_allow(self) -> str: ...
    @property
    def flow_log_deny(self) -> str: ...
    @property
    def flow_log_fields(self) -> tuple[str, ...]: ...
    @property
    def flow_log_sampling(self) -> int: ...
    @property
    def flow_otlp_endpoint(self) -> str: ...
    @property
    def flow_otlp_headers_file(self) -> str: ...
    @property
    def flow_otlp_ca_file(self) -> str: ...
    @property
    def flow_otlp_cert_file(self) -> str: ...
    @property
    def flow_otlp_key_file(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def cluster(self) -> str: ...


def make(settings: SinkSettings) -> dict[str, Sink]:
    """The sinks that the settings ask for, by name. ConfigError names the invalid setting."""
    made = {name: maker(settings) for name, maker in SINKS.items()}
    return {name: sink for name, sink in made.items() if sink is not None}


def _flow_log(settings: SinkSettings) -> Sink | None:
    sink = _lines(settings)
    keep = filtered.keep(settings.flow_log_allow, settings.flow_log_deny)
    try:
        mask = field_mask.build(settings.flow_log_fields)
    except ConfigError as error:
        raise ConfigError(f"flow_log_fields: {error}") from error
    if sink is None or (keep is everything and mask is None and settings.flow_log_sampling == 1):
        return sink
    return Chosen(sink, keep=keep, mask=mask, sampling=settings.flow_log_sampling)


def _lines(settings: SinkSettings) -> Sink | None:
    target = settings.flow_log
    if not target:
        return None
    if target in STDOUT:
        return JsonLinesStream()
    if "://" in target:
        raise ConfigError(f"flow_log: unknown kind of sink {target!r}: must be a file or stdout")
    return JsonLinesFile(
        Path(target),
        max_bytes=settings.flow_log_max_bytes,
        backups=settings.flow_log_backups,
        compress=settings.flow_log_compress,
    )


def _otlp(settings: SinkSettings) -> Sink | None:
    if not settings.flow_otlp_endpoint:
        return None
    try:
        from l7proxy.flows.sinks.otlp import Otlp  # here: optional, and most agents need none
    except ModuleNotFoundError as error:
        raise ConfigError(f"flow_otlp_endpoint: {error.name} is not installed: pip install 'l7proxy[otlp]'") from error
    return Otlp(
        settings.flow_otlp_endpoint,
        headers_file=settings.flow_otlp_headers_file,
        ca_file=settings.flow_otlp_ca_file,
        cert_file=settings.flow_otlp_cert_file,
        key_file=settings.flow_otlp_key_file,
        node=settings.node,
        cluster=settings.cluster,
    )


SINKS: Final[Mapping[str, Callable[[SinkSettings], Sink | None]]] = {"flow log": _flow_log, "OTLP": _otlp}
"""By the name that `status` shows. A maker returns None when its settings ask for no such sink."""
