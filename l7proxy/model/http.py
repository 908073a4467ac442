"""A request as policy sees it, and the header changes that policy asks for: shared by `policy`, `wire` and `gate`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from l7proxy.model.secret import REDACTED

Headers = list[tuple[bytes, bytes]]
"""In the order received; names in lower case."""


class EditKind(Enum):
    """ADD appends a header. REMOVE removes all headers of the name. SET replaces the first and removes the others."""

    ADD = "add"
    REMOVE = "remove"
    SET = "set"


@dataclass(frozen=True, slots=True)
class HeaderEdit:
    """`name` is spelled as it is sent. If `secret`, the value is sent but never shown."""

    kind: EditKind
    name: bytes
    value: bytes = field(default=b"", repr=False)
    secret: bool = False

    @property
    def shown(self) -> HeaderEdit:
        """The same edit, with a secret value redacted."""
        return replace(self, value=REDACTED.encode()) if self.secret else self

    def __str__(self) -> str:
        name = self.name.decode()
        if self.kind is EditKind.REMOVE:
            return f"header {name} removed"
        return f"header {name} {'added' if self.kind is EditKind.ADD else 'set'}: {self.shown.value.decode()}"


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What header rules change in a request that they allow, and what they report about it.

    `missing` are required headers that were absent, `rejected` headers that were present but must not be, each with
    its value (secret values are already redacted).
    """

    edits: tuple[HeaderEdit, ...] = ()
    missing: tuple[tuple[bytes, bytes], ...] = ()
    rejected: tuple[tuple[bytes, bytes], ...] = ()

    def then(self, other: Rewrite | None) -> Rewrite:
        """This rewrite followed by `other`."""
        if other is None:
            return self
        return Rewrite(self.edits + other.edits, self.missing + other.missing, self.rejected + other.rejected)


class Fields(Protocol):
    """A head that can return its headers."""

    @property
    def headers(self) -> Headers: ...


class Request:
    """One HTTP request, already normalised: what is evaluated is what is forwarded.

    `path` is the path of the request target with its query string. `host` is the authority as sent, with port and case.
    `headers` are in order, names in lower case, values without surrounding whitespace. They may be given as a head: its
    headers are parsed only when a rule reads them. Not frozen, because one is made per request. Evaluation sets
    `rewrite` when it allows the request with changes; the gate that forwards the request applies them.
    """

    __slots__ = ("_headers", "host", "method", "path", "rewrite")

    def __init__(self, method: bytes, path: bytes, host: bytes, headers: Headers | Fields) -> None:
        self.method = method
        self.path = path
        self.host = host
        self.rewrite: Rewrite | None = None
        self._headers = headers

    @property
    def headers(self) -> Headers:
        return self._headers if isinstance(self._headers, list) else self._headers.headers

    @headers.setter
    def headers(self, headers: Headers) -> None:
        self._headers = headers

    def judged(self) -> Headers:
        """All headers that were evaluated, with those of the rewrite. Trailers must repeat none of them."""
        edits = self.rewrite.edits if self.rewrite is not None else ()
        return [*self.headers, *((edit.name.lower(), edit.value) for edit in edits)]

    def having(self, headers: Headers) -> Request:
        """The same request with other headers, not evaluated yet."""
        return Request(self.method, self.path, self.host, headers)

    def joined(self, name: bytes) -> bytes | None:
        """The value of a header, repeated values joined by a comma (as Envoy does); None when absent."""
        values = [value for key, value in self.headers if key == name]
        return b",".join(values) if values else None


_ALIKE = bytes(byte if byte > 0x7F or chr(byte).isalnum() else ord("-") for byte in range(256))


def alike(name: bytes) -> bytes:
    """The form in which servers that map headers to variables compare a lower-case name. For CGI, X_User equals X-User
    (RFC 3875 4.1.18). lighttpd treats any other punctuation the same: X.User, X!User."""
    return name.translate(_ALIKE)


def edited(headers: Headers, edits: Iterable[HeaderEdit]) -> Headers:
    """The headers after all edits, applied in order. Other headers keep their order. Names are compared by `alike`."""
    for edit in edits:
        name = edit.name.lower()
        line = (name, edit.value)
        if edit.kind is EditKind.ADD:
            headers = [*headers, line]
            continue
        key = alike(name)
        places = [place for place, header in enumerate(headers) if alike(header[0]) == key]
        kept = [header for header in headers if alike(header[0]) != key]
        if edit.kind is EditKind.SET:
            kept.insert(places[0] if places else len(kept), line)
        headers = kept
    return headers
