"""The iptables backend: ipsets, one iptables-restore per IP family, and ebtables where pods are on a bridge.

For nodes without nft. Limitations compared with nftables, and their reasons:
- TPROXY exists only before Service DNAT (`steers_before_dnat`): the proxy gets Service addresses and resolves them.
- A change is one commit per table, not one in all. Between two commits a changed port may be refused, never opened.
- If no worker listens, TPROXY drops: a redirected client times out instead of getting a reset.
- Differences are written only where iptables uses nf_tables, whose generations prove that no other program committed in
  between. A set with changed members is recreated.
- net.bridge.bridge-nf-call-* are set to 0 where pods are on a bridge, because br_netfilter would lose the proxy's
  socket. Frames reach the IP layer anyway, where kube-proxy sees them. `remove` leaves the sysctls as they are
  (`Sysctls.restore` sets them back).

Ours are the chains and sets with the prefix L7P-. Our jumps must be first in the base chains. Others (kube-proxy)
insert theirs before them from time to time: `read` reports this as not intact, and `apply` repairs it.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from tproxy_rules import routes, sysctl
from tproxy_rules.backend import QUIET, Installed, KernelError, Suppressed
from tproxy_rules.desired import Desired, Table
from tproxy_rules.digest import fingerprint
from tproxy_rules.identity_cache import IdentityCache
from tproxy_rules.iptables import bridge as ipt_bridge
from tproxy_rules.iptables import rules as ipt_rules
from tproxy_rules.iptables.rules import IptTable
from tproxy_rules.iptables.sets import IpSet
from tproxy_rules.marks import CHAIN_PREFIX, LogDirection, LogEvent, read_prefix
from tproxy_rules.memo import Memo
from tproxy_rules.nft.probe import sample
from tproxy_rules.nft.watch import generation
from tproxy_rules.sysctl import Sysctls
from tproxy_rules.tally import Tally
from tproxy_rules.tool import run
from tproxy_rules.validate import Examined, checked, examined

_LOG = logging.getLogger(__name__)
_TABLES: Final = ("raw", "mangle", "nat", "filter")
_COUNTING: Final = ("raw", "filter")
"""The tables whose rules refuse packets."""
_COUNTED: Final = re.compile(
    rf'^\[(\d+):\d+\] -A ({CHAIN_PREFIX}\S+) .*--(comment|nflog-prefix) "?(l7p:[a-z:_-]+:\d+)"?', re.MULTILINE
)
_Counter = tuple[int, str, LogEvent, LogDirection, int, bool]
"""IP family, chain, event, direction, endpoint, and whether the rule logs (True) or only counts (False)."""
_STATE: Final = f"{CHAIN_PREFIX}STATE"
_SEAL: Final = f"{CHAIN_PREFIX}SEAL"
_TEMPORARY: Final = f"{CHAIN_PREFIX}tmp"
_COMMENT: Final = re.compile(rf'^-A {_STATE} .*--comment "l7proxy ([0-9a-f]{{64}}) ([0-9a-f]{{32}})"', re.MULTILINE)
_SEALED: Final = re.compile(rf"^-A {_SEAL} .*--comment \"?([0-9a-f]{{64}})", re.MULTILINE)
_SWITCHES: Final = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")
_RESTORE: Final = {4: "iptables-restore", 6: "ip6tables-restore"}
_SAVE: Final = {4: "iptables-save", 6: "ip6tables-save"}


@dataclass(frozen=True, slots=True)
class Rendering:
    """A desired state as input for the three tools."""

    families: tuple[ipt_rules.Family, ...]
    bridge: tuple[IptTable, ...]

    @property
    def sets(self) -> dict[str, IpSet]:
        return {one.name: one for family in self.families for one in family.sets}

    def text(self) -> str:
        """The full text for a node without our rules, for people and for the digest."""
        parts = [one.text() for one in self.sets.values()]
        parts += [_restore(family.tables, Present({}), note="") for family in self.families]
        return "\n".join((*parts, _restore(self.bridge, Present({}), note="")))


@dataclass(slots=True)
class _Known:
    """What this process applied last, at this generation of nf_tables. `quiet` counts the reads since then.

    `sizes` is the number of members per set, because sets have no generation. `rules` is the digest of our rules as
    listed by the tools, "" until first read; it proves that commits of other programs left our rules unchanged.
    """

    snapshot: str
    rendering: Rendering
    sizes: dict[str, int]
    generation: int
    sealed: bool
    rules: str = ""
    quiet: int = 0


@dataclass(frozen=True, slots=True)
class Present:
    """The lines of each table in the output of a `-save` tool."""

    tables: dict[str, list[str]]

    @classmethod
    def parse(cls, saved: str) -> Present:
        tables: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in saved.splitlines():
            if line.startswith("*"):
                lines = tables.setdefault(line[1:], [])
            elif line.startswith((":", "-A")):
                lines.append(line)
        return cls(tables)

    def chains(self, table: str) -> list[str]:
        return [line[1:].split()[0] for line in self.tables.get(table, ()) if line.startswith(f":{CHAIN_PREFIX}")]

    def jumps(self, table: str) -> list[tuple[str, str]]:
        """(base chain, rest of the rule) of the jumps to our chains."""
        found = []
        for line in self.tables.get(table, ()):
            _, _, rule = line.partition("-A ")
            base, _, rest = rule.partition(" ")
            if rest.startswith(f"-j {CHAIN_PREFIX}") and not base.startswith(CHAIN_PREFIX):
                found.append((base, rest))
        return found

    def ours(self) -> Iterator[str]:
        """All our lines except the seal, without counters, and for each jump its position in its chain."""
        for table, lines in sorted(self.tables.items()):
            places: dict[str, int] = {}
            for line in lines:
                chain = line[1:].split()[0] if line.startswith(":") else line.split()[1]
                places[chain] = places.get(chain, -1) + (not line.startswith(":"))
                if chain == _SEAL:
                    continue
                if chain.startswith(CHAIN_PREFIX):
                    yield f"{table} {line.partition(' [')[0] if line.startswith(':') else line}"
                elif f" -j {CHAIN_PREFIX}" in line:
                    yield f"{table} {line} at {places[chain]}"


class IptablesBackend:
    """`Backend` through iptables, ip6tables, ipset and ebtables."""

    name = "iptables"
    steers_before_dnat = True

    def check(self) -> None:
        run(("ipset", "list", "-n"))
        for family in _families():
            for needs, text in _PROBES:
                try:
                    run((_RESTORE[family], "-w", "5", "--noflush", "--test"), text)
                except KernelError as error:
                    raise KernelError(f"{_RESTORE[family]} does not support {needs} on this node ({error})") from error

    def __init__(self, sysctls: Sysctls | None = None) -> None:
        self._sysctls = sysctls or Sysctls()
        self._known: _Known | None = None
        self._packets: Tally[_Counter] = Tally()
        self._examine: Memo[Table, Examined] = Memo(examined)
        self._roll = IdentityCache()

    def read(self) -> Installed | None:
        known = self._verified()
        if known is not None:
            known.quiet += 1
            if known.quiet > 1 and not known.rules:
                known.rules = self._looked(known)
            if known.quiet == QUIET and not known.sealed:
                self._seal(known)
            return Installed(known.snapshot, routes.intact() and _switched())
        present = _present()
        if not any(one.chains(table) for one in present.values() for table in one.tables):
            return None
        state, seal = _state(present)
        sealed = seal == _hash(present) and routes.intact() and _switched()
        return Installed(state[0] if state else "", intact=sealed)

    def apply(self, desired: Desired) -> None:
        try:
            self._apply(desired)
        finally:  # rejected states may recur for hours, so they are cached, too
            self._examine.turn()

    def _apply(self, desired: Desired) -> None:
        snapshot = checked(desired, self._examine, self._roll.examined)
        wanted = fingerprint(snapshot, self._roll.digest)
        routes.ensure(snapshot.settings)
        known = self._verified()
        if known is not None and not _switched():
            known = self._known = None
        if known is None or known.snapshot != wanted:
            self._put(known, wanted, snapshot)

    def suppressed(self) -> Mapping[Suppressed, int]:
        """Counted per rule: iptables has no counters per sender."""
        if self._known is not None:
            self._packets.saw(_counted())
        total: Counter[Suppressed] = Counter()
        for (_, _, kind, way, endpoint, logged), count in self._packets.total.items():
            total[Suppressed("", kind, way, endpoint)] += -count if logged else count
        return +total

    def alarm(self) -> None:
        """None: other programs commit to the same tables often, and checking takes long."""

    def remove(self) -> None:
        self._known = None
        present = _present()
        for family in _families():
            _run_restore(family, _restore([IptTable(name) for name in _TABLES], present[_SAVE[family]], note=""))
        _restore_bridge((IptTable("nat"), IptTable("filter")))
        _destroy_sets(keep=set())
        routes.remove()

    def _verified(self) -> _Known | None:
        """The last state if it is verified; in doubt, all rules are listed again."""
        known, self._known = self._known, None
        if known is not None and _sizes() == known.sizes:
            now = generation()
            if now == known.generation or (known.rules and _rules(_present()) == known.rules):
                known.generation = now  # a commit during the check is seen next time
                self._known = known
        return self._known

    def _looked(self, known: _Known) -> str:
        """The digest of our rules, or "" if there was a commit before the listing was complete."""
        found = _rules(_present())
        return found if generation() == known.generation else ""

    def _put(self, known: _Known | None, wanted: str, snapshot: Desired) -> None:
        rendering, note = _rendered(snapshot), f"l7proxy {wanted} {_writing()}"
        anew = _counting_anew(known.rendering, rendering) if known is not None else set()
        if anew:
            self.suppressed()
        self._packets.anew(lambda counter: counter[:2] in anew)
        self._known = None
        routes.tune(snapshot, self._sysctls)
        if known is not None and known.rendering.bridge == rendering.bridge:
            self._change(known, wanted, rendering, note)
            return
        before = generation() if _counts_generations() else -1
        present = _present()
        state, seal = _state(present)
        intact = seal == _hash(present) and _switched()
        if state == (wanted, _writing()) and intact:
            if before >= 0:
                self._learn(_Known(wanted, rendering, _sizes(), before, sealed=True))
            return
        _make_sets(rendering.sets.values(), trusted=intact)
        committed = 0
        if snapshot.bridges:
            _switch_off(self._sysctls)
            committed += _restore_bridge(rendering.bridge)
        for family in rendering.families:
            text = _restore(family.tables, present[_SAVE[family.version]], note=note)
            committed += _run_restore(family.version, text)
        if not snapshot.bridges:
            committed += _restore_bridge(rendering.bridge)
        _destroy_sets(keep=set(rendering.sets))
        _seal()
        if before >= 0:
            self._learn(_Known(wanted, rendering, _sizes(), before + committed + 1, sealed=True))

    def _change(self, known: _Known, wanted: str, rendering: Rendering, note: str) -> None:
        """Create missing sets, replace changed chains, then delete unused sets."""
        old, new = known.rendering.sets, rendering.sets
        fresh = {name: one.text() for name, one in new.items() if name not in old}
        if fresh:
            run(("ipset", "restore"), "".join(fresh.values()))
        committed = 0
        for before, after in zip(known.rendering.families, rendering.families, strict=True):
            text = _difference(before, after, note, sealed=known.sealed)
            committed += _run_restore(after.version, text)
        if stale := [name for name in old if name not in new]:
            run(("ipset", "restore"), "".join(f"destroy {name}\n" for name in stale))
        sizes = {name: known.sizes[name] for name in new if name in known.sizes}
        sizes |= {name: text.count("\nadd ") for name, text in fresh.items()}
        self._learn(_Known(wanted, rendering, sizes, known.generation + committed, sealed=False))

    def _learn(self, known: _Known) -> None:
        """Keep `known`, unless another program committed since its generation."""
        if generation() == known.generation and _sizes() == known.sizes:
            self._known = known

    def _seal(self, known: _Known) -> None:
        """Seal, unless there was a commit before the listing was complete. Later changes break the seal."""
        self._known = None
        if _seal(known.generation):
            known.generation, known.sealed = known.generation + 1, True
            self._learn(known)


def render(desired: Desired) -> Rendering:
    """Pure. Always both IP families: policy holds without a listener, too, and nothing stale is left."""
    return _rendered(checked(desired))


def _rendered(snapshot: Desired) -> Rendering:
    here = tuple(ipt_rules.render(snapshot, version) for version in (4, 6))
    return Rendering(here, ipt_bridge.render(snapshot))


@cache
def _writing() -> str:
    """A digest of how this version writes rules: of its rendering of a state with one of everything."""
    return hashlib.sha256(render(sample()).text().encode()).hexdigest()[:32]


# --- texts ------------------------------------------------------------------------------------------------------------


def _restore(tables: Iterable[IptTable], present: Present, *, note: str) -> str:
    """Input for a `-restore --noflush` tool: rewrites our chains, puts our jumps first, deletes our stale chains.

    A table without chains of ours before and after is omitted, because naming it would load its kernel module.
    """
    return "".join(_restore_table(table, present, note if table.name == "mangle" else "") for table in tables)


def _restore_table(table: IptTable, present: Present, note: str) -> str:
    chains = dict(table.chains)
    if note:
        chains[_STATE] = [_stating(note)]
    stale = [name for name in present.chains(table.name) if name not in chains]
    old = present.jumps(table.name)
    jumps = [f"-D {base} {rest}" for base, rest in old]
    jumps += [f"-I {base} 1 -j {chain}" for base, chain in table.jumps]
    return _transaction(table.name, chains, stale, jumps)


def _difference(before: ipt_rules.Family, after: ipt_rules.Family, note: str, *, sealed: bool) -> str:
    """The difference from a known state: only changed chains, and the state record. Jumps stay."""
    return "".join(
        _changed(old, new, note if new.name == "mangle" else "", sealed=sealed and after.version == 4)
        for old, new in zip(before.tables, after.tables, strict=True)
    )


def _changed(old: IptTable, new: IptTable, note: str, *, sealed: bool) -> str:
    chains = {name: rules for name, rules in new.chains.items() if old.chains.get(name) != rules}
    stale = [name for name in old.chains if name not in new.chains]
    if note:
        chains[_STATE] = [_stating(note)]
        stale += [_SEAL] * sealed
    return _transaction(new.name, chains, stale)


def _transaction(
    table: str, chains: Mapping[str, list[str]], stale: Iterable[str] = (), jumps: Iterable[str] = ()
) -> str:
    """Rewrites these chains and deletes the stale ones; "" if there is nothing to do."""
    lines = [f":{name} - [0:0]" for name in (*chains, *stale)]
    lines += jumps
    lines += [f"-A {name} {rule}" for name, rules in chains.items() for rule in rules]
    lines += [f"-X {name}" for name in stale]
    return "\n".join((f"*{table}", *lines, "COMMIT", "")) if lines else ""


def _stating(note: str) -> str:
    return f'-m comment --comment "{note}" -j RETURN'


# --- tools ------------------------------------------------------------------------------------------------------------


def _families() -> tuple[int, ...]:
    return (4, 6) if sysctl.exists("net/ipv6") else (4,)


def _present() -> dict[str, Present]:
    shown = {_SAVE[family]: Present.parse(run((_SAVE[family],))) for family in _families()}
    return {**shown, "ebtables-save": _present_bridge()}


def _run_restore(family: int, text: str) -> int:
    """Apply the text; returns the number of transactions."""
    if not text or family not in _families():
        return 0
    run((_RESTORE[family], "-w", "5", "--noflush"), text)
    return text.count("\nCOMMIT\n")


def _counts_generations() -> bool:
    """True if the tools use nf_tables, where every commit changes the generation."""
    return all("nf_tables" in run((_RESTORE[family], "--version")) for family in _families())


def _sizes() -> dict[str, int]:
    """Our sets with their number of members."""
    names = re.findall(r"^Name: (\S+)$|^Number of entries: (\d+)$", run(("ipset", "list", "-t")), re.MULTILINE)
    pairs = zip(names[::2], names[1::2], strict=True)
    return {name: int(number) for (name, _), (_, number) in pairs if name.startswith(CHAIN_PREFIX)}


def _state(present: dict[str, Present]) -> tuple[tuple[str, str] | None, str]:
    lines = "\n".join(present[_SAVE[4]].tables.get("mangle", ()))
    state, seal = _COMMENT.search(lines), _SEALED.search(lines)
    return (state[1], state[2]) if state else None, seal[1] if seal else ""


def _hash(present: dict[str, Present]) -> str:
    members = [line for line in run(("ipset", "save")).splitlines() if line.split()[1].startswith(CHAIN_PREFIX)]
    # Equal sets may differ in the random parts of their header.
    sets = sorted(re.sub(r" initval \S+| hashsize \d+", "", line) for line in members)
    return hashlib.sha256("\n".join((_rules(present), *sets)).encode()).hexdigest()


def _rules(present: dict[str, Present]) -> str:
    """The digest of our chains and the positions of the jumps to them, without the seal."""
    lines = [f"{tool} {line}" for tool, one in sorted(present.items()) for line in one.ours()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _seal(expected: int = -1) -> bool:
    """Store the digest of what the tools list now; any later change breaks it.

    Does nothing and returns False if the generation is not `expected`, which means another program's commit.
    """
    mark = _hash(_present())
    if expected >= 0 and generation() != expected:
        return False
    _run_restore(4, _transaction("mangle", {_SEAL: [_stating(mark)]}))
    return True


def _set_names() -> set[str]:
    return {name for name in run(("ipset", "list", "-n")).split() if name.startswith(CHAIN_PREFIX)}


def _make_sets(sets: Iterable[IpSet], *, trusted: bool) -> None:
    """Create missing sets. If not `trusted`, also refill the others and swap them in."""
    have = _set_names()
    text = ""
    for one in sets:
        if one.name not in have:
            text += one.text()
        elif not trusted:
            fresh = f"{_TEMPORARY}{one.version}"
            text += f"{one.text(fresh)}swap {fresh} {one.name}\ndestroy {fresh}\n"
    if text:
        for version in (4, 6):
            if f"{_TEMPORARY}{version}" in have:
                run(("ipset", "destroy", f"{_TEMPORARY}{version}"))
        run(("ipset", "restore"), text)


def _destroy_sets(*, keep: set[str]) -> None:
    text = "".join(f"destroy {name}\n" for name in sorted(_set_names() - keep))
    if text:
        run(("ipset", "restore"), text)


# --- bridge -----------------------------------------------------------------------------------------------------------


def _present_bridge() -> Present:
    try:
        return Present.parse(run(("ebtables-save",)))
    except KernelError as error:
        _LOG.debug("ebtables is not available: %s", error)
        return Present({})


def _restore_bridge(tables: Iterable[IptTable]) -> int:
    """Apply the tables; returns the number of transactions."""
    text = _restore(tables, _present_bridge(), note="")
    if text:
        run(("ebtables-restore", "--noflush"), text.replace(" - [0:0]", " RETURN"))
    return text.count("\nCOMMIT\n")


def _switched() -> bool:
    """True if bridge-nf-call is off, or irrelevant because ebtables has no chains of ours."""
    if not _present_bridge().chains("nat"):
        return True
    return all(sysctl.read(_switch(name)) == "0" for name in _SWITCHES if sysctl.exists(_switch(name)))


def _switch_off(sysctls: Sysctls) -> None:
    for name in _SWITCHES:
        try:
            if sysctl.exists(_switch(name)):
                sysctls.set(_switch(name), "0")
        except OSError as error:
            raise KernelError(
                f"net.bridge.{name} must be 0 for the iptables backend and cannot be set: {error}"
            ) from error


def _switch(name: str) -> str:
    return f"net/bridge/{name}"


def _counting_anew(before: Rendering, after: Rendering) -> set[tuple[int, str]]:
    """Chains whose counters restart at zero: removed or rewritten ones, or all if the bridge rules change."""
    return {
        (old_family.version, name)
        for old_family, new_family in zip(before.families, after.families, strict=True)
        for old, new in zip(old_family.tables, new_family.tables, strict=True)
        if old.name in _COUNTING
        for name, rules in old.chains.items()
        if before.bridge != after.bridge or new.chains.get(name) != rules
        if any("--nflog-prefix" in rule for rule in rules)
    }


def _counted() -> dict[_Counter, int]:
    """Packet counters of our rules: of each log rule, and of the rule before it, which all its packets match."""
    found: Counter[_Counter] = Counter()
    for family in _families():
        for table in _COUNTING:
            for packets, chain, kind, prefix in _COUNTED.findall(run((_SAVE[family], "-c", "-t", table))):
                parts = read_prefix(prefix)
                if parts is not None:
                    found[(family, chain, *parts, kind == "nflog-prefix")] += int(packets)
    return found


def _probe(table: str, rule: str) -> str:
    return f"*{table}\n:{CHAIN_PREFIX}PROBE - [0:0]\n-A {CHAIN_PREFIX}PROBE {rule}\nCOMMIT\n"


_PROBES: Final = (
    ("TPROXY (xt_TPROXY)", _probe("mangle", "-p tcp -j TPROXY --on-port 1 --tproxy-mark 0x1/0x1")),
    ("socket matching (xt_socket)", _probe("mangle", "-p tcp -m socket --transparent -j RETURN")),
    ("connection marks (xt_CONNMARK)", _probe("mangle", "-j CONNMARK --set-xmark 0x1/0x1")),
    ("connection tracking (xt_conntrack)", _probe("filter", "-m conntrack --ctdir REPLY -j RETURN")),
    ("zones of connection tracking (xt_CT, CONFIG_NF_CONNTRACK_ZONES)", _probe("raw", "-j CT --zone-orig 1")),
    (
        "limits per sender (xt_hashlimit)",
        _probe("filter", "-m hashlimit --hashlimit-upto 1/sec --hashlimit-mode srcip --hashlimit-name x -j RETURN"),
    ),
    ("logging to a group (xt_NFLOG)", _probe("filter", "-m limit --limit 1/second -j NFLOG --nflog-group 1")),
    ("the raw table (iptable_raw)", _probe("raw", "-j RETURN")),
    ("the nat table (iptable_nat)", _probe("nat", "-j RETURN")),
)
