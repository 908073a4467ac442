"""What flows and denied clients may be shown in addition to the minimum. The rest is removed when it is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class FlowRedaction:
    """What flows and denied clients may be shown in addition to the minimum."""

    headers: tuple[str, ...] = ()
    query: bool = False
    deny_header: bool = False


LEAST: Final = FlowRedaction()
