"""Field masks for exporters: only the named fields of a flow, `source.labels` for one, are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias, get_args, get_origin

import msgspec

from l7proxy.errors import ConfigError
from l7proxy.flows.flow import Flow, Message

Masked: TypeAlias = Callable[[Any], Any]
"""Makes a message with the wanted fields of another one."""
NEVER_SET: Final = frozenset(
    (
        "aggregate", "cgroup_id", "debug_capture_point", "ethernet", "file", "sock_xlate_point", "socket_cookie",
        "tunnel",
    )
)  # fmt: skip
"""Fields that the API has, and that no flow of ours has."""


def build(paths: Iterable[str]) -> Masked | None:
    """None without a path: all fields. ConfigError names a path that is no field of a flow."""
    wanted: dict[str, Any] = {}
    given = False
    for path in sorted(paths, key=lambda one: one.count(".")):  # a whole field before its parts
        given = True
        if path.partition(".")[0] not in NEVER_SET:
            _add(Flow, wanted, path, path.split("."))
    return _masked(Flow, wanted) if given else None


def _add(kind: type[Message], wanted: dict[str, Any], path: str, parts: list[str]) -> None:
    """`wanted`: attribute → the same for what is inside it, None for all of it."""
    name, *rest = parts
    field = next((one for one in msgspec.structs.fields(kind) if one.encode_name == name), None)
    if field is None:
        raise ConfigError(f"field mask: {path!r:.80} is no field of a flow")
    if not rest:
        wanted[field.name] = None
        return
    inner = _single(field.type)
    if inner is None:
        raise ConfigError(f"field mask: {path!r:.80}: {name} has no parts that can be chosen")
    inside = wanted.setdefault(field.name, {})
    if inside is not None:
        _add(inner, inside, path, rest)


def _single(kind: Any) -> type[Message] | None:
    """The message that the field holds; None for a list or a plain value."""
    for one in () if get_origin(kind) is tuple else get_args(kind) or (kind,):
        if isinstance(one, type) and issubclass(one, Message):
            return one
    return None


def _masked(kind: type[Message], wanted: dict[str, Any]) -> Masked:
    inner = {one.name: _single(one.type) for one in msgspec.structs.fields(kind)}
    parts: list[tuple[str, Masked | None]] = []
    for name, inside in wanted.items():
        found = inner[name]
        parts.append((name, _masked(found, inside) if inside and found else None))

    def make(message: Any) -> Any:
        kept = {}
        for name, mask in parts:
            value = getattr(message, name)
            kept[name] = mask(value) if mask is not None and value is not None else value
        return kind(**kept)

    return make
