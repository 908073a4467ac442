"""What sysctls were before they were set is recorded, and comes back: in network namespaces, which have their own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import Namespace
from tproxy_rules import sysctl
from tproxy_rules.backend import Backend
from tproxy_rules.desired import Bridge, Desired
from tproxy_rules.iptables.backend import IptablesBackend
from tproxy_rules.nft.backend import NftablesBackend
from tproxy_rules.sysctl import Change, Restored, Sysctls

MIGRATE = "net/ipv4/tcp_migrate_req"
FORWARD = "net/ipv4/ip_forward"
BRIDGED = "net/bridge/bridge-nf-call-iptables"

pytestmark = [pytest.mark.sandbox, pytest.mark.usefixtures("sandbox")]


@pytest.fixture
def node() -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.close()


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "sysctls.json"


def test_a_changed_one_gets_its_former_value_back_and_the_record_goes(node: Namespace, record: Path) -> None:
    node.do(lambda: Sysctls(record).set(MIGRATE, "1"))
    assert node.do(lambda: sysctl.read(MIGRATE)) == "1"
    assert record.stat().st_mode & 0o777 == 0o600
    done = node.do(Sysctls(record).restore)  # another process
    assert done == [Restored(Change(MIGRATE, "0", "1"))]
    assert node.do(lambda: sysctl.read(MIGRATE)) == "0"
    assert not record.exists()
    assert node.do(Sysctls(record).restore) == []


def test_one_that_is_right_already_is_not_ours(node: Namespace, record: Path) -> None:
    node.do(lambda: sysctl.write(MIGRATE, "1"))
    node.do(lambda: Sysctls(record).set(MIGRATE, "1"))
    assert not record.exists()
    assert node.do(Sysctls(record).restore) == []
    assert node.do(lambda: sysctl.read(MIGRATE)) == "1"


def test_a_second_process_keeps_what_the_first_has_recorded(node: Namespace, record: Path) -> None:
    node.do(lambda: Sysctls(record).set(MIGRATE, "1"))
    node.do(lambda: Sysctls(record).set(MIGRATE, "1"))
    node.do(lambda: Sysctls(record).set(FORWARD, "1"))
    assert {one.change for one in node.do(Sysctls(record).restore)} == {
        Change(MIGRATE, "0", "1"),
        Change(FORWARD, "0", "1"),
    }


def test_a_value_of_somebody_else_stays(node: Namespace, record: Path) -> None:
    name = "net/ipv4/tcp_retries2"
    before = node.do(lambda: sysctl.read(name))
    node.do(lambda: Sysctls(record).set(name, "9"))
    node.do(lambda: sysctl.write(name, "7"))
    assert node.do(Sysctls(record).restore) == []
    assert node.do(lambda: sysctl.read(name)) == "7" != before
    assert not record.exists()


def test_the_last_value_of_somebody_else_is_the_one_that_comes_back(node: Namespace, record: Path) -> None:
    name = "net/ipv4/tcp_retries2"
    for value in ("9", "7", "9"):  # ours, theirs, ours
        node.do(lambda value=value: Sysctls(record if value == "9" else None).set(name, value))  # type: ignore[misc]
    assert node.do(Sysctls(record).restore) == [Restored(Change(name, "7", "9"))]


def test_one_that_went_with_its_interface_is_forgotten(node: Namespace, record: Path) -> None:
    node.sh("ip link add br0.1 type bridge")
    node.do(lambda: Sysctls(record).set("net/ipv4/conf/br0.1/send_redirects", "0"))
    node.sh("ip link del br0.1")
    assert node.do(Sysctls(record).restore) == []
    assert not record.exists()


def test_what_cannot_be_set_back_is_said_and_stays_recorded(node: Namespace, record: Path) -> None:
    node.do(lambda: Sysctls(record).set(MIGRATE, "1"))
    found = json.loads(record.read_text())
    found[MIGRATE]["before"] = "x"
    found[FORWARD] = {"before": "1", "ours": "0"}
    record.write_text(json.dumps(found))
    refused, done = node.do(Sysctls(record).restore)
    assert (refused.change.name, refused.error) == (MIGRATE, "Invalid argument")
    assert done == Restored(Change(FORWARD, "1", "0"))
    assert list(json.loads(record.read_text())) == [MIGRATE]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "must be an object"),
        ('{"kernel/core_pattern": {"before": "|/x", "ours": "core"}}', "kernel/core_pattern: must be a path below net"),
        ('{"net/../kernel/core_pattern": {"before": "|/x", "ours": "core"}}', "must be a path below net"),
        ('{"net//proc/sys/kernel/x": {"before": "1", "ours": "0"}}', "must be a path below net"),
        ('{"net/ipv4/ip_forward": {"before": 1, "ours": "0"}}', "must have the texts before and ours"),
        ('{"net/ipv4/ip_forward": "1"}', "must have the texts before and ours"),
    ],
)
def test_a_damaged_record_changes_nothing(node: Namespace, record: Path, text: str, said: str) -> None:
    record.write_text(text)
    with pytest.raises(ValueError, match=said):
        node.do(Sysctls(record).restore)
    assert record.read_text() == text


def test_a_damaged_record_is_begun_anew(node: Namespace, record: Path, caplog: pytest.LogCaptureFixture) -> None:
    record.write_text("{")
    node.do(lambda: Sysctls(record).set(MIGRATE, "1"))
    assert "begun anew" in caplog.text
    assert node.do(Sysctls(record).restore) == [Restored(Change(MIGRATE, "0", "1"))]


def test_without_a_place_for_the_record_it_is_set_all_the_same(
    node: Namespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        node.do(lambda: Sysctls(tmp_path / "none" / "sysctls.json").set(MIGRATE, "1"))
    assert node.do(lambda: sysctl.read(MIGRATE)) == "1"
    assert "sysctl net/ipv4/tcp_migrate_req was 0, which cannot be recorded" in caplog.text


@pytest.mark.parametrize("backend", [NftablesBackend, IptablesBackend])
def test_all_that_a_backend_changes_comes_back(
    node: Namespace, record: Path, backend: Callable[[Sysctls], Backend]
) -> None:
    """`remove` alone leaves them: a backend is also removed where another one takes its place."""
    node.sh("ip link add br0 type bridge")
    node.do(lambda: sysctl.write(BRIDGED, "1"))
    before = values(node)
    made = backend(Sysctls(record))
    node.do(lambda: made.apply(Desired(bridges=(Bridge("br0", "02:00:00:00:00:01"),))))
    changed = values(node)
    assert changed[MIGRATE] == "1"
    assert changed[BRIDGED] == ("0" if made.name == "iptables" else "1")
    node.do(made.remove)
    assert values(node) == changed
    assert node.do(Sysctls(record).restore)
    assert values(node) == before


def values(node: Namespace) -> dict[str, str]:
    switches = [f"net/ipv4/conf/{name}/send_redirects" for name in ("all", "br0")]
    names = (MIGRATE, BRIDGED, "net/ipv4/conf/all/accept_source_route", *switches)
    return node.do(lambda: {name: sysctl.read(name) for name in names})
