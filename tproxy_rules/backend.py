"""The interface between the desired state and a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from tproxy_rules.desired import Desired
from tproxy_rules.marks import LogDirection, LogEvent

QUIET: Final = 12
"""Reads without a change after which expensive work may run: about one minute for the agent."""


class KernelError(Exception):
    """The kernel, or a tool that configures it, refused. The message says what to install, load or grant."""


@dataclass(frozen=True, slots=True)
class Suppressed:
    """Packets without a flow event because of the rate limits: their sender, and the event they would have had.

    `source` is an address of this node, or the input interface if the source address is unverified; "" for senders
    elsewhere and if the backend does not know. The other fields are as in events (see marks).
    """

    source: str
    kind: LogEvent
    way: LogDirection
    endpoint: int


@dataclass(frozen=True, slots=True)
class Installed:
    """What a new process finds of ours in the kernel.

    `digest` is the digest of the last applied state (by any process). `intact` is true if the rules are as they were
    applied; false if some were removed or changed, or if that cannot be verified.
    """

    digest: str
    intact: bool


class RuleMonitor(Protocol):
    """A file descriptor to poll; when it is readable, call `rang`."""

    def fileno(self) -> int: ...
    def rang(self) -> bool: ...
    def close(self) -> None: ...


class Backend(Protocol):
    """Makes the kernel match a desired state. Applying the same state twice changes nothing.

    During a change, connections allowed before and after are not cut, and packets refused before and after do not pass.
    Kernel state outlives the process: only `remove` deletes it.
    """

    name: str
    steers_before_dnat: bool
    """True if packets to Service addresses reach the proxy before DNAT, so that the proxy must resolve them."""

    def check(self) -> None:
        """Raise KernelError naming the first missing requirement (tool, privilege, kernel feature)."""

    def read(self) -> Installed | None:
        """What is installed, or None. Cheap for the object that applied it while no other program changes the rules."""

    def apply(self, desired: Desired) -> None:
        """Apply in one transaction. On KernelError the previous state stays active."""

    def alarm(self) -> RuleMonitor | None:
        """A monitor for removals of our rules; None where only `read` detects them. The caller closes it."""

    def suppressed(self) -> Mapping[Suppressed, int]:
        """Packets without an event because of the limits, counted since this object first applied a state.

        Never decreases. Exact, except while a state is replaced as a whole.
        """

    def remove(self) -> None:
        """Delete all our kernel state. Idempotent."""
