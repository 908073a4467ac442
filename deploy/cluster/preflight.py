"""What a cluster needs of this machine. Pure: facts in, findings out; `facts` reads the facts.

It is asked before anything is built or downloaded, so that a machine that cannot run a cluster says all of its reasons
at once, and in seconds.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deploy.cluster.plan import Cluster

GIB: Final = 1 << 30
MEMORY_OF_A_NODE: Final = 0.8
"""GiB, images included."""
MEMORY_OF_THE_CONTROL_MACHINE: Final = 0.7
DISK_OF_A_CLUSTER: Final = 1.0
"""GiB of etcd's data and of logs."""
DISK_OF_A_BUILD: Final = 7.0
"""GiB of Go's caches and of the programs that are built."""
KUBE_PROXY_NFTABLES_KERNEL: Final = (5, 13)
"""kube-proxy refuses its nftables mode on an older one."""
CONTROLLERS: Final = ("cpu", "cpuset", "memory", "pids")
"""Of cgroups: what the kubelet limits pods by."""


@dataclass(frozen=True, slots=True)
class Program:
    purpose: str
    package: str
    """Of Debian and Ubuntu."""
    only_to: str = ""
    """"go", "packages": needed only while parts of this kind have still to be made."""


PROGRAMS: Final[Mapping[str, Program]] = {
    "ip": Program("links and addresses of the machines", "iproute2"),
    "iptables": Program("CNI plugins, the kubelet, kube-proxy", "iptables"),
    "ip6tables": Program("CNI plugins, the kubelet, kube-proxy", "iptables"),
    "mount": Program("the file systems of the machines", "mount"),
    "nft": Program("kube-proxy in nftables mode, l7proxy", "nftables"),
    "nsenter": Program("running programs inside the machines", "util-linux"),
    "setsid": Program("running programs inside the machines", "util-linux"),
    "unshare": Program("the namespaces that make a machine", "util-linux"),
    "apt-get": Program("containerd, runc, CNI plugins, images", "apt, on Debian or Ubuntu", "packages"),
    "chroot": Program("the root file system of the netshoot image", "coreutils", "packages"),
    "dpkg-deb": Program("unpacking containerd, runc, CNI plugins", "dpkg", "packages"),
    "perl": Program("mmdebstrap, which makes the netshoot image", "perl", "packages"),
    "tar": Program("unpacking packages", "tar", "packages"),
}


@dataclass(frozen=True, slots=True)
class Trial:
    """A few commands that do, in namespaces of their own, what the cluster will do. They leave nothing."""

    purpose: str
    script: str
    remedy: str
    program: str = ""
    """One of PROGRAMS without which it is not tried."""


_IN_MEMORY: Final = "mount -t tmpfs tmpfs /run"
NAMESPACES: Final = "namespaces"
_TABLES: Final = """
{restore} <<'END'
*mangle
-A PREROUTING -p tcp -m socket --transparent -j MARK --set-xmark 0x1/0x1
-A PREROUTING -p tcp -m tcp --dport 80 -j TPROXY --on-port 1 --tproxy-mark 0x1/0x1
COMMIT
*nat
-A PREROUTING -m comment --comment c -m addrtype --dst-type LOCAL -p tcp -j DNAT --to-destination {address}
-A PREROUTING -m statistic --mode random --probability 0.5 -j MARK --set-xmark 0x1/0x1
-A POSTROUTING -m mark --mark 0x1/0x1 -m conntrack --ctstate NEW -j MASQUERADE --random-fully
COMMIT
END"""
_RULES: Final = """nft -f - <<'END'
table inet trial {
  map services { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.0.0.1 . tcp . 80 : accept } }
  chain destination {
    type nat hook prerouting priority -100
    fib daddr type local numgen random mod 2 vmap { 0 : accept, 1 : continue }
    ip daddr . meta l4proto . th dport vmap @services
    meta l4proto tcp dnat ip to 10.0.0.1:80
  }
  chain source {
    type nat hook postrouting priority 100
    ct state new masquerade fully-random
  }
  chain steering {
    type filter hook prerouting priority -150
    meta l4proto tcp socket transparent 1 meta mark set 1 accept
    meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:1 meta mark set 1
    meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:1 meta mark set 1
  }
}
END"""


