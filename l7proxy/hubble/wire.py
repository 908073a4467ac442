"""Writes structs of `flows.flow` as protobuf: their fields have the API's names, and the values of its JSON mapping.

A writer is prepared once for a message, a struct and a mask, from the message's descriptor: so each field has the
number and the type that the `.proto` file says. Several times faster than the constructors of protobuf's own messages,
which the tests compare it with. ValueError: a value that the API cannot express.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, get_args

import msgspec
from google.protobuf import json_format, struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from l7proxy.flows import timestamp
from l7proxy.flows.flow import Message
from l7proxy.hubble.mask import Mask

EXTENSION_TYPES: Final = (struct_pb2.Struct,)
"""The messages that `Flow.extensions` may hold: protobuf finds them by their name once they are imported."""
Writer: TypeAlias = Callable[[Any], bytes]
"""The encoded message, without its own tag and length."""
VARINT, LENGTH_DELIMITED = 0, 2
"""Wire types."""
_INTEGERS: Final[Mapping[int, tuple[int, int]]] = {
    FieldDescriptor.TYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
}


def varint(number: int) -> bytes:
    """Base 128, lowest digits first, each but the last with the high bit. Negative numbers are 64 bits wide."""
    if 0 <= number < 128:
        return _SMALL[number]
    number &= (1 << 64) - 1
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


_SMALL: Final = tuple(bytes((number,)) for number in range(128))


def tag(message: Any, name: str, kind: int = LENGTH_DELIMITED) -> bytes:
    """What stands before the value of a field."""
    return varint(message.fields_by_name[name].number << 3 | kind)


def delimited(head: bytes, value: bytes) -> bytes:
    """A field with a length: `head` is its tag."""
    return b"%b%b%b" % (head, varint(len(value)), value)


def moment(time_ns: int) -> bytes:
    """A google.protobuf.Timestamp."""
    seconds, nanos = divmod(time_ns, timestamp.SECOND)
    made = b"\x08" + varint(seconds) if seconds else b""
    return made + b"\x10" + varint(nanos) if nanos else made


def writer(message: Any, kind: type[Message], mask: Mask) -> Writer:
    """Writes a struct of this `kind` as `message`: the fields of the mask, all of them if it is empty."""
    fields = [
        (one.name, one.default, _field(message, one.encode_name, one.type, mask.get(one.encode_name, {})))
        for one in msgspec.structs.fields(kind)
        if not mask or one.encode_name in mask
    ]

    def write(value: Any) -> bytes:
        return b"".join([put(found) for name, default, put in fields if (found := getattr(value, name)) != default])

    return write


def _field(message: Descriptor, name: str, kind: Any, mask: Mask) -> Writer:
    """Writes a value that is not the default, with its tag."""
    field = message.fields_by_name.get(name)
    if field is None:
        return _absent(message, name)
    delimits = field.message_type is not None or field.type == field.TYPE_STRING
    head = varint(field.number << 3 | (LENGTH_DELIMITED if delimits else VARINT))
    one = _value(field, kind, {} if field.is_repeated else mask)
    if not delimits:
        return lambda value: head + one(value)
    if not field.is_repeated:
        return lambda value: delimited(head, one(value))
    return lambda values: b"".join([delimited(head, one(value)) for value in values])


def _value(field: FieldDescriptor, kind: Any, mask: Mask) -> Writer:
    """Writes one value, without tag and length."""
    inner = field.message_type
    if inner is None:
        return _scalar(field)
    if inner.full_name == "google.protobuf.Timestamp":
        return lambda text: moment(timestamp.parse(text))
    if inner.full_name in ("google.protobuf.BoolValue", "google.protobuf.Int32Value"):
        return lambda value: b"\x08" + varint(value) if value else b""
    nested = next((one for one in _kinds(kind) if isinstance(one, type) and issubclass(one, Message)), None)
    return writer(inner, nested, mask) if nested else _mapping(inner)


def _absent(message: Descriptor, name: str) -> Writer:
    """Structs may serve several messages: ports of UDP have no flags."""

    def write(value: Any) -> bytes:
        raise ValueError(f"{message.name} has no {name}")

    return write


def _kinds(kind: Any) -> tuple[Any, ...]:
    return (kind, *get_args(kind))


def _scalar(field: FieldDescriptor) -> Writer:
    if field.type == field.TYPE_STRING:
        return lambda text: text.encode()
    if field.type == field.TYPE_BOOL:
        return lambda value: b"\x01" if value else b"\x00"
    if field.enum_type is not None:
        return _enum({name: varint(one.number) for name, one in field.enum_type.values_by_name.items()})
    low, high = _INTEGERS[field.type]

    def integer(value: Any) -> bytes:
        """64-bit numbers are texts in JSON."""
        number = int(value)
        if not low <= number <= high:
            raise ValueError(f"{field.name}: {number} does not fit")
        return varint(number)

    return integer


def _enum(numbers: Mapping[str, bytes]) -> Writer:
    def write(word: str) -> bytes:
        number = numbers.get(word)
        if number is None:
            raise ValueError(f"no such value: {word}")
        return number

    return write


def _mapping(message: Descriptor) -> Writer:
    """A part that has no struct, as read from elsewhere."""
    kind = GetMessageClass(message)

    def write(value: Mapping[str, Any]) -> bytes:
        try:
            return json_format.ParseDict(dict(value), kind()).SerializeToString()
        except (json_format.ParseError, TypeError) as error:  # TypeError: an Any of an unknown type
            raise ValueError(str(error)) from error

    return write
