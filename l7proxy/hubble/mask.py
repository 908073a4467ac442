"""Field masks: which fields of a flow a client wants.

A mask is a set of paths, `source.labels` for one. `wire.writer` writes only the fields of its mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

from l7proxy.errors import ConfigError
from l7proxy.hubble.api.flow import flow_pb2

MOST_PATHS: Final = 256
Mask: TypeAlias = Mapping[str, "Mask"]
"""Wanted field → wanted fields inside it; an empty mapping means the whole field."""

STOCK: Final = frozenset(
    (
        "time", "verdict", "ethernet", "IP", "l4", "source.identity", "source.namespace", "source.pod_name",
        "destination.identity", "destination.namespace", "destination.pod_name", "Type", "node_name", "l7",
        "event_type", "source_service", "destination_service", "is_reply", "Summary", "ip_trace_id",
    )
)  # fmt: skip
"""What `hubble observe` 1.19 asks for by default."""
MISSED_BY_STOCK: Final = (
    "source_names", "destination_names", "traffic_direction", "policy_match_type", "auth_type",
    "ingress_allowed_by", "egress_allowed_by", "ingress_denied_by", "egress_denied_by",
)  # fmt: skip
"""What it prints besides. Without them it shows `TRAFFIC_DIRECTION_UNKNOWN` and no policy; later versions ask for them.
A server may send more than the mask."""


def read(paths: Iterable[str]) -> Mask:
    """The mask of these paths. ConfigError, as Hubble words it, when a path is no field of a flow."""
    wanted = list(paths)
    if len(wanted) > MOST_PATHS or not all(_known(path) for path in wanted):
        raise ConfigError("invalid fieldmask")
    if STOCK.issuperset(wanted) and len(wanted) >= len(STOCK):
        wanted += MISSED_BY_STOCK
    mask: dict[str, Any] = {}
    for path in sorted(wanted, key=lambda one: one.count(".")):  # a whole field before its parts
        _add(mask, path.split("."))
    return mask


def _add(mask: dict[str, Any], parts: list[str]) -> None:
    first, *rest = parts
    if first in mask and not mask[first]:
        return  # all of it is wanted already
    inside = mask.setdefault(first, {})
    if rest:
        _add(inside, rest)


def _known(path: str) -> bool:
    """Whether each part names a field; only single messages have parts."""
    message: Any = flow_pb2.Flow.DESCRIPTOR
    for name in path.split("."):
        field = message.fields_by_name.get(name) if message is not None else None
        if field is None:
            return False
        message = None if field.is_repeated else field.message_type
    return True
