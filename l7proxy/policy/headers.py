"""Requirements on one header, and the action on a mismatch (Cilium's `headerMatches`).

A rule names a Secret. The agent adds its value later as a `Sealed`, so that printing a rule does not show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from l7proxy.model.http import alike
from l7proxy.model.secret import REDACTED, Sealed


class Mismatch(Enum):
    """The action when the header does not match. All but FAIL allow the request."""

    FAIL = ""
    LOG = "LOG"
    ADD = "ADD"
    DELETE = "DELETE"
    REPLACE = "REPLACE"


WRITING: Final = frozenset((Mismatch.ADD, Mismatch.REPLACE))
"""Actions that write the required header into the request."""
CHANGING: Final = WRITING | {Mismatch.DELETE}

FRAMING: Final = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""Headers that frame, route or end the message: changing one would change the message that was evaluated."""


@dataclass(frozen=True, slots=True, order=True)
class SecretName:
    """`namespace` is empty when neither the policy nor the reference has one: then the agent's secrets namespace."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class HeaderRule:
    """One item of `headerMatches`. `name` as written; with `value` None and no secret the header must be present.

    `sealed` is the value of `secret` once the agent has resolved it; it takes precedence over `value`.
    """

    name: str
    value: str | None = None
    mismatch: Mismatch = Mismatch.FAIL
    secret: SecretName | None = None
    sealed: Sealed | None = None

    @property
    def wanted(self) -> bytes | None:
        """The required value; None when the header need only be present."""
        if self.sealed is not None:
            return self.sealed.value
        return None if self.value is None else self.value.encode()

    @property
    def unresolved(self) -> bool:
        """There is no value to compare with: the item never matches."""
        return self.secret is not None and self.sealed is None and self.value is None

    def __str__(self) -> str:
        """For people; a secret is shown by its name."""
        if self.secret is not None:
            wanted = f": {REDACTED} (secret {self.secret})" + (" or its value" if self.value is not None else "")
        else:
            wanted = "" if self.value is None else f": {self.value}"
        return f"{self.name}{wanted}" + (f", else {self.mismatch.value}" if self.mismatch.value else "")


def value_fault(text: str) -> str:
    """Why `text` is not a valid header value; empty when it is. Never quotes it: it may be a secret."""
    if any(char in text for char in "\r\n\0"):
        return "contains a line break or a NUL, which is not allowed in a header value"
    if any((char < " " and char != "\t") or char == "\x7f" for char in text):
        return "contains a control character, which is not allowed in a header value"
    return ""


def writing_fault(name: str, text: str) -> str:
    """Why this header cannot be written into a request; empty when it can."""
    if alike(name.lower().encode()).decode() in FRAMING:
        return f"{name} is used for framing or routing of the request and cannot be changed"
    if text != text.strip(" \t"):
        return "a value that begins or ends with whitespace cannot be written"
    return ""