def trials(cluster: Cluster) -> dict[str, Trial]:
    """By name. All but the first need what the first one tries."""
    found = {
        NAMESPACES: Trial(
            "a machine is a set of them",
            "true",
            "in a container: run it with --privileged; else the kernel options CONFIG_NET_NS, CONFIG_PID_NS,"
            " CONFIG_UTS_NS, CONFIG_IPC_NS, CONFIG_CGROUPS, and sysctls user.max_*_namespaces above 0",
        ),
        "mounts": Trial(
            "the file system of a machine",
            f"{_IN_MEMORY} && mount -t proc proc /proc && mount -t sysfs sysfs /sys",
            "in a container: run it with --privileged",
        ),
        "overlayfs": Trial(
            "what a machine writes to /etc, and the files of containers",
            f"{_IN_MEMORY} && mkdir /run/upper /run/work /run/all"
            " && mount -t overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work overlay /run/all",
            "modprobe overlay (kernel option CONFIG_OVERLAY_FS)",
        ),
        "veth": Trial(
            "the link of each pod and node",
            "ip link add one type veth peer name two",
            "modprobe veth (kernel option CONFIG_VETH)",
        ),
        "bridge": Trial(
            "the switch between nodes, and the CNI plugin of CNI=bridge",
            "ip link add one type bridge",
            "modprobe bridge (kernel option CONFIG_BRIDGE)",
        ),
    }
    if cluster.cni == "bridge":
        found["br_netfilter"] = Trial(
            "Services between two pods on one bridge",
            "test -e /proc/sys/net/bridge/bridge-nf-call-iptables"
            " || { echo 'sysctl net.bridge.bridge-nf-call-iptables does not exist' >&2; exit 1; }",
            "modprobe br_netfilter (kernel option CONFIG_BRIDGE_NETFILTER); or CNI=ptp, which does not need it",
        )
    if cluster.proxy == "nftables":
        found["nf_tables"] = Trial(
            "kube-proxy in nftables mode: NAT, conntrack, fib, numgen; l7proxy: TPROXY and socket",
            _RULES,
            "modprobe -a nf_tables nft_chain_nat nft_ct nft_fib_inet nft_masq nft_numgen nft_tproxy nft_socket"
            " (kernel options CONFIG_NF_TABLES, CONFIG_NFT_*); nft 1.0.1 or newer",
            "nft",
        )
    else:
        remedy = (
            "modprobe -a {}_tables xt_TPROXY xt_socket xt_addrtype xt_statistic xt_conntrack xt_comment xt_MASQUERADE"
            " (kernel options CONFIG_NETFILTER_XTABLES, CONFIG_NETFILTER_XT_*)"
        )
        purpose = "kube-proxy in iptables mode: NAT, conntrack; l7proxy: TPROXY and socket"
        v4 = _TABLES.format(restore="iptables-restore", address="10.0.0.1:80")
        v6 = _TABLES.format(restore="ip6tables-restore", address="[fd00::1]:80")
        found["iptables"] = Trial(purpose, v4, remedy.format("ip"), "iptables")
        found["ip6tables"] = Trial(purpose, v6, remedy.format("ip6"), "ip6tables")
    return found


@dataclass(frozen=True, slots=True)
class Facts:
    """What this machine is and has."""

    root: bool
    programs: frozenset[str]
    """Those of PROGRAMS that are found."""
    kernel: tuple[int, int]
    ipv6: bool
    seccomp: bool
    kmsg_fault: str
    """Why /dev/kmsg cannot be read; empty: it can."""
    cgroup_fault: str
    """Why no cgroup can be made; empty: one was made, and removed."""
    controllers: frozenset[str]
    memory: int
    """Free bytes, also by the limit of our own cgroup."""
    disk: Mapping[Path, int]
    """Free bytes where the cluster is, and where parts are built."""
    failures: Mapping[str, str] = field(default_factory=dict)
    """Trial → the error of its commands; empty: it went well. What is not in it was not tried."""
    to_make: frozenset[str] = frozenset()
    """"go", "packages": parts of this kind are not in the cache."""
    go_fault: str = ""
    """Why Go cannot build the missing parts."""
    modules_fault: str = ""
    """Why Go modules cannot be downloaded."""
    packages_fault: str = ""
    """Why Debian packages cannot be downloaded."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the cluster needs."""

    what: str
    purpose: str
    fault: str = ""
    """What is wrong; empty: nothing."""
    remedy: str = ""
    tried: bool = True
    """False: unknown, since something that it needs is missing."""


def findings(facts: Facts, cluster: Cluster, places: Mapping[Path, float]) -> list[Finding]:
    """All that is needed, with and without fault. `places`: directories, and the GiB that will be written there."""
    return [
        *_rights(facts),
        *_programs(facts),
        *_kernel(facts, cluster),
        *_trials(facts, cluster),
        *_resources(facts, cluster, places),
        *_sources(facts),
    ]


def disk_needed(cluster_data: Path, cache: Path, to_make: frozenset[str]) -> dict[Path, float]:
    """GiB by directory."""
    return {cluster_data: DISK_OF_A_CLUSTER} | ({cache: DISK_OF_A_BUILD} if to_make else {})


def _rights(facts: Facts) -> Iterator[Finding]:
    yield Finding(
        "root",
        "namespaces, mounts, cgroups",
        "" if facts.root else "this is another user",
        "sudo, or a shell of root",
    )


def _programs(facts: Facts) -> Iterator[Finding]:
    for name, program in PROGRAMS.items():
        if not program.only_to or program.only_to in facts.to_make:
            fault = "" if name in facts.programs else "no such program in PATH, /usr/sbin, /sbin"
            yield Finding(name, program.purpose, fault, f"apt-get install {program.package}")


