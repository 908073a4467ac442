"""The seam between the picture and a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from tproxy_rules.desired import Desired
from tproxy_rules.marks import LogDirection, LogEvent

QUIET: Final = 12
"""Reads without a change in between, after which what takes long may be done: about a minute of an agent's."""


class KernelError(Exception):
    """The kernel, or a tool that speaks to it, refused. The message says what to install, load or grant."""


@dataclass(frozen=True, slots=True)
class Suppressed:
    """What packets have in common that were judged and not told of: their sender, and what would have been told.

    `source` is an address of this node, or the interface that packets came in by whose address may be a lie; "" for
    senders elsewhere and where a backend does not know. The rest is as in events (see marks).
    """

    source: str
    told: LogEvent
    way: LogDirection
    endpoint: int


@dataclass(frozen=True, slots=True)
class Installed:
    """What a fresh process finds of ours in the kernel.

    `digest` is that of the picture which was applied last (by anyone), `intact` tells whether the rules still are as
    they were applied: false when somebody removed or changed some of them, or when nobody can tell.
    """

    digest: str
    intact: bool


class RuleMonitor(Protocol):
    """A descriptor to wait for until it is readable, and then to ask."""

    def fileno(self) -> int: ...
    def rang(self) -> bool: ...
    def close(self) -> None: ...


class Backend(Protocol):
    """Makes the kernel match a picture. Applying the same picture twice changes nothing.

    Nothing that passed before and passes after is cut between; nothing that was refused before and is refused after
    gets through between. State outlives the process: only `remove` takes it away.
    """

    name: str
    steers_before_dnat: bool
    """True when Service addresses reach the proxy untranslated, so that the proxy must resolve them."""

    def check(self) -> None:
        """KernelError naming the first thing that is missing (tool, privilege, kernel feature)."""

    def read(self) -> Installed | None:
        """What is installed, or None. Cheap to the object that applied it, as long as nobody else changes it."""

    def apply(self, desired: Desired) -> None:
        """One transaction. KernelError leaves the previous picture in force."""

    def alarm(self) -> RuleMonitor | None:
        """Tells at once when rules of ours are taken away; None where only `read` finds out. The caller closes it."""

    def suppressed(self) -> Mapping[Suppressed, int]:
        """Packets judged and not told of, because of the limits, since this object first put a picture in force.

        Never less than before. Exact but for the moment in which a picture is replaced whole.
        """

    def remove(self) -> None:
        """Leave no trace. Removing twice is fine."""
