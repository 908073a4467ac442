"""A value that is used and never shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

REDACTED: Final = "[redacted]"
"""What is shown in the place of a secret value."""


@dataclass(frozen=True, slots=True, repr=False)
class Sealed:
    """It crosses the link to workers, and goes out on the wire where a policy says so; printed, it shows nothing."""

    value: bytes

    def __repr__(self) -> str:
        return REDACTED

    __str__ = __repr__
