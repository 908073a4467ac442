"""Reads the fields of a document, each with its path.

Every value of a document is read here, so every fault is a PolicyError with the field's path. An unknown key is a fault
too: a misspelt `fromEndpoint` would otherwise mean every peer. As in the Kubernetes API, a key whose value is null
counts as absent; an empty list does not.

If the document collects its faults (`Field.faults`), reading continues after one, so that all are reported together.
After a fault, reading serves only to find more: one is enough to reject the document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final, NoReturn, TypeVar

from l7proxy.errors import PolicyError

Locate = Callable[[str], tuple[str, int]]
"""Field path → (file, line)."""

T = TypeVar("T")
MAX_FAULTS: Final = 10
"""Faults in one document after which reading stops: a pattern that is rejected for its size may take 0.2 s."""

_NAMEABLE: Final = re.compile(r"[A-Za-z0-9_.:/$-]{1,63}")


@dataclass(frozen=True, slots=True)
class Note:
    """Something in a valid document that its author may not expect. `code`: its lint code, if it has one."""

    at: str
    message: str
    code: str = ""

    def __str__(self) -> str:
        return f"{self.at}: {self.message}"


@dataclass(frozen=True, slots=True)
class Field:
    """One value and its path. Reading it as a type it does not have is a PolicyError."""

    value: object
    at: str
    faults: list[PolicyError] | None = field(default=None, compare=False, repr=False)

    def fail(self, message: str, *, unsupported: bool = False) -> NoReturn:
        raise PolicyError(message, at=self.at, unsupported=unsupported)

    def key(self, name: str) -> str:
        """The path of a key of this mapping; the mapping's own path if the key is not fit for one."""
        if not _NAMEABLE.fullmatch(name):
            return self.at
        return f"{self.at}.{name}" if self.at else name

    def mapping(
        self, known: Collection[str] | None, *, later: Collection[str] = (), required: Collection[str] = ()
    ) -> dict[str, Field]:
        """The keys that have a value. Keys not in `known` are rejected, as are those in `later` (not supported yet)."""
        if not isinstance(self.value, Mapping):
            self.fail(f"must be a mapping, not {kind(self.value)}")
        found: dict[str, Field] = {}
        for name, value in self.value.items():
            if not isinstance(name, str) or not is_unicode(name):
                self.fail(f"keys must be strings, not {kind(name)}")
            if known is not None and name not in known and name not in later:
                self._read_on(PolicyError(_unknown(name, [*known, *later]), at=self.key(name)))
                continue
            if value is None:
                continue
            if name in later:
                raise PolicyError(f"{name} is not supported yet", at=self.key(name), unsupported=True)
            found[name] = Field(value, self.key(name), self.faults)
        for name in required:
            if name not in found:
                self.fail(f"{name} is required")
        return found

    def without_value(self) -> list[str]:
        """The keys of a mapping that are written but null."""
        entries = self.value.items() if isinstance(self.value, Mapping) else ()
        return [str(name) for name, value in entries if value is None]

    def items(self, *, most: int | None = None, too_many: str = "") -> list[Field]:
        if not isinstance(self.value, (list, tuple)):
            self.fail(f"must be a list, not {kind(self.value)}")
        if most is not None and len(self.value) > most:
            self.fail(too_many)
        return [Field(value, f"{self.at}[{index}]", self.faults) for index, value in enumerate(self.value)]

    def each(self, read: Callable[[Field], T], *, most: int | None = None, too_many: str = "") -> list[T]:
        """The result of `read` for each item."""
        found = []
        for item in self.items(most=most, too_many=too_many):
            try:
                found.append(read(item))
            except PolicyError as fault:
                self._read_on(fault)
        return found

    def _read_on(self, fault: PolicyError) -> None:
        """Collect the fault, or raise it if that is not possible. `unsupported` faults are for the rule's parser."""
        if self.faults is None or fault.unsupported or len(self.faults) >= MAX_FAULTS:
            raise fault
        if str(fault) not in map(str, self.faults):  # a mapping may be read twice
            self.faults.append(fault)

    def text(self) -> str:
        if not isinstance(self.value, str):
            hint = ": write it in quotes" if isinstance(self.value, (int, float)) else ""
            self.fail(f"must be a string, not {kind(self.value)}{hint}")
        if not is_unicode(self.value):
            self.fail("is not valid Unicode")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            self.fail(f"must be true or false, not {kind(self.value)}")
        return self.value

    def number(self, least: int, most: int) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self.fail(f"must be a number, not {kind(self.value)}")
        if not least <= self.value <= most:
            self.fail(f"must be between {least} and {most}")
        return self.value


def kind(value: object) -> str:
    """The type of a value, for messages to YAML authors."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "a mapping"
    return type(value).__name__


def is_unicode(text: str) -> bool:
    """False for lone surrogates: JSON can contain them, but UTF-8 cannot encode them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def quoted(text: str, limit: int = 60) -> str:
    """A piece of a document in a form for messages: short, on one line."""
    shown = text if len(text) <= limit else text[:limit] + "…"
    return '"' + "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in shown) + '"'


def _unknown(name: str, known: list[str]) -> str:
    near = get_close_matches(name[:63], known, n=1)
    return f"unknown field {quoted(name)}" + (f"; did you mean {quoted(near[0])}?" if near else "")
