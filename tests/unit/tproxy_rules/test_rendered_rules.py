"""The rules as text. The golden files are for review by people: `L7PROXY_WRITE_GOLDEN=1` rewrites them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tproxy_rules.desired import Bridge, Desired, Endpoint, Entry, Frontend, Port, Settings, Verdict, union
from tproxy_rules.iptables import backend as iptables
from tproxy_rules.nft import backend as nftables
from tproxy_rules.nft.probe import sample

ALLOW, STEER, DENY = Verdict.ALLOW, Verdict.STEER, Verdict.DENY
GOLDEN = Path(__file__).parent / "golden"
BIGGEST = 0xFFFF_FFFF


def entry(verdict: Verdict, first: int = 0, last: int = 65535, *peers: int, protocol: int = 6) -> Entry:
    return Entry(verdict, protocol, first, last, any_peer=not peers, peers=peers)


RICH = union(
    (
        entry(DENY, 0, 65535, 66, protocol=-1),
        entry(STEER, 80, 80, 7, 8),
        entry(STEER, 8080, 8080),
        entry(ALLOW, 9000, 9100, 7),
        entry(ALLOW, 53, 53, protocol=17),
        entry(ALLOW, protocol=1),
    )
)
NETS = (("0.0.0.0/0", 2), ("10.0.0.0/8", 7), ("10.2.0.0/16", 8), ("10.2.0.1/32", 66), ("::/0", 2), ("fd00::/8", 7))
ROUTED = Endpoint(1, ("10.1.0.11", "fd00:1::b"), Port("veth1"), ingress=RICH)
BRIDGED = replace(ROUTED, port=Port("veth1", "02:00:00:00:00:01", "cni0"), egress=union((entry(ALLOW, 443, 443),)))
BRIDGE = (Bridge("cni0", "02:aa:00:00:00:01"),)
SNAPSHOTS = {
    "empty": Desired(),
    "routed": Desired(identities=NETS, endpoints=(ROUTED,), frontends=(Frontend("10.96.0.9", 6, 80, steer=True),)),
    "bridged": Desired(
        settings=Settings(refuse_with_reset=False), identities=NETS, endpoints=(BRIDGED,), bridges=BRIDGE
    ),
    "tiered": sample(),
}
RENDERERS: dict[str, Callable[[Desired], str]] = {
    "nft": nftables.render,
    "iptables": lambda snapshot: iptables.render(snapshot).text(),
}


@pytest.mark.parametrize("language", RENDERERS)
@pytest.mark.parametrize("name", SNAPSHOTS)
def test_golden(name: str, language: str) -> None:
    text, file = RENDERERS[language](SNAPSHOTS[name]), GOLDEN / f"{name}.{language}"
    if os.environ.get("L7PROXY_WRITE_GOLDEN"):
        file.write_text(text, encoding="ascii")
    assert text == file.read_text(encoding="ascii")


def congested(many: int) -> Desired:
    """The same kinds of entries, `many` of each."""
    entries = [
        one
        for number in range(1, many + 1)
        for one in (
            entry(ALLOW, 2 * number, 2 * number),
            entry(ALLOW, 20_000 + 3 * number, 20_001 + 3 * number),
            entry(STEER, 2 * number, 2 * number, 1000 + number),
            entry(DENY, 0, 65535, 5000 + number, protocol=-1),
        )
    ]
    hosts = [(f"10.2.{number // 250}.{number % 250}/32", 1000 + number) for number in range(1, many + 1)]
    endpoint = replace(BRIDGED, id=BIGGEST, ingress=union(tuple(entries)), egress=union(tuple(entries)))
    return Desired(identities=(*NETS[:3], *hosts), endpoints=(endpoint,), bridges=BRIDGE)


def chains(text: str) -> dict[str, int]:
    """The number of rules in each chain."""
    found = re.findall(r"^\tchain (\S+) \{\n((?:\t\t.*\n)*)\t\}", text, re.MULTILINE)
    assert found
    return {name: body.count("\n") for name, body in found}


def test_nft_cost_does_not_grow_with_the_entries() -> None:
    assert chains(nftables.render(congested(1))) == chains(nftables.render(congested(2000)))


def test_nft_names_fit_and_lookups_of_nothing_are_not_made() -> None:
    """NFT_SET_MAXNAMELEN and NFT_CHAIN_MAXNAMELEN are 256; older kernels allow 32 for sets and 128 for chains."""
    for snapshot in (*SNAPSHOTS.values(), congested(3)):
        text = nftables.render(snapshot)
        made = re.findall(
            r"^\t(?:set|map) ([ei]\d+_\d+_\d+_\S+) \{\n\t\t.*\n(?:\t\tflags interval\n)?(\t\telem)?", text, re.M
        )
        assert all(elements for _, elements in made), "a policy set with nothing in it"
        assert {name for name, _ in made} == set(re.findall(r"@([ei]\d+_\d+_\d+_\w+)", text)), "made but never asked"
        assert all(len(name) <= 63 for name in re.findall(r"^\t(?:set|map|chain) (\S+)", text, re.M))


def test_nft_replicas_share_their_sets() -> None:
    two = (ROUTED, replace(ROUTED, id=2, addresses=("10.1.0.12",), port=Port("veth2")))
    one, both = (nftables.render(Desired(identities=NETS, endpoints=some)) for some in (two[:1], two))
    assert re.findall(r"set ([ei]\d\S+)", one) == re.findall(r"set ([ei]\d\S+)", both)


@pytest.mark.parametrize("render", RENDERERS.values(), ids=RENDERERS)
def test_marks_of_others_are_kept(render: Callable[[Desired], str]) -> None:
    """Marks are only ever written with a mask, whatever the bits."""
    text = render(replace(SNAPSHOTS["routed"], settings=Settings(mark_proxy=0x80000000, mark_upstream=1)))
    for statement in re.findall(r"mark set (?!meta mark [|&] 0x[0-9a-f]{8}|ct mark \| 0x[0-9a-f]{8}).*", text):
        pytest.fail(f"overwrites: {statement}")
    assert not re.search(r"--set-mark|--or-mark|-j (CONN)?MARK (?!--set-xmark 0x[0-9a-f]+/0x[0-9a-f]+)", text)
    # Equal value and mask set our bits; zero clears them; anything else would write into foreign bits.
    for value, mask in re.findall(r"--set-xmark (0x[0-9a-f]+)/(0x[0-9a-f]+)", text):
        assert value in ("0x0", mask)
        assert int(mask, 16) | 0x80000001 == 0x80000001


def test_iptables_names_fit() -> None:
    """ipset allows 31 characters, iptables 28 for a chain; ebtables-restore the same."""
    rendering = iptables.render(congested(3))
    names = [name for family in rendering.families for table in family.tables for name in table.chains]
    names += [name for table in rendering.bridge for name in table.chains]
    assert max(map(len, names)) <= 28
    assert all(name.startswith("L7P-") for name in names)
    assert max(len(name) for name in rendering.sets) <= 31


def test_iptables_has_one_rule_per_entry_whatever_the_peers() -> None:
    def rules(peers: tuple[int, ...]) -> int:
        table = union((entry(ALLOW, 80, 80, *peers),))
        nets = tuple((f"10.5.{number}.0/24", number) for number in range(1, 200))
        text = iptables.render(Desired(identities=nets, endpoints=(replace(ROUTED, ingress=table),))).text()
        return len(re.findall(r"^-A", text, re.MULTILINE))

    # Without 1: that is the node, which has its own chains.
    assert rules((5,)) == rules(tuple(range(2, 200)))


def test_iptables_every_set_asked_is_made_and_the_other_way_round() -> None:
    for snapshot in (*SNAPSHOTS.values(), congested(3)):
        text = iptables.render(snapshot).text()
        asked = set(re.findall(r"--match-set (\S+)", text))
        assert asked <= set(re.findall(r"^create (\S+)", text, re.MULTILINE))


def test_iptables_judges_both_families_whatever_is_served() -> None:
    four = iptables.render(replace(SNAPSHOTS["routed"], settings=Settings(families=(4,))))
    assert [family.version for family in four.families] == [4, 6]
