"""Reads a GetFlowsRequest: which flows a client asks for, and which fields of them.

ConfigError says what is wrong, in Hubble's words where it has some.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from l7proxy.errors import ConfigError
from l7proxy.flows import event_filter, timestamp
from l7proxy.flows.observer import Request
from l7proxy.flows.ring import BATCH
from l7proxy.hubble import mask
from l7proxy.hubble.api.flow import flow_pb2
from l7proxy.hubble.api.observer import observer_pb2

MOST_FILTERS: Final = 256
"""Per list. Hubble UI sends two for each selected namespace."""
MOST_PATTERNS: Final = 256
"""Of the whole request: compiling them takes time of the agent, and every flow is matched against them."""
MOST_VALUES: Final = 4096
"""Of all filters of the request."""
VALUES_PER_TURN: Final = 8192
"""Comparisons of a value with a flow, some milliseconds, after which the event loop runs other tasks: a client must not
delay policy."""
PATTERNS: Final = ("http_path", "http_url", "dns_query", "source_fqdn", "destination_fqdn", "node_name")


class FirstAndFollowError(ConfigError):
    """The one fault that Hubble answers with InvalidArgument."""


def read(asked: observer_pb2.GetFlowsRequest) -> tuple[Request, mask.Mask]:
    """What to send, and the fields of each flow."""
    if asked.first and asked.follow:
        raise FirstAndFollowError("first cannot be specified with follow")
    values = _bounded(asked)
    request = Request(
        keep=event_filter.build({"whitelist": _filters(asked.whitelist), "blacklist": _filters(asked.blacklist)}),
        last=0 if asked.first else asked.number,
        first=asked.number if asked.first else 0,
        since_ns=_moment(asked, "since"),
        until_ns=_moment(asked, "until"),
        follow=asked.follow,
        batch=max(1, min(BATCH, VALUES_PER_TURN // max(1, values))),
    )
    return request, mask.read(asked.field_mask.paths)


def _bounded(asked: observer_pb2.GetFlowsRequest) -> int:
    """The number of values in all filters. ConfigError when a limit is exceeded."""
    lists: Sequence[Sequence[flow_pb2.FlowFilter]] = (asked.whitelist, asked.blacklist)
    if any(len(one) > MOST_FILTERS for one in lists):
        raise ConfigError(f"invalid filters: more than {MOST_FILTERS} in one list")
    patterns = sum(len(getattr(one, field)) for found in lists for one in found for field in PATTERNS)
    if patterns > MOST_PATTERNS:
        raise ConfigError(f"invalid filters: {patterns} patterns, the limit is {MOST_PATTERNS}")
    values = sum(_size(value) for found in lists for one in found for _, value in one.ListFields())
    if values > MOST_VALUES:
        raise ConfigError(f"invalid filters: {values} values, the limit is {MOST_VALUES}")
    return values


def _size(value: Any) -> int:
    """Of a repeated field its values; a label selector counts by its length, since it may have many terms."""
    if isinstance(value, Message):
        return 1
    return sum(1 + len(one) // 16 if isinstance(one, str) else 1 for one in value)


def _filters(found: Iterable[flow_pb2.FlowFilter]) -> list[dict[str, Any]]:
    return [_fields(one) for one in found]


def _fields(message: Message) -> dict[str, Any]:
    """As `flows.filters` takes them: enums by name, messages as mappings of the fields that are set."""
    return {field.name: _value(field, value) for field, value in message.ListFields()}


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.is_repeated:
        return [_item(field, item) for item in value]
    return _item(field, value)


def _item(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return _fields(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else f"{value}"
    return value


def _moment(asked: observer_pb2.GetFlowsRequest, name: str) -> int | None:
    if not asked.HasField(name):
        return None
    time = getattr(asked, name)
    if not 0 <= time.nanos < timestamp.SECOND:
        raise ConfigError(f"invalid {name}: {time.nanos} nanoseconds")
    return int(time.seconds * timestamp.SECOND + time.nanos)
