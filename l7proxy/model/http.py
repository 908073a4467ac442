"""A request as policy sees it, and what policy wants changed in its headers: the HTTP words that both floors share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Protocol

from l7proxy.model.secret import REDACTED

Headers = list[tuple[bytes, bytes]]
"""In order; names lower case."""


class EditKind(Enum):
    """ADD appends; REMOVE takes all of a name away; SET puts one in the place of the first, and removes the others."""

    ADD = "add"
    REMOVE = "remove"
    SET = "set"


@dataclass(frozen=True, slots=True)
class HeaderEdit:
    """`name` as it is to be written on the wire. The value of a `secret` one may be sent, and shown nowhere."""

    kind: EditKind
    name: bytes
    value: bytes = field(default=b"", repr=False)
    secret: bool = False

    @property
    def shown(self) -> HeaderEdit:
        """The same as it may be told."""
        return replace(self, value=REDACTED.encode()) if self.secret else self

    def __str__(self) -> str:
        name = self.name.decode()
        if self.kind is EditKind.REMOVE:
            return f"header {name} removed"
        return f"header {name} {'added' if self.kind is EditKind.ADD else 'set'}: {self.shown.value.decode()}"


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What header rules want done with a request that they let pass, and told of it.

    `missing` are the headers that should have been there, `rejected` those that were there and should not, each with
    its value (a secret's is redacted already).
    """

    edits: tuple[HeaderEdit, ...] = ()
    missing: tuple[tuple[bytes, bytes], ...] = ()
    rejected: tuple[tuple[bytes, bytes], ...] = ()

    def then(self, other: Rewrite | None) -> Rewrite:
        """Both, this one first."""
        if other is None:
            return self
        return Rewrite(self.edits + other.edits, self.missing + other.missing, self.rejected + other.rejected)


class Fields(Protocol):
    """A head whose headers can be had."""

    @property
    def headers(self) -> Headers: ...


class Request:
    """One HTTP request, already normalised: what is judged is what is forwarded.

    `path` is the request target's path with its query string; `host` the authority as sent, port and case included;
    `headers` in order, names lower case, values without surrounding blanks; given may be the head that has them, which
    is asked when a rule asks. Not frozen: made per request. `rewrite` is what the judge leaves there when it lets the
    request pass with changes: whoever forwards it makes them.
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
        """All headers that were decided on, what the judge wants written among them: trailers must repeat none."""
        edits = self.rewrite.edits if self.rewrite is not None else ()
        return [*self.headers, *((edit.name.lower(), edit.value) for edit in edits)]

    def having(self, headers: Headers) -> Request:
        """The same request with other headers, not judged yet."""
        return Request(self.method, self.path, self.host, headers)

    def joined(self, name: bytes) -> bytes | None:
        """The value of a header, repeats joined by a comma (as Envoy matches them); None when absent."""
        values = [value for key, value in self.headers if key == name]
        return b",".join(values) if values else None


_ALIKE = bytes(byte if byte > 0x7F or chr(byte).isalnum() else ord("-") for byte in range(256))


def alike(name: bytes) -> bytes:
    """What a lower-case name is to servers that make a variable of it: to CGI and its kin X_User is X-User, too
    (RFC 3875 4.1.18), and lighttpd reads any other mark so: X.User, X!User."""
    return name.translate(_ALIKE)


def edited(headers: Headers, edits: Iterable[HeaderEdit]) -> Headers:
    """The headers after the edits, one by one. The order of all others stays; names that are alike go together."""
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
