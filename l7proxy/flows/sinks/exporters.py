"""Exporters by configuration: which flows, which of their fields, to which file, until when.

The file has the form of Hubble's dynamic exporter: `flowLogs: [{name, filePath, fieldMask, includeFilters,
excludeFilters, fileMaxSizeMb, fileMaxBackups, fileCompress, end}]`, and `sampling`, which is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from l7proxy.errors import ConfigError
from l7proxy.flows import event_filter, field_mask, timestamp
from l7proxy.flows.event import Event
from l7proxy.flows.sinks.jsonl import MAX_BACKUPS, MAX_BYTES, JsonLinesFile, JsonLinesStream
from l7proxy.flows.sinks.sink import Sink

ALLOWED: Final = {"whitelist": [{"verdict": ["FORWARDED", "REDIRECTED", "TRACED", "TRANSLATED"]}]}
"""Flows that sampling may leave out: nothing was refused, nor would have been without audit."""
STDOUT: Final = ("stdout", "-")
MOST: Final = 64
"""Exporters in one file: each reads every flow."""


class Exporter(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """One entry of `flowLogs`. Of `sampling` N allowed flows one is written; refused ones always are."""

    name: str
    file_path: str
    field_mask: tuple[str, ...] = ()
    include_filters: tuple[dict[str, Any], ...] = ()
    exclude_filters: tuple[dict[str, Any], ...] = ()
    file_max_size_mb: int = 0
    file_max_backups: int = 0
    file_compress: bool = False
    end: str = ""
    sampling: int = 1

    def writes_at(self, now: float) -> bool:
        """Whether `end` is not past. `now`: seconds since 1970."""
        return not self.end or now * timestamp.SECOND <= timestamp.parse(self.end)


class Chosen:
    """Passes to `sink` the events that `keep` accepts until `end_ns`, as `mask` makes them.

    What it holds back is neither written nor lost. Lost events pass: who reads the rest must know of a gap.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        keep: event_filter.Keep = event_filter.everything,
        mask: field_mask.Masked | None = None,
        end_ns: int | None = None,
        sampling: int = 1,
    ) -> None:
        self._sink = sink
        self._keep = keep
        self._mask = mask
        self._end_ns = end_ns
        self._sampling = sampling
        self._allowed = event_filter.build(ALLOWED)
        self._count = 0

    @property
    def lost(self) -> int:
        return self._sink.lost

    @property
    def problem(self) -> str:
        return self._sink.problem

    def consume(self, events: Sequence[Event]) -> None:
        kept = [event for event in events if self._wants(event)]
        if self._mask is not None:
            kept = [self._mask(flow) if (flow := event.flow()) is not None else event for event in kept]
        if kept:
            self._sink.consume(kept)

    def hurry(self) -> None:
        self._sink.hurry()

    def close(self) -> None:
        self._sink.close()

    def _wants(self, event: Event) -> bool:
        if (self._end_ns is not None and event.time_ns > self._end_ns) or not self._keep(event):
            return False
        if self._sampling == 1 or event.lost or not self._allowed(event):
            return True
        self._count += 1
        return self._count % self._sampling == 1


def read(document: Any) -> list[Exporter]:
    """The exporters of a configuration file, decoded. ConfigError names the exporter and the field."""
    if not isinstance(document, Mapping) or set(document) - {"flowLogs"}:
        raise ConfigError("must have the one field flowLogs, a list of exporters")
    entries = document.get("flowLogs")
    entries = [] if entries is None else entries
    if not isinstance(entries, list) or len(entries) > MOST:
        raise ConfigError(f"flowLogs: must be a list of at most {MOST} exporters")
    found = [_one(entry, place) for place, entry in enumerate(entries)]
    for field in ("name", "file_path"):
        values = [getattr(one, field) for one in found]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise ConfigError(f"flowLogs: two exporters have the same {field.replace('_p', 'P')}, {twice!r:.200}")
    for one in found:
        sink_of(one)  # finds what is wrong with filters, mask, end; opens nothing
    return found


def sink_of(exporter: Exporter) -> Sink:
    """ConfigError names the exporter and the field."""
    filters = {"whitelist": exporter.include_filters, "blacklist": exporter.exclude_filters}
    try:
        return Chosen(
            _target(exporter),
            keep=event_filter.build(filters),
            mask=field_mask.build(exporter.field_mask),
            end_ns=_end(exporter.end),
            sampling=_at_least(exporter.sampling, 1, "sampling"),
        )
    except ConfigError as error:
        raise ConfigError(f"exporter {exporter.name!r:.80}: {error}") from error


def _one(entry: Any, place: int) -> Exporter:
    try:
        found = msgspec.convert(entry, Exporter)
    except msgspec.ValidationError as error:
        raise ConfigError(f"flowLogs[{place}]: {error}") from error
    if not found.name or not found.file_path:
        raise ConfigError(f"flowLogs[{place}]: name and filePath must not be empty")
    return found


def _target(exporter: Exporter) -> Sink:
    if exporter.file_path in STDOUT:
        return JsonLinesStream()
    path = Path(exporter.file_path)
    if not path.is_absolute():
        raise ConfigError(f"filePath: must be an absolute path, or stdout, not {exporter.file_path!r:.200}")
    size = _at_least(exporter.file_max_size_mb, 0, "fileMaxSizeMb") << 20
    backups = _at_least(exporter.file_max_backups, 0, "fileMaxBackups")
    return JsonLinesFile(
        path, max_bytes=size or MAX_BYTES, backups=backups or MAX_BACKUPS, compress=exporter.file_compress
    )


def _at_least(value: int, low: int, field: str) -> int:
    if value < low:
        raise ConfigError(f"{field}: must be {low} or more, not {value}")
    return value


def _end(text: str) -> int | None:
    try:
        return timestamp.parse(text) if text else None
    except ValueError as error:
        raise ConfigError(f"end: expected a time as 2025-11-23T20:00:00Z, not {text!r:.80}") from error