def _kernel(facts: Facts, cluster: Cluster) -> Iterator[Finding]:
    if cluster.proxy == "nftables":
        yield Finding(
            "kernel",
            "kube-proxy in nftables mode",
            "" if facts.kernel >= KUBE_PROXY_NFTABLES_KERNEL else f"Linux {_dotted(facts.kernel)}",
            f"Linux {_dotted(KUBE_PROXY_NFTABLES_KERNEL)} or newer; or PROXY=iptables",
        )
    yield Finding(
        "IPv6",
        "the cluster is dual-stack",
        "" if facts.ipv6 else "the kernel has none",
        "start it without ipv6.disable=1 (kernel option CONFIG_IPV6)",
    )
    yield Finding(
        "seccomp",
        "containers of the profile RuntimeDefault",
        "" if facts.seccomp else "the kernel has none",
        "kernel options CONFIG_SECCOMP, CONFIG_SECCOMP_FILTER",
    )
    yield Finding(
        "/dev/kmsg",
        "the kubelet reads there that the kernel killed a process",
        facts.kmsg_fault,
        "in a container: run it with --device /dev/kmsg, or --privileged",
    )
    yield Finding(
        "cgroups",
        "the kubelet's limits of pods",
        facts.cgroup_fault,
        "in a container: run it with --privileged --cgroupns=host",
    )
    if not facts.cgroup_fault:
        absent = [name for name in CONTROLLERS if name not in facts.controllers]
        yield Finding(
            "cgroup controllers",
            f"the kubelet needs {', '.join(CONTROLLERS)}",
            f"missing: {', '.join(absent)}" if absent else "",
            "boot with cgroup_enable=memory, or systemd.unified_cgroup_hierarchy=1; in a container: the host must"
            " delegate them",
        )


def _trials(facts: Facts, cluster: Cluster) -> Iterator[Finding]:
    for name, trial in trials(cluster).items():
        fault = facts.failures.get(name, "")
        yield Finding(name, trial.purpose, fault, trial.remedy, tried=name in facts.failures)


def _resources(facts: Facts, cluster: Cluster, places: Mapping[Path, float]) -> Iterator[Finding]:
    needed = MEMORY_OF_THE_CONTROL_MACHINE + cluster.node_count * MEMORY_OF_A_NODE
    yield Finding(
        "memory",
        f"{needed:.1f} GiB: programs, and the images of {cluster.node_count} nodes",
        "" if facts.memory >= needed * GIB else f"{facts.memory / GIB:.1f} GiB are free",
        "end other programs, raise the container's limit, or take NODES=1",
    )
    for path, gib in places.items():
        fault = "" if facts.disk[path] >= gib * GIB else f"{facts.disk[path] / GIB:.1f} GiB are free"
        yield Finding(
            f"disk at {path}",
            f"{gib:.0f} GiB: {'programs and caches of their build' if gib == DISK_OF_A_BUILD else 'data and logs'}",
            fault,
            "free some; parts are built below XDG_CACHE_HOME, GOCACHE and GOMODCACHE: they may be on another disk",
        )


def _sources(facts: Facts) -> Iterator[Finding]:
    """What is needed only while parts are not in the cache."""
    if "go" in facts.to_make:
        yield Finding(
            "Go", "building Kubernetes, etcd, CoreDNS, helm", facts.go_fault, "install it; sudo: keep it in PATH"
        )
        if not facts.go_fault:
            yield Finding(
                "Go modules",
                "the sources of Kubernetes, etcd, CoreDNS, helm",
                facts.modules_fault,
                "is there a network? Are GOPROXY, HTTPS_PROXY and the CA certificates right?",
            )
    if "packages" in facts.to_make:
        yield Finding(
            "Debian packages",
            "containerd, runc, CNI plugins, images",
            facts.packages_fault,
            "is there a network? Are the sources and the proxy of apt right (apt-get update)?",
        )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def faults(found: Sequence[Finding]) -> list[Finding]:
    return [one for one in found if one.fault]


def table(found: Sequence[Finding]) -> str:
    """One line for each thing; below a faulty one, what is wrong and how to mend it."""
    width = max(len(one.what) for one in found)
    lines: list[str] = []
    for one in found:
        state = "MISSING" if one.fault else "ok" if one.tried else "unknown"
        lines.append(f"{state:<8} {one.what:<{width}}  {one.purpose}")
        if one.fault:
            lines += _wrapped("", one.fault) + _wrapped("mend: ", one.remedy)
    return "\n".join(lines)


def complaint(wrong: Sequence[Finding]) -> str:
    """The text of an error that names everything that is missing, what for, and how to mend it."""
    count = "1 thing is" if len(wrong) == 1 else f"{len(wrong)} things are"
    lines = [f"this machine cannot run a cluster: {count} missing"]
    for one in wrong:
        lines.append(f"  {one.what} ({one.purpose})")
        lines += _wrapped("", one.fault) + _wrapped("mend: ", one.remedy)
    return "\n".join(lines)


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(f"{label}{text}", 110, initial_indent=" " * 9, subsequent_indent=" " * (9 + len(label)))
