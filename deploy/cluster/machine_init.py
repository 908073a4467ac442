"""The first process of a machine: builds the machine's view of the file system, then becomes `pause`.

The machine sees the host's files. What it writes to /etc, /opt and /var/lib is its own (an overlay in memory), /run,
images and containers are its own, too, and in memory: they end with the machine. Of /proc/sys only `net` can be
written: the rest belongs to the whole host.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from deploy.cluster import cgroups

SCRATCH: Final = Path("/run/machine")
"""In memory, of the machine only."""
OVERLAID: Final = ("/etc", "/opt", "/var/lib")
KERNEL_TUNABLES: Final = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
"""What the kubelet wants and would set for the whole host: it reads these values instead."""
NETWORK_SYSCTLS: Final = {
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/disable_ipv6": 0,
    "ipv6/conf/default/disable_ipv6": 0,
    "ipv6/conf/all/forwarding": 1,
    "ipv6/conf/default/accept_dad": 0,
    "bridge/bridge-nf-call-iptables": 1,
    "bridge/bridge-nf-call-ip6tables": 1,
}
"""kube-proxy needs forwarding, and the packets between two pods on one bridge."""


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *(str(argument) for argument in arguments)], check=True)


def mount_kernel_views() -> None:
    """/proc of the new PID namespace, /sys of the new network namespace, cgroups of the new cgroup namespace."""
    mounted = cgroups.own()
    mount("-t", "proc", "proc", "/proc")
    subprocess.run(["umount", "-R", cgroups.ROOT], check=True)
    mount("-t", "sysfs", "sysfs", "/sys")
    if any(each.unified for each in mounted):
        mount("-t", "cgroup2", "cgroup2", cgroups.ROOT)
        return
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", cgroups.ROOT)
    for each in mounted:
        _mount_version_1(each.controllers)


def _mount_version_1(controllers: str) -> None:
    named = controllers.startswith("name=")
    point = cgroups.ROOT / controllers.removeprefix("name=")
    point.mkdir()
    mount("-t", "cgroup", "-o", f"none,{controllers}" if named else controllers, "cgroup", point)
    for single in controllers.split(",") if "," in controllers else ():
        (cgroups.ROOT / single).symlink_to(point.name)


def cover_directories(kept: str) -> None:
    """Writes to some directories go to memory, but not those to `kept`."""
    aside = SCRATCH / "kept"
    aside.mkdir()
    mount("--bind", kept, aside)
    for directory in OVERLAID:
        layers = {name: SCRATCH / directory.strip("/").replace("/", "-") / name for name in ("upper", "work")}
        for layer in layers.values():
            layer.mkdir(parents=True)
        options = f"lowerdir={directory},upperdir={layers['upper']},workdir={layers['work']}"
        mount("-t", "overlay", "-o", options, "overlay", directory)
    mount("--bind", aside, kept)


def bind(directories: Mapping[str, str]) -> None:
    for target, source in directories.items():
        Path(target).mkdir(parents=True, exist_ok=True)
        mount("--bind", source, target)


def keep_in_memory(directories: Iterable[str]) -> None:
    for target in directories:
        source = SCRATCH / target.strip("/").replace("/", "-")
        source.mkdir()
        bind({target: str(source)})


def write_files(files: Mapping[str, str]) -> None:
    for path, text in files.items():
        Path(path).unlink(missing_ok=True)  # /etc/resolv.conf is often a link into /run
        Path(path).write_text(text)


def cover_run() -> None:
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for directory in (Path("/run/netns"), Path("/run/lock"), SCRATCH):
        directory.mkdir()


def set_sysctls() -> None:
    root = Path("/proc/sys")
    for key, value in NETWORK_SYSCTLS.items():
        if (root / "net" / key).exists():
            (root / "net" / key).write_text(str(value))
    for key, value in KERNEL_TUNABLES.items():
        if (root / key).exists():
            instead = SCRATCH / key.replace("/", ".")
            instead.write_text(f"{value}\n")
            mount("--bind", instead, root / key)
    mount("--bind", root / "net", root / "net")
    mount("--rbind", root, root)
    mount("-o", "remount,bind,ro", root)


def prepare(spec: Mapping[str, Any]) -> None:
    socket.sethostname(spec["hostname"])
    mount_kernel_views()
    cover_run()
    set_sysctls()
    cover_directories(spec["data"])
    bind(spec["binds"])
    keep_in_memory(spec["in_memory"])
    write_files(spec["files"])
    mount("--make-rshared", "/")


def main() -> None:
    spec = json.loads(sys.argv[1])
    prepare(spec)
    os.write(spec["ready"], b"1")
    os.close(spec["ready"])
    os.execv(spec["pause"], [spec["pause"]])


if __name__ == "__main__":
    main()
