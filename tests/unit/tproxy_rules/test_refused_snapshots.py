"""Desired states that a backend refuses, possibly many: changes continue while nothing can be applied."""

from __future__ import annotations

import gc

import pytest

from tproxy_rules.backend import Backend, KernelError
from tproxy_rules.desired import Desired, Endpoint, Entry, Frontend, Table, Verdict, union
from tproxy_rules.iptables.backend import IptablesBackend
from tproxy_rules.nft.backend import NftablesBackend

NONE = Frontend("10.96.0.1", 300, 80, steer=False)
"""No kernel accepts it."""


def refused(port: int) -> Desired:
    table = union([Entry(Verdict.ALLOW, 6, port, port, any_peer=True, peers=())])
    return Desired(endpoints=(Endpoint(1, ("10.0.0.1",), ingress=table),), frontends=(NONE,))


def tables() -> int:
    gc.collect()
    return sum(type(one) is Table for one in gc.get_objects())


@pytest.mark.parametrize("make", [NftablesBackend, IptablesBackend])
def test_what_was_worked_out_for_them_is_forgotten(make: type[Backend]) -> None:
    backend, before = make(), tables()
    for port in range(1, 50):
        with pytest.raises(KernelError, match="invalid desired state"):
            backend.apply(refused(port))
    assert tables() - before <= 4
