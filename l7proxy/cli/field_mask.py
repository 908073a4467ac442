"""`observe --field-mask`: only some fields of a flow, as paths like `source.labels`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from l7proxy.errors import ConfigError
from l7proxy.flows import flow


def check(paths: Sequence[str]) -> None:
    """ConfigError for a path that names no field of a flow; only single messages have parts."""
    for path in paths:
        kind: Any = flow.Flow
        for name in path.split("."):
            found = {one.encode_name: one.type for one in msgspec.structs.fields(kind)} if kind else {}
            if name not in found:
                raise ConfigError(f'failed to construct field mask: invalid path "{path}" for message "flow.Flow"')
            kind = next((one for one in (found[name], *get_args(found[name])) if _is_message(one)), None)


def _is_message(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, flow.Message)


def applied(response: flow.Response, paths: Sequence[str]) -> flow.Response:
    """The response's own time and node stay."""
    if response.flow is None:
        return response
    whole = msgspec.to_builtins(response.flow)
    kept: dict[str, Any] = {}
    for path in paths:
        _copy(whole, kept, path.split("."))
    return msgspec.structs.replace(response, flow=msgspec.convert(kept, flow.Flow))


def _copy(whole: Any, kept: dict[str, Any], names: Sequence[str]) -> None:
    first, *rest = names
    if first not in whole:
        return
    if not rest:
        kept[first] = whole[first]
    elif isinstance(whole[first], dict):
        _copy(whole[first], kept.setdefault(first, {}), rest)
