"""A request as policy sees it. The wire makes it, decide reads it: the only HTTP word both floors share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Request:
    """One HTTP request, already normalised: what is judged is what is forwarded.

    `path` is the request target's path with its query string; `host` the authority as sent, port and case included;
    `headers` in order, names lower case, values without surrounding blanks. Not frozen: made per request.
    """

    method: bytes
    path: bytes
    host: bytes
    headers: list[tuple[bytes, bytes]]

    def joined(self, name: bytes) -> bytes | None:
        """The value of a header, repeats joined by a comma (as Envoy matches them); None when absent."""
        values = [value for key, value in self.headers if key == name]
        return b",".join(values) if values else None
