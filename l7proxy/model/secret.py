"""Values that are used but never shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

REDACTED: Final = "[redacted]"
"""Shown in place of a secret value."""


@dataclass(frozen=True, slots=True, repr=False)
class Sealed:
    """A secret value. It crosses the link to workers and is sent where a policy says so. Printing does not show it."""

    value: bytes

    def __repr__(self) -> str:
        return REDACTED

    __str__ = __repr__
