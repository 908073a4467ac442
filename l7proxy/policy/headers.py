"""What a policy demands of one header, and what is done about it when that is not so (Cilium's `headerMatches`).

A rule names a Secret; its value comes in later, from the agent, and is sealed: nothing that prints a rule shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from l7proxy.model.http import alike
from l7proxy.model.secret import REDACTED, Sealed


class Mismatch(Enum):
    """What happens when the header is not as it should be. All but FAIL let the request pass."""

    FAIL = ""
    LOG = "LOG"
    ADD = "ADD"
    DELETE = "DELETE"
    REPLACE = "REPLACE"


WRITING: Final = frozenset((Mismatch.ADD, Mismatch.REPLACE))
"""Those that put the right header into the request."""
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
"""Headers that frame, route or end the message: with another value it would be another message than the one judged."""


@dataclass(frozen=True, slots=True, order=True)
class SecretName:
    """`namespace` is empty where the policy has none and names none: then the agent's own for secrets is meant."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class HeaderRule:
    """One item of `headerMatches`. `name` as written; `value` None and no secret: the header must be there.

    `sealed` is the value of `secret` once the agent has found it, and counts instead of `value`.
    """

    name: str
    value: str | None = None
    mismatch: Mismatch = Mismatch.FAIL
    secret: SecretName | None = None
    sealed: Sealed | None = None

    @property
    def wanted(self) -> bytes | None:
        """What the value must be; None when the header need only be there."""
        if self.sealed is not None:
            return self.sealed.value
        return None if self.value is None else self.value.encode()

    @property
    def unresolved(self) -> bool:
        """There is nothing to compare with: the item never matches."""
        return self.secret is not None and self.sealed is None and self.value is None

    def __str__(self) -> str:
        """As people read it; a secret by its name."""
        if self.secret is not None:
            wanted = f": {REDACTED} (secret {self.secret})" + (" or its value" if self.value is not None else "")
        else:
            wanted = "" if self.value is None else f": {self.value}"
        return f"{self.name}{wanted}" + (f", else {self.mismatch.value}" if self.mismatch.value else "")


def value_fault(text: str) -> str:
    """Why `text` cannot be a header's value, empty when it can. Never quotes it: it may be a secret."""
    if any(char in text for char in "\r\n\0"):
        return "contains a line break or a NUL, which is not allowed in a header value"
    if any((char < " " and char != "\t") or char == "\x7f" for char in text):
        return "contains a control character, which is not allowed in a header value"
    return ""


def writing_fault(name: str, text: str) -> str:
    """Why this header cannot be written into a request, empty when it can."""
    if alike(name.lower().encode()).decode() in FRAMING:
        return f"{name} is used for framing or routing of the request and cannot be changed"
    if text != text.strip(" \t"):
        return "a value that begins or ends with whitespace cannot be written"
    return ""
