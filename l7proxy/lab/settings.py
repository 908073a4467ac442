"""How a lab is built: chosen at `up`, stored with the lab, and constant from then on."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class Cni(StrEnum):
    """The CNI plugin: `bridge` as with Flannel, `ptp` as with Calico."""

    BRIDGE = "bridge"
    PTP = "ptp"


class Kernel(StrEnum):
    """The agent's kernel backend."""

    AUTO = "auto"
    NFTABLES = "nftables"
    IPTABLES = "iptables"


class Families(StrEnum):
    FOUR = "4"
    SIX = "6"
    DUAL = "dual"


class Refuse(StrEnum):
    """How the kernel refuses: with an error at once, or by dropping silently."""

    RESET = "reset"
    DROP = "drop"


DEFAULT_NAME: Final = "lab"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`agent` False leaves the nodes without l7proxy: only CNI and kube-proxy, nothing enforced. `flow_logs` is a
    directory: each agent writes its flows to NODE.jsonl there."""

    name: str = DEFAULT_NAME
    cni: Cni = Cni.BRIDGE
    backend: Kernel = Kernel.AUTO
    ip_family: Families = Families.FOUR
    bridge_nf_call: int = 1
    workers: int = 1
    refuse: Refuse = Refuse.RESET
    agent: bool = True
    flow_logs: str = ""

    @property
    def families(self) -> tuple[int, ...]:
        return {Families.FOUR: (4,), Families.SIX: (6,), Families.DUAL: (4, 6)}[self.ip_family]
