"""The nftables backend: pictures as text, one transaction to put each in force, and what is known of the last one.

A picture that follows another of ours is written as the difference (see nft/table), as long as the watch proves that
nobody else has touched our tables in between, or the seal that they are as they were. Else they are replaced whole,
which is one transaction, too. Both ways lead to the same rules.

A whole picture is sealed at once. After a difference the seal is gone until `read` has found things quiet for a while:
listing everything takes longer than the difference did. A process that starts in between cannot tell, and replaces all.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from tproxy_rules import routes
from tproxy_rules.backend import QUIET, Installed, KernelError, Suppressed
from tproxy_rules.desired import Desired, Prefixes, Settings, Stage, Table
from tproxy_rules.digest import fingerprint, identities_digest, table_digest
from tproxy_rules.marks import TABLE
from tproxy_rules.memo import Memo
from tproxy_rules.nft import bridge as nft_bridge
from tproxy_rules.nft import inet as nft_inet
from tproxy_rules.nft import limits as nft_limits
from tproxy_rules.nft import state as nft_state
from tproxy_rules.nft.identity_cache import IdentityCache
from tproxy_rules.nft.policy import Asked, asked
from tproxy_rules.nft.probe import probes, sample
from tproxy_rules.nft.state import Found
from tproxy_rules.nft.table import NftTable, alike, delta
from tproxy_rules.nft.text import absent
from tproxy_rules.nft.watch import NftMonitor, Watch, generation
from tproxy_rules.tally import Tally
from tproxy_rules.tool import run
from tproxy_rules.validate import Examined, checked, examined

_LOG = logging.getLogger(__name__)
Tables = dict[str, NftTable]
"""By family."""


def render(desired: Desired) -> str:
    """The picture in the nft language: both tables whole, in the place of those of the same names."""
    picture = checked(desired)
    tables = [nft_inet.table(picture), *([nft_bridge.table(picture)] if picture.bridges else [])]
    return "".join(one.text() for one in tables)


@dataclass(slots=True)
class _Known:
    """What this process has put in force, as of a generation. `quiet` counts how often it was read since."""

    picture: str
    tables: Tables
    generation: int
    sealed: bool
    quiet: int = 0


class NftablesBackend:
    """`Backend` by way of the nft tool."""

    name = "nftables"
    steers_before_dnat = False

    def __init__(self) -> None:
        self._known: _Known | None = None
        self._fresh = True
        self._watching: Watch | None = None
        self._routed: Settings | None = None
        self._examine: Memo[Table, Examined] = Memo(examined)
        self._digest: Memo[Table, bytes] = Memo(table_digest)
        self._ask: Memo[Stage, Asked] = Memo(asked)
        self._identities_digest: Memo[Prefixes, bytes] = Memo(identities_digest)
        self._roll = IdentityCache()
        self._suppressed: dict[str, Tally[Suppressed]] = {}

    def check(self) -> None:
        """Nothing is changed: nft has the kernel try each transaction and drop it."""
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
            return Installed(known.picture, routes.intact())
        tables = nft_state.families()
        if "inet" not in tables:
            return Installed("", intact=False) if tables else None
        found = nft_state.look(tables)
        return Installed(found.picture, found.sealed and routes.intact())

    def apply(self, desired: Desired) -> None:
        try:
            self._apply(desired)
        finally:  # refused ones, too, may come for hours
            for memo in (self._examine, self._digest, self._ask, self._identities_digest):
                memo.turn()

    def _apply(self, desired: Desired) -> None:
        picture = checked(desired, self._examine, self._roll.examined)
        wanted = fingerprint(picture, self._digest, self._identities_digest)
        _ = self._watch  # before the first commit
        known = self._verified()
        if known is None or known.picture == wanted or self._routed != picture.settings:
            routes.ensure(picture.settings)  # else they stand since the picture before; `read` looks after them
            self._routed = picture.settings
        if known is None or known.picture != wanted:
            tables = self._draw(picture)
            if known is not None or not self._adopted(wanted, tables):
                routes.tune(picture)
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
        """Made in the network namespace of whoever first asks for something."""
        if self._watching is None:
            self._watching = Watch()
        return self._watching

    def _draw(self, picture: Desired) -> Tables:
        bridge = {"bridge": nft_bridge.table(picture, self._roll.split)} if picture.bridges else {}
        return {"inet": nft_inet.table(picture, self._ask, self._roll.split), **bridge}

    def _verified(self) -> _Known | None:
        """What is known, if it still holds: others commit to tables of theirs. When in doubt, the seal decides."""
        known, self._known = self._known, None
        if known is None:
            return None
        now = self._watch.followed(known.generation)
        if now is None and known.sealed:
            before = generation()  # whatever is committed while we look shows next time
            now = before if _is_there(known.picture, known.tables) else None
        if now is not None:
            known.generation = now
            self._known = known
        return self._known

    def _adopted(self, wanted: str, tables: Tables) -> bool:
        """A fresh process finds what it wants."""
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
            with suppress(KernelError):  # somebody took the table away, and its counts with it
                self._known = known
                self.suppressed()
            self._known = None
        fresh = _Known(wanted, tables, generation(), sealed=False)
        gone = "".join(absent(family, TABLE) for family in nft_state.families() if family not in tables)
        run(("nft", "-f", "-"), gone + "".join(one.text() for one in tables.values()) + signed)
        for tally in self._suppressed.values():
            tally.anew()
        self._learn(fresh)
        self._seal(fresh)

    def _learn(self, known: _Known) -> None:
        """After a commit of ours: unless somebody else touched our tables between its generation and now."""
        now = self._watch.followed(known.generation, ours=1)
        if now is not None:
            known.generation = now
            self._known = known

    def _seal(self, known: _Known) -> None:
        """Not when others touched ours before all was listed. What they do later breaks the seal, as it should."""
        text = nft_state.seal()
        if self._verified() is known:
            run(("nft", "-f", "-"), text)
            known.sealed, self._known = True, None
            self._learn(known)


def _is_there(picture: str, tables: Tables) -> bool:
    """By the seal. This lists everything."""
    present = nft_state.families()
    return set(present) == set(tables) and nft_state.look(present) == Found(picture, _writing(), sealed=True)


@cache
def _writing() -> str:
    """Our way of writing rules, by what it makes of a picture of everything."""
    return hashlib.sha256(render(sample()).encode()).hexdigest()[:32]
