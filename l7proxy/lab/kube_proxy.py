"""Services as in kube-proxy's iptables mode, in the node's namespace. Rendering is pure text.

The rules have kube-proxy's form on purpose (chain names, mark 0x4000, jumps inserted first): the agent on the node must
work next to the real one. `--noflush`: other tables and chains on the node are kept.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
from collections.abc import Iterator
from typing import Final

from l7proxy.errors import ConfigError
from l7proxy.lab.cluster import Cluster
from l7proxy.lab.netns import inside
from l7proxy.model.endpoint import Frontend
from l7proxy.model.net import family_of
from l7proxy.model.resources import Node
from l7proxy.model.verdict import Protocol

MASQUERADE_MARK: Final = "0x4000"
TOOL: Final = {4: "iptables", 6: "ip6tables"}
FULL_PREFIX: Final = {4: 32, 6: 128}
_FIXED: Final = ("KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ")
_JUMPS: Final = (
    ("nat", "PREROUTING", "KUBE-SERVICES"),
    ("nat", "OUTPUT", "KUBE-SERVICES"),
    ("nat", "POSTROUTING", "KUBE-POSTROUTING"),
    ("filter", "FORWARD", "KUBE-SERVICES"),
    ("filter", "OUTPUT", "KUBE-SERVICES"),
)


def render(cluster: Cluster, node: Node, family: int, stale: frozenset[str] = frozenset()) -> str:
    """The input of iptables-restore for one node and family. `stale` are chains of an earlier state, to be deleted."""
    chains: list[str] = []
    rules: list[str] = []
    refusals: list[str] = []
    cidr = next((c for c in node.pod_cidrs if family_of(c) == family), "")
    for frontend in cluster.frontends(family):
        protocol = Protocol(frontend.protocol).name.lower()
        match = f"-d {frontend.address}/{FULL_PREFIX[family]} -p {protocol} --dport {frontend.port}"
        if not frontend.backends:
            refusals.append(f"-A KUBE-SERVICES {match} -j REJECT")
            continue
        chain = _chain("KUBE-SVC", frontend)
        rules.append(f"-A KUBE-SERVICES {match} -j {chain}")
        if cidr:  # only the node's own pods are known to return this way
            rules.append(f"-A {chain} ! -s {cidr} {match} -j KUBE-MARK-MASQ")
        chains.append(chain)
        for index, target in enumerate(frontend.backends):
            endpoint = _chain("KUBE-SEP", frontend, target.address, str(target.port))
            chains.append(endpoint)
            rules.append(f"-A {chain} {_share(len(frontend.backends) - index)}-j {endpoint}")
            rules.append(f"-A {endpoint} -s {target.address}/{FULL_PREFIX[family]} -j KUBE-MARK-MASQ")
            place = f"[{target.address}]" if family == 6 else target.address
            rules.append(f"-A {endpoint} -p {protocol} -j DNAT --to-destination {place}:{target.port}")
    return "\n".join([*_nat(chains, rules, stale), *_filter(refusals), ""])


def _nat(chains: list[str], rules: list[str], stale: frozenset[str]) -> Iterator[str]:
    gone = sorted(stale - set(chains))
    yield "*nat"
    yield from (f":{chain} - [0:0]" for chain in (*_FIXED, *chains, *gone))
    yield f"-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE_MARK}"
    yield f"-A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE_MARK}/{MASQUERADE_MARK} -j RETURN"
    yield f"-A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE_MARK}"
    yield "-A KUBE-POSTROUTING -j MASQUERADE --random-fully"
    yield from rules
    yield from (f"-X {chain}" for chain in gone)
    yield "COMMIT"


def _filter(refusals: list[str]) -> Iterator[str]:
    yield from ("*filter", ":KUBE-SERVICES - [0:0]", *refusals, "COMMIT")


def _share(left: int) -> str:
    return f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""


def _chain(kind: str, frontend: Frontend, *more: str) -> str:
    """A chain name in kube-proxy's form: a prefix and 16 letters of a hash."""
    text = ":".join([*map(str, (frontend.address, frontend.protocol, frontend.port)), *more])
    return f"{kind}-{base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:16]}"


def sync(namespace: str, cluster: Cluster, node: Node, families: tuple[int, ...]) -> None:
    """Update the node's rules to the cluster's Services."""
    for family in families:
        stale = frozenset(_existing(namespace, family))
        _run(namespace, [f"{TOOL[family]}-restore", "--noflush", "-w", "5"], render(cluster, node, family, stale))
        for table, chain, target in _JUMPS:
            _ensure_first(namespace, family, table, chain, target)


def _existing(namespace: str, family: int) -> list[str]:
    listing = _run(namespace, [TOOL[family], "-w", "5", "-t", "nat", "-S"])
    return [line.split()[1] for line in listing.splitlines() if line.startswith(("-N KUBE-SVC-", "-N KUBE-SEP-"))]


def _ensure_first(namespace: str, family: int, table: str, chain: str, target: str) -> None:
    tool = [TOOL[family], "-w", "5", "-t", table]
    if target not in _run(namespace, [*tool, "-S", chain]).split():
        _run(namespace, [*tool, "-I", chain, "-j", target])


def _run(namespace: str, argv: list[str], text: str = "") -> str:
    try:
        done = inside(namespace, lambda: subprocess.run(argv, input=text, capture_output=True, text=True, check=False))
    except FileNotFoundError as error:
        raise ConfigError(f"{argv[0]} is not installed: the lab requires iptables for Services") from error
    if done.returncode != 0:
        raise ConfigError(f"{' '.join(argv)} failed in {namespace}: {done.stderr.strip()}")
    return done.stdout
