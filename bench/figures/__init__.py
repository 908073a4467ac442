"""The figures, one module each: what is measured, against which peer, and the goal.

A figure is measured on the stage (a lab with one proxy at a time) or in its own environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.row import Row
from bench.stage import Stage

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure. `turns` of each proxy, `seconds` of load in each."""

    quick: bool
    turns: int
    seconds: float


THOROUGH: Final = Effort(quick=False, turns=3, seconds=4.0)
QUICK: Final = Effort(quick=True, turns=1, seconds=1.0)


@dataclass(frozen=True, slots=True)
class OnStage:
    """Measured in the lab, through the proxies."""

    key: str
    about: str
    measure: Callable[[Stage, Effort, Report], list[Row]]


@dataclass(frozen=True, slots=True)
class Alone:
    """Measured in an environment that it creates itself."""

    key: str
    about: str
    measure: Callable[[Effort, Report], list[Row]]


Figure = OnStage | Alone
