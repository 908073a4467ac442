"""The nftables backend: applies each desired state in one transaction and tracks the last one.

If the last state is ours, only the difference is written (see nft/table), provided that the watch proves that no other
program changed our tables, or the seal that they are unchanged. Else they are replaced as a whole, also in one
transaction. Both give the same rules.

A replaced state is sealed at once. An incremental update removes the seal until `read` has seen no change for a while,
because listing all rules takes longer than the update. A process that starts in between replaces everything.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain

from tproxy_rules import routes
from tproxy_rules.backend import QUIET, Installed, KernelError, Suppressed
from tproxy_rules.desired import Desired, Settings, Stage, Table
from tproxy_rules.digest import fingerprint
from tproxy_rules.identity_cache import IdentityCache
from tproxy_rules.marks import TABLE
from tproxy_rules.memo import Memo
from tproxy_rules.nft import bridge as nft_bridge
from tproxy_rules.nft import inet as nft_inet
from tproxy_rules.nft import limits as nft_limits
from tproxy_rules.nft import state as nft_state
from tproxy_rules.nft.policy import Asked, asked
from tproxy_rules.nft.probe import probes, sample
from tproxy_rules.nft.state import Found
from tproxy_rules.nft.table import NftTable, alike, delta
from tproxy_rules.nft.text import absent
from tproxy_rules.nft.watch import NftMonitor, Watch, generation
from tproxy_rules.sysctl import Sysctls
from tproxy_rules.tally import Tally
from tproxy_rules.tool import run
from tproxy_rules.validate import Examined, checked, examined

_LOG = logging.getLogger(__name__)
Tables = dict[str, NftTable]
"""Tables by nftables family."""


def render(desired: Desired) -> str:
    """The state in the nft language: both tables, replacing those of the same names."""
    snapshot = checked(desired)
    tables = [nft_inet.table(snapshot), *([nft_bridge.table(snapshot)] if snapshot.bridges else [])]
    return "".join(one.text() for one in tables)


@dataclass(slots=True)
class _Known:
    """What this process applied last, verified at this generation. `quiet` counts the reads since then."""

    snapshot: str
    tables: Tables
    generation: int
    sealed: bool
    quiet: int = 0


class NftablesBackend:
    """`Backend` through the nft tool."""

    name = "nftables"
    steers_before_dnat = False

    def __init__(self, sysctls: Sysctls | None = None) -> None:
        self._sysctls = sysctls or Sysctls()
        self._known: _Known | None = None
        self._fresh = True
        self._watching: Watch | None = None
        self._routed: Settings | None = None
        self._examine: Memo[Table, Examined] = Memo(examined)
        self._ask: Memo[Stage, Asked] = Memo(asked)
        self._roll = IdentityCache()
        self._suppressed: dict[str, Tally[Suppressed]] = {}

    def check(self) -> None:
        """Raise KernelError if nft or the kernel lacks a feature. `nft -c` only checks, nothing is changed."""
        run(("nft", "--version"))
        run(("nft", "list", "tables"))
        for needs, text in probes(render):
            try:
                run(("nft", "-c", "-f", "-"), text)
            except KernelError as error:
                raise KernelError(f"nftables does not support {needs} on this node ({error})") from error

    def read(self) -> Installed | None:
        known = self._verified()
        if known is not None:
            known.quiet += 1
            if known.quiet == QUIET and not known.sealed:
                self._seal(known)
            return Installed(known.snapshot, routes.intact())
        tables = nft_state.families()
        if "inet" not in tables:
            return Installed("", intact=False) if tables else None
        found = nft_state.look(tables)
        return Installed(found.snapshot, found.sealed and routes.intact())

    def apply(self, desired: Desired) -> None:
        try:
            self._apply(desired)
        finally:  # rejected states may recur for hours, so they are cached, too
            self._examine.turn()
            self._ask.turn()

    def _apply(self, desired: Desired) -> None:
        snapshot = checked(desired, self._examine, self._roll.examined)
        wanted = fingerprint(snapshot, self._roll.digest)
        _ = self._watch  # subscribe before the first commit
        known = self._verified()
        if known is None or known.snapshot == wanted or self._routed != snapshot.settings:
            routes.ensure(snapshot.settings)  # otherwise already set; `read` checks them
            self._routed = snapshot.settings
        if known is None or known.snapshot != wanted:
            tables = self._draw(snapshot)
            if known is not None or not self._adopted(wanted, tables):
                routes.tune(snapshot, self._sysctls)
                self._put(known, wanted, tables)
        self._fresh = False

    def alarm(self) -> NftMonitor:
        return NftMonitor()

    def suppressed(self) -> Mapping[Suppressed, int]:
        for family in self._known.tables if self._known is not None else ():
            self._suppressed.setdefault(family, Tally()).saw(nft_limits.read(family))
        total: Counter[Suppressed] = Counter()
        for tally in self._suppressed.values():
            total.update(tally.total)
        return total

    def remove(self) -> None:
        self._known, self._fresh = None, True
        gone = "".join(absent(family, TABLE) for family in nft_state.families())
        if gone:
            run(("nft", "-f", "-"), gone)
        routes.remove()

    @property
    def _watch(self) -> Watch:
        """Created on first use, in the network namespace of the calling thread."""
        if self._watching is None:
            self._watching = Watch()
        return self._watching

    def _draw(self, snapshot: Desired) -> Tables:
        bridge = {"bridge": nft_bridge.table(snapshot, self._roll.split)} if snapshot.bridges else {}
        return {"inet": nft_inet.table(snapshot, self._ask, self._roll.split), **bridge}

    def _verified(self) -> _Known | None:
        """The last state if verified: by generation, as other programs change their own tables, else by the seal."""
        known, self._known = self._known, None
        if known is None:
            return None
        now = self._watch.followed(known.generation)
        if now is None and known.sealed:
            before = generation()  # read first: a commit during the check is seen next time
            now = before if _is_there(known.snapshot, known.tables) else None
        if now is not None:
            known.generation = now
            self._known = known
        return self._known

    def _adopted(self, wanted: str, tables: Tables) -> bool:
        """True if a new process finds the wanted state already applied."""
        now = generation()
        if not self._fresh or not _is_there(wanted, tables):
            return False
        self._known = _Known(wanted, tables, now, sealed=True)
        return True

    def _put(self, known: _Known | None, wanted: str, tables: Tables) -> None:
        self._known = None
        signed = nft_state.signed(wanted, _writing())
        if known is not None and known.tables.keys() == tables.keys():
            steps = [(known.tables[family], one) for family, one in tables.items()]
            if all(alike(before, one) for before, one in steps):
                text = "".join(delta(before, one) for before, one in steps)
                try:
                    run(("nft", "-f", "-"), nft_state.unsigned(sealed=known.sealed) + text + signed)
                except KernelError as error:
                    _LOG.warning("nftables rejected an incremental update, replacing the whole table: %s", error)
                else:
                    self._learn(_Known(wanted, tables, known.generation, sealed=False))
                    return
        if known is not None:
            with suppress(KernelError):  # the table may be gone, and its counters with it
                self._known = known
                self.suppressed()
            self._known = None
        fresh = _Known(wanted, tables, generation(), sealed=False)
        gone = "".join(absent(family, TABLE) for family in nft_state.families() if family not in tables)
        run(("nft", "-f", "-"), chain((gone,), *(one.pieces() for one in tables.values()), (signed,)))
        for tally in self._suppressed.values():
            tally.anew()
        self._learn(fresh)
        self._seal(fresh)

    def _learn(self, known: _Known) -> None:
        """Keep `known` after our commit, unless another program changed our tables since its generation."""
        now = self._watch.followed(known.generation, ours=1)
        if now is not None:
            known.generation = now
            self._known = known

    def _seal(self, known: _Known) -> None:
        """Seal, unless our tables changed before the listing was complete. Later changes break the seal."""
        text = nft_state.seal()
        if self._verified() is known:
            run(("nft", "-f", "-"), text)
            known.sealed, self._known = True, None
            self._learn(known)


def _is_there(snapshot: str, tables: Tables) -> bool:
    """Verify by the seal. Slow: lists all rules."""
    present = nft_state.families()
    return set(present) == set(tables) and nft_state.look(present) == Found(snapshot, _writing(), sealed=True)


@cache
def _writing() -> str:
    """A digest of how this version writes rules: of its rendering of a state with one of everything."""
    return hashlib.sha256(render(sample()).encode()).hexdigest()[:32]
