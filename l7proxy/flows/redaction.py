"""What flows and denied clients may be shown beyond the least. Everything else is left out where it is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class FlowRedaction:
    """What flows and denied clients may be shown beyond the least."""

    headers: tuple[str, ...] = ()
    query: bool = False
    deny_header: bool = False


LEAST: Final = FlowRedaction()
