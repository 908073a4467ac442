"""A sink that gets only some flows. Lost events always pass: who reads the rest must know that it is incomplete."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from l7proxy.errors import ConfigError
from l7proxy.flows import event_filter
from l7proxy.flows.event import Event
from l7proxy.flows.sinks.sink import Sink


class Filtered:
    """Passes to `sink` the flows that `wanted` accepts. What it holds back is neither written nor lost there."""

    def __init__(self, sink: Sink, wanted: event_filter.Keep) -> None:
        self._sink = sink
        self._wanted = wanted

    @property
    def lost(self) -> int:
        return self._sink.lost

    @property
    def problem(self) -> str:
        return self._sink.problem

    def consume(self, events: Sequence[Event]) -> None:
        kept = [event for event in events if self._wanted(event)]
        if kept:
            self._sink.consume(kept)

    def hurry(self) -> None:
        self._sink.hurry()

    def close(self) -> None:
        self._sink.close()


def keep(allow: str, deny: str) -> event_filter.Keep | None:
    """Of two texts, each a JSON list of Hubble's filters; None when both are empty.

    A flow passes if one of `allow` matches, or `allow` is empty, and none of `deny`. ConfigError names the setting.
    """
    if not allow and not deny:
        return None
    allowed = _built("flow_log_allow", "whitelist", allow)
    passed = _built("flow_log_deny", "blacklist", deny)
    return lambda event: allowed(event) and passed(event)


def _built(setting: str, key: str, text: str) -> event_filter.Keep:
    found = _read(setting, text)
    try:
        return event_filter.build({key: found})
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from error


def _read(setting: str, text: str) -> list[object]:
    if not text:
        return []
    try:
        return msgspec.json.decode(text, type=list[object])
    except msgspec.DecodeError as error:
        raise ConfigError(
            f'{setting}: must be a JSON list of Hubble\'s filters, as [{{"verdict":["DROPPED"]}}]: {error}'
        ) from error
