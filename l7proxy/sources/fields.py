"""Typed access to the fields of a document: a field with a wrong type is a SourceError that names the field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Final

from l7proxy.errors import SourceError
from l7proxy.model.net import canonical
from l7proxy.model.verdict import Protocol

PROTOCOLS: Final[Mapping[str, int]] = {
    "TCP": Protocol.TCP.value,
    "UDP": Protocol.UDP.value,
    "SCTP": Protocol.SCTP.value,
}


@dataclass(frozen=True, slots=True)
class Fields:
    """One mapping of a document, with its path."""

    value: Mapping[str, Any]
    path: str = ""

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def wrong(self, key: str, message: str) -> SourceError:
        return SourceError(message, field=self.at(key))

    def text(self, key: str, default: str | None = None) -> str:
        """A string. `default` replaces a missing, null or empty field; without a default such a field is an error."""
        value = self.value.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, f"must be a string, not {_kind(value)}")
        if not value and default is None:
            raise self.wrong(key, "is missing")
        return value or default or ""

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.value.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, f"must be true or false, not {_kind(value)}")
        return value

    def port(self, key: str) -> int:
        value = self.value.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
            raise self.wrong(key, f"must be a port from 1 to 65535, not {value!r:.40}")
        return value

    def protocol(self, key: str = "protocol") -> int:
        name = self.text(key, "TCP")
        if name not in PROTOCOLS:
            raise self.wrong(key, f"unknown protocol {name!r:.40}: must be TCP, UDP or SCTP")
        return PROTOCOLS[name]

    def inside(self, key: str) -> Fields:
        """The mapping below `key`; an empty one if it is missing."""
        value = self.value.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, f"must be a mapping, not {_kind(value)}")
        return Fields(value or {}, self.at(key))

    def each(self, key: str) -> Iterator[Fields]:
        """The mappings of the list below `key`."""
        for index, item in enumerate(self._list(key)):
            if not isinstance(item, dict):
                raise self.wrong(f"{key}[{index}]", f"must be a mapping, not {_kind(item)}")
            yield Fields(item, self.at(f"{key}[{index}]"))

    def texts(self, key: str) -> list[str]:
        items = self._list(key)
        for index, item in enumerate(items):
            if not isinstance(item, str):
                raise self.wrong(f"{key}[{index}]", f"must be a string, not {_kind(item)}")
        return items

    def labels(self, key: str) -> dict[str, str]:
        """A mapping of strings. Null becomes the empty string, as in `kubectl apply`."""
        inside = self.inside(key)
        return {name: inside.text(name, "") for name in inside.value}

    def address(self, key: str) -> str:
        return self._address(key, self.text(key))

    def addresses(self, key: str) -> tuple[str, ...]:
        return tuple(self._address(f"{key}[{index}]", text) for index, text in enumerate(self.texts(key)))

    def network(self, key: str) -> str:
        return self._network(key, self.text(key))

    def networks(self, key: str) -> tuple[str, ...]:
        return tuple(self._network(f"{key}[{index}]", text) for index, text in enumerate(self.texts(key)))

    def _network(self, key: str, text: str) -> str:
        try:
            return str(ip_network(text, strict=False))
        except ValueError as error:
            raise self.wrong(key, f"{text!r:.60} is not a valid CIDR") from error

    def _list(self, key: str) -> list[Any]:
        value = self.value.get(key)
        if value is not None and not isinstance(value, list):
            raise self.wrong(key, f"must be a list, not {_kind(value)}")
        return value or []

    def _address(self, key: str, text: str) -> str:
        """Canonical text of an address that is valid for a pod, node or Service."""
        try:
            found = canonical(text)
        except ValueError as error:
            raise self.wrong(key, f"{text!r:.60} is not a valid IP address") from error
        address = ip_address(found)
        if "%" in found or address.is_loopback or address.is_multicast or address.is_unspecified:
            what = "cannot be an address of a pod, node or Service"
            raise self.wrong(key, f"{found} {what}: it is loopback, multicast, unspecified or has a zone")
        return found


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")
