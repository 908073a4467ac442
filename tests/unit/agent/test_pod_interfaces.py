"""Pod interfaces: libcni's results, checked against the node's links; real links in a separate namespace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from l7proxy.agent.dataplane.pod_interfaces import (
    MAX_RESULT,
    NLM_F_DUMP_INTR,
    CniAttachment,
    HostNetwork,
    InterfaceWatcher,
    Link,
    LiveAttachment,
    PodInterfaces,
    connect,
    parse_result,
    read_attachments,
    whole,
)
from l7proxy.model.endpoint import Assignment
from tproxy_rules.desired import Bridge, Port

MAC = "0a:58:0a:00:01:05"


def result(**changes: Any) -> dict[str, Any]:
    """The result of the bridge plugin, as libcni caches it."""
    inner: dict[str, Any] = {
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "cni0", "mac": "02:00:00:00:00:01"},
            {"name": "veth1", "mac": "02:00:00:00:00:02"},
            {"name": "eth0", "mac": MAC.upper(), "sandbox": "/run/netns/x"},
        ],
        "ips": [{"address": "10.0.1.5/24", "gateway": "10.0.1.1", "interface": 2}, {"address": "FD00::05/64"}],
    }
    return {
        "kind": "cniCacheV1",
        "containerId": "c",
        "networkName": "pods",
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", "web"]],
        "result": inner | changes,
    }


BRIDGED = HostNetwork(
    {
        "cni0": Link("cni0", "02:00:00:00:00:01", "bridge"),
        "veth1": Link("veth1", "02:00:00:00:00:02", "veth", "cni0"),
        "cali1": Link("cali1", "ee:ee:ee:ee:ee:ee", "veth"),
    },
    frozenset({"10.0.1.1"}),
    {"10.0.9.9": "cali1"},
)


def test_a_bridged_pod() -> None:
    (attachment,) = parse_result(result())
    assert attachment == CniAttachment(("cni0", "veth1"), MAC, ("10.0.1.5", "fd00::5"), "c", "default/web", "pods")
    interfaces = connect([attachment], BRIDGED)
    port = Port("veth1", MAC, "cni0")
    assert interfaces.ports == {"10.0.1.5": port, "fd00::5": port, "10.0.9.9": Port("cali1")}
    assert interfaces.bridges == (Bridge("cni0", "02:00:00:00:00:01", ("veth1",)),)
    assert interfaces.local_addresses == {"10.0.1.1"}
    assert interfaces.live == (LiveAttachment("veth1", ("10.0.1.5", "fd00::5"), "c", "default/web", "pods"),)


def test_a_routed_pod_whose_plugin_names_the_host_side_only() -> None:
    routed = result(interfaces=[{"name": "cali1"}], ips=[{"address": "10.0.9.9/32"}])["result"]
    assert connect(parse_result(routed), BRIDGED).ports["10.0.9.9"] == Port("cali1")


def test_results_of_dead_pods_say_nothing() -> None:
    gone = CniAttachment(("cni0", "veth0"), MAC, ("10.0.1.5",))
    interfaces = connect([gone], BRIDGED)
    assert "10.0.1.5" not in interfaces.ports
    assert interfaces.live == ()


def test_networks_of_other_tools_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "r").write_text(json.dumps(result(interfaces=[{"name": "lo"}])))
    assert len(InterfaceWatcher(tmp_path).look().live) == 1
    assert InterfaceWatcher(tmp_path, ["pods"]).look().live == ()


@pytest.mark.parametrize("arguments", [None, 7, "x", [["K8S_POD_NAME"]], [["K8S_POD_NAME", "web"]], [[]], [{}]])
def test_a_result_that_names_no_pod_is_an_interface_all_the_same(arguments: object) -> None:
    (attachment,) = parse_result(result() | {"cniArgs": arguments})
    assert (attachment.pod, attachment.addresses) == ("", ("10.0.1.5", "fd00::5"))


def test_an_address_of_the_hosts_end_is_not_the_pods() -> None:
    ips = [{"address": "10.0.1.5/24", "interface": 2}, {"address": "10.0.1.1/24", "interface": 0}]
    (attachment,) = parse_result(result(ips=ips))
    assert attachment.addresses == ("10.0.1.5",)


def named(pod: str, uid: str, interface: str, *addresses: str, inside: str = "eth0") -> CniAttachment:
    return CniAttachment(("cni0", interface), MAC, addresses, f"of {uid}", pod, "pods", inside, uid)


TWO = HostNetwork({**BRIDGED.links, "veth2": Link("veth2", "02:00:00:00:00:03", "veth", "cni0")})


def test_a_result_says_which_pod_has_which_address() -> None:
    arguments = [["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", "web"], ["K8S_POD_UID", "u1"]]
    (attachment,) = parse_result(result() | {"cniArgs": arguments, "ifName": "eth0"})
    assert connect([attachment], BRIDGED).assignments == (Assignment("default", "web", "u1", ("10.0.1.5", "fd00::5")),)
    left = connect([attachment], HostNetwork())
    assert left.assignments == (), "the interface is gone"
    further = named("default/web", "u1", "veth1", "192.168.7.5", inside="net1")
    assert connect([attachment, further], BRIDGED).assignments == connect([attachment], BRIDGED).assignments


def test_an_address_of_two_containers_is_assigned_to_neither() -> None:
    one, other = (
        named("default/a", "u1", "veth1", "10.0.1.5"),
        named("default/b", "u2", "veth2", "10.0.1.5", "10.0.1.6"),
    )
    found = connect([one, other], TWO)
    assert found.assignments == (Assignment("default", "b", "u2", ("10.0.1.6",)),)
    again = named("default/a", "u9", "veth2", "10.0.1.7")
    assert connect([one, again], TWO).assignments == (), "two sandboxes of one name"


def test_two_live_interfaces_with_one_address_are_nobodys() -> None:
    interfaces = connect(
        [CniAttachment(("veth1",), MAC, ("10.0.1.5",)), CniAttachment(("cali1",), MAC, ("10.0.1.5",))], BRIDGED
    )
    assert "10.0.1.5" not in interfaces.ports
    assert interfaces.problems == ("10.0.1.5 is assigned to several pod interfaces",)


def test_a_bridge_port_without_a_mac_is_unknown() -> None:
    assert connect([CniAttachment(("veth1",), "", ("10.0.1.5",))], HostNetwork(BRIDGED.links)).ports == {}


@pytest.mark.parametrize("name", ["a b", 'x"; drop', "a" * 16, "", "eth0*"])
def test_names_that_are_no_plain_names_are_no_links(name: str) -> None:
    strange = result(interfaces=[{"name": name}, {"name": "eth0", "mac": MAC, "sandbox": "s"}])
    assert [attachment.hosts for attachment in parse_result(strange)] == [()]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        '{"result": 1}',
        '{"result": {"interfaces": "x"}}',
        '{"result": {"interfaces": [1]}}',
        '{"result": {"ips": [{"address": "x"}]}}',
        '{"result": {"ips": [{}]}}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_result_is_told_and_skipped(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad").write_text(text)
    (tmp_path / "good").write_text(json.dumps(result()))
    problems: list[str] = []
    assert [len(attachments) for attachments in read_attachments(tmp_path, problems).values()] == [0, 1]
    assert len(problems) == 1
    assert str(tmp_path / "bad") in problems[0]


@pytest.mark.parametrize("index", [-1, 3, "2", None, True])
def test_an_interface_number_that_points_nowhere_is_harmless(index: object) -> None:
    (attachment,) = parse_result(result(ips=[{"address": "10.0.1.5/24", "interface": index}]))
    assert attachment.addresses == ("10.0.1.5",)


def test_no_cache_is_no_trouble(tmp_path: Path) -> None:
    interfaces = InterfaceWatcher(tmp_path / "none").look()
    assert isinstance(interfaces, PodInterfaces)
    assert interfaces.problems == ()


@pytest.mark.sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace")
def test_real_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "r").write_text(json.dumps(result()))
    script = f"""
    set -e
    ip link add cni0 type bridge
    ip link add veth1 type veth peer name p1
    ip link set veth1 master cni0
    ip link add cali1 type veth peer name p2
    ip link set cali1 up; ip link set cni0 up; ip link set veth1 up
    ip addr add 10.0.1.1/24 dev cni0
    ip route add 10.0.9.9/32 dev cali1
    ip link add kube-ipvs0 type bridge
    ip addr add 10.96.0.1/32 dev kube-ipvs0
    exec {sys.executable} -c 'from pathlib import Path; from l7proxy.agent.dataplane import pod_interfaces
