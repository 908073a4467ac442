"""Chooses the backend that this node supports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tproxy_rules.backend import Backend, KernelError
from tproxy_rules.iptables.backend import IptablesBackend
from tproxy_rules.nft.backend import NftablesBackend
from tproxy_rules.sysctl import Sysctls

NAMES: Final = ("auto", "nftables", "iptables")


def choose(name: str = "auto", sysctls: Sysctls | None = None) -> Backend:
    """The named backend, checked; `auto` prefers nftables. KernelError says what is missing.

    `sysctls`: where it records what its sysctls were; without it they are not recorded.
    """
    if name not in NAMES:
        raise KernelError(f"unknown backend {name!r}: must be one of {', '.join(NAMES)}")
    made = _MAKERS if name == "auto" else {name: _MAKERS[name]}
    missing: list[str] = []
    for make in made.values():
        backend = make(sysctls)
        try:
            backend.check()
        except KernelError as error:
            missing.append(f"{backend.name}: {error}")
        else:
            return backend
    raise KernelError("; ".join(missing))


_MAKERS: Final[dict[str, Callable[[Sysctls | None], Backend]]] = {
    "nftables": NftablesBackend,
    "iptables": IptablesBackend,
}
