"""The filters of the flow log, as its two settings give them."""

from __future__ import annotations

import msgspec

from l7proxy.errors import ConfigError
from l7proxy.flows import event_filter


def keep(allow: str, deny: str) -> event_filter.Keep:
    """Of two texts, each a JSON list of Hubble's filters.

    A flow passes if one of `allow` matches, or `allow` is empty, and none of `deny`. ConfigError names the setting.
    """
    if not allow and not deny:
        return event_filter.everything
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