w = pod_interfaces.InterfaceWatcher(Path("{tmp_path}")).look()
print(w.ports["10.0.1.5"].interface, w.ports["10.0.1.5"].bridge, w.ports["10.0.9.9"].interface)
print([b.name for b in w.bridges], "10.0.1.1" in w.local_addresses, "10.96.0.1" in w.local_addresses, w.problems)'
    """
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["veth1 cni0 cali1", "['cni0'] True False ()"]


CHANGES = """\
ip link add cni0 type bridge
ip link add veth1 type veth peer name p1
ip link set veth1 master cni0
ip link set cni0 address 02:00:00:00:00:09
ip link set veth1 nomaster
ip link add cali1 type veth peer name p2
ip link set cali1 up
ip route add 10.0.9.9/32 dev cali1
ip addr add 10.0.1.1/24 dev cni0
ip addr add fd00::1/64 dev cni0 nodad
ip -6 route add fd00:9::9/128 dev cali1
ip route del 10.0.9.9/32 dev cali1
ip addr del 10.0.1.1/24 dev cni0
ip route add 10.0.9.8/32 dev cali1
ip link set veth1 name veth9
ip link set cali1 down
ip link del cali1
ip link del cni0"""


@pytest.mark.sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace")
def test_who_looks_again_sees_what_one_who_looks_for_the_first_time_sees(tmp_path: Path) -> None:
    """The kernel is not queried again while nothing has changed."""
    (tmp_path / "r").write_text(json.dumps(result()))
    script = f"""
    import subprocess, time
    from pathlib import Path
    from l7proxy.agent.dataplane.pod_interfaces import SETTLED, InterfaceWatcher
    results = Path({str(tmp_path)!r})
    watcher = InterfaceWatcher(results)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for change in {CHANGES.splitlines()!r}:
        subprocess.run(change.split(), check=True)
        assert watcher.look() == InterfaceWatcher(results).look(), change
    subprocess.run("ip link add br0 type bridge; ip addr add 10.0.2.1/24 dev br0", shell=True, check=True)
    watcher.look()
    time.sleep(SETTLED)
    before = watcher.look()
    assert watcher.look().local_addresses is before.local_addresses  # the very same listing
    subprocess.run("ip addr add 10.0.3.1/24 dev br0", shell=True, check=True)
    assert watcher.look().local_addresses == before.local_addresses | {{"10.0.3.1"}}
    """
    command = ["unshare", "--net", sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace")
def test_an_interface_that_is_completed_meanwhile_is_bound_with_its_bridge(tmp_path: Path) -> None:
    """The runtime completes an interface and writes its result just before the directory of results is listed."""
    (tmp_path / "r").write_text(json.dumps(result()))
    script = f"""
    import subprocess
    from pathlib import Path
    from l7proxy.agent.dataplane.pod_interfaces import InterfaceWatcher
    def run(line): subprocess.run(line.split(), check=True)
    class Results(type(Path())):
        def iterdir(self):
            run("ip link set veth1 master cni0")
            return super().iterdir()
    run("ip link add cni0 type bridge")
    run("ip link add veth1 type veth peer name p1")
    found = InterfaceWatcher(Results({str(tmp_path)!r})).look()
    assert found.ports["10.0.1.5"].bridge == "cni0", found
    """
    command = ["unshare", "--net", sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace")
def test_what_cannot_be_listed_stays_as_it_was(tmp_path: Path) -> None:
    """Without file descriptors neither links nor results can be read: every pod keeps its port."""
    (tmp_path / "r").write_text(json.dumps(result()))
    script = f"""
    import os, resource, subprocess
    from dataclasses import replace
    from pathlib import Path
    from l7proxy.agent.dataplane.pod_interfaces import InterfaceWatcher
    results = Path({str(tmp_path)!r})
    def run(line): subprocess.run(line.split(), check=True)
    run("ip link add cni0 type bridge")
    run("ip link add veth1 type veth peer name p1")
    run("ip link set veth1 master cni0")
    watcher = InterfaceWatcher(results)
    before = watcher.look()
    assert before.ports["10.0.1.5"].bridge == "cni0" and not before.problems, before
    run("ip link add veth2 type veth peer name p2")
    run("ip link set veth2 master cni0")
    used, (_, hard) = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used - 1, hard))
    during = watcher.look()
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert replace(during, problems=()) == before, during
    assert len(during.problems) == 2, during.problems
    after = watcher.look()
    assert after == InterfaceWatcher(results).look() and after.bridges[0].ports == ("veth1", "veth2"), after
    """
    command = ["unshare", "--net", sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr  # asyncio reports an event loop that it could not create


def test_a_result_that_turned_into_something_else_stays_as_it_was(tmp_path: Path) -> None:
    path, problems = tmp_path / "r", list[str]()
    path.write_text(json.dumps(result()))
    good = read_attachments(tmp_path, problems)
    path.write_text("{")
    assert read_attachments(tmp_path, problems, good) == good
    assert len(problems) == 1
    path.unlink()
    assert read_attachments(tmp_path, problems, good) == {}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(b" " * (MAX_RESULT + 1)), "more than 1048576 bytes"),
        (lambda path: path.write_bytes(b'{"a": "\xff"}'), "decode"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.symlink_to(path), "symbolic links"),
    ],
    ids=["huge", "no text", "FIFO", "device", "endless link"],
)
def test_a_damaged_result_is_named_and_the_pod_keeps_its_interface(
    tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    path, problems = tmp_path / "r", list[str]()
    path.write_text(json.dumps(result()))
    good = read_attachments(tmp_path, problems)
    path.unlink()
    damage(path)
    assert read_attachments(tmp_path, problems, good) == good
    (problem,) = problems
    assert problem.startswith(f"{path}: not a valid CNI result: ")
    assert said in problem


def test_a_directory_of_results_that_is_gone_keeps_the_pods_bound_and_is_told(tmp_path: Path) -> None:
    results, problems = tmp_path / "results", list[str]()
    assert read_attachments(results, problems) == {}
    assert problems == []
    results.mkdir()
    (results / "folder").mkdir()
    (results / "r").write_text(json.dumps(result()))
    good = read_attachments(results, problems)
    assert len(good) == 1
    shutil.rmtree(results)
    assert read_attachments(results, problems, good) == good
    assert problems == [f"{results}: No such file or directory: the CNI results that were read last stay in use"]


def test_a_listing_that_was_interrupted_is_none() -> None:
    messages = [{"header": {"flags": 0x2}}, {"header": {"flags": 0x2 | NLM_F_DUMP_INTR}}]
    assert list(whole(messages[:1])) == messages[:1]
    with pytest.raises(InterruptedError):
        list(whole(messages))


def test_uplinks_and_the_ports_of_other_bridges_are_told_apart_by_their_kind() -> None:
    more = {
        "eth1": Link("eth1", "02:00:00:00:00:08", "", "cni0"),
        "vxlan7": Link("vxlan7", "02:00:00:00:00:09", "vxlan", "cni0"),
        "veth9": Link("veth9", "02:00:00:00:00:0a", "veth", "cni0"),
        "docker0": Link("docker0", "02:00:00:00:00:0b", "bridge"),
        "veth8": Link("veth8", "02:00:00:00:00:0c", "veth", "docker0"),
    }
    interfaces = connect(parse_result(result()), HostNetwork({**BRIDGED.links, **more}))
    (bridge,) = interfaces.bridges
    assert bridge.ports == ("eth1", "veth1", "veth9", "vxlan7")
    assert bridge.uplinks == ("eth1", "vxlan7")
    assert interfaces.other_ports == ("veth8",)
