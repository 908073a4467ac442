"""Kernel errors are reported in messages that help."""

from __future__ import annotations

import pytest

from tests.contract.conftest import BACKENDS, Namespace
from tproxy_rules import routes
from tproxy_rules.backend import KernelError
from tproxy_rules.desired import Settings
from tproxy_rules.detect import choose
from tproxy_rules.nflog import NflogReader

pytestmark = [pytest.mark.sandbox, pytest.mark.usefixtures("sandbox")]


def test_a_group_that_is_read_already_is_refused_with_the_reason() -> None:
    namespace = Namespace()
    try:
        with namespace.do(lambda: NflogReader(79)):
            with pytest.raises(KernelError, match=r"NFLOG group 79: .*another process reads this group"):
                namespace.do(lambda: NflogReader(79))
            namespace.do(lambda: NflogReader(80)).close()
        namespace.do(lambda: NflogReader(79)).close()
    finally:
        namespace.close()


def test_routes_need_lo_and_say_so() -> None:
    namespace = Namespace()
    try:
        namespace.sh("ip link set lo down")
        with pytest.raises(KernelError, match="ip link set lo up"):
            namespace.do(lambda: routes.ensure(Settings()))
        namespace.sh("ip link set lo up")
        namespace.do(lambda: routes.ensure(Settings()))
        assert namespace.do(routes.intact)
    finally:
        namespace.close()


@pytest.mark.parametrize("name", BACKENDS)
def test_this_kernel_has_what_the_backend_needs(name: str) -> None:
    """Checking leaves nothing behind."""
    namespace = Namespace()
    try:
        namespace.sh("iptables-save", "ip6tables-save", "ebtables-save")
        before = namespace.sh("nft list ruleset", "ipset list", "ip rule")
        assert namespace.do(lambda: choose(name)).name == name
        assert namespace.do(lambda: choose("auto")).name == "nftables"
        assert namespace.sh("nft list ruleset", "ipset list", "ip rule") == before
    finally:
        namespace.close()
