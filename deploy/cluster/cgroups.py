"""The cgroups of machines, in version 1, version 2 and hybrid hierarchies (cgroups(7)).

Version 1: a machine's cgroup is below our own one in every hierarchy, so limits of ours hold for it, too. Version 2: it
is below the root of what we see, since a cgroup that has processes cannot give controllers to its children. There,
processes are in its child `init`, for the same reason: the kubelet's `kubepods` must be beside them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.cluster.plan import Machine
from l7proxy.errors import ConfigError

ROOT: Final = Path("/sys/fs/cgroup")
PROCESSES_CHILD: Final = "init"
_WANTED: Final = ("cpu", "cpuset", "memory", "pids", "io", "hugetlb")
_MEMORY_FILES: Final = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""By version: limit, usage, and what of the usage is a cache of files that the kernel can drop (in memory.stat)."""
_NO_LIMIT: Final = 1 << 62
_CANNOT_DELEGATE: Final = (
    "{}: its controllers cannot be given to children, since a cgroup with processes cannot. In a container, start it"
    " with --cgroupns=host, or move its processes to a child cgroup first"
)
_GONE_IN: Final = 15.0
"""Seconds that the kernel may take to empty the cgroups of killed processes."""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One hierarchy, and our own place in it."""

    controllers: str
    """As /proc/self/cgroup names them: `cpu,cpuacct`, `name=systemd`; empty in version 2."""
    mount: Path
    own: Path

    @property
    def unified(self) -> bool:
        return not self.controllers


def hierarchies(membership: str, mounts: str) -> tuple[Hierarchy, ...]:
    """From the text of /proc/self/cgroup and /proc/self/mountinfo. What is not mounted is left out.

    In a hybrid system the version 2 hierarchy has no controllers, and is left out.
    """
    mounted = {controllers: (root, point) for controllers, root, point in _cgroup_mounts(mounts)}
    found = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in mounted:
            continue
        root, point = mounted[controllers]
        below = os.path.relpath(path, root) if path.startswith(root) else "."
        found.append(Hierarchy(controllers, point, point / below))
    has_version_1 = any(not each.unified and not each.controllers.startswith("name=") for each in found)
    return tuple(each for each in found if not (each.unified and has_version_1))


def _cgroup_mounts(mounts: str) -> Iterator[tuple[str, str, Path]]:
    """(controllers, path of the mount's root in the hierarchy, mount point)."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            yield "", root, Path(point)
        elif kind == "cgroup":
            yield _controllers(options), root, Path(point)


def _controllers(options: str) -> str:
    """Of the super options of a mount: `rw,cpu,cpuacct` → `cpu,cpuacct`; a named one keeps its name only."""
    words = [
        word for word in options.split(",") if word not in ("rw", "ro", "xattr", "none", "noprefix", "clone_children")
    ]
    named = [word for word in words if word.startswith("name=")]
    return ",".join(named or [word for word in words if "=" not in word])


def own() -> tuple[Hierarchy, ...]:
    """The hierarchies of this process. ConfigError if there is none."""
    found = hierarchies(*_membership_and_mounts())
    if not found:
        raise ConfigError("no cgroup hierarchy is mounted: mount /sys/fs/cgroup, or start the container with cgroups")
    return found


def directory(hierarchy: Hierarchy, machine: Machine) -> Path:
    return (hierarchy.mount if hierarchy.unified else hierarchy.own) / machine.cgroup


def create(machine: Machine) -> None:
    """Make the machine's cgroup in every hierarchy."""
    for hierarchy in own():
        path = directory(hierarchy, machine)
        if hierarchy.unified:
            _delegate(hierarchy.mount)
        path.mkdir(exist_ok=True)
        if "cpuset" in hierarchy.controllers.split(","):
            for name in ("cpuset.cpus", "cpuset.mems"):
                (path / name).write_text((path.parent / name).read_text())


def settle(machine: Machine) -> None:
    """Version 2: move the first processes into `init`. They were in the cgroup that their namespace shows as root."""
    for path in (directory(each, machine) for each in own() if each.unified):
        inner = path / PROCESSES_CHILD
        inner.mkdir(exist_ok=True)
        for pid in (path / "cgroup.procs").read_text().split():
            (inner / "cgroup.procs").write_text(pid)
        _delegate(path)


def _delegate(path: Path) -> None:
    """Give the controllers that `path` has to its children (version 2)."""
    available = (path / "cgroup.controllers").read_text().split()
    wanted = " ".join(f"+{name}" for name in _WANTED if name in available)
    try:
        (path / "cgroup.subtree_control").write_text(wanted)
    except OSError as error:
        raise ConfigError(f"{_CANNOT_DELEGATE.format(path)} ({error.strerror})") from error


def controllers() -> frozenset[str]:
    """Those that machines can have."""
    found: set[str] = set()
    for each in hierarchies(*_membership_and_mounts()):
        names = _read(each.mount / "cgroup.controllers").split() if each.unified else each.controllers.split(",")
        found.update(names)
    return frozenset(found)


def try_out() -> None:
    """Make a cgroup in every hierarchy and remove it. ConfigError or OSError says why a machine cannot have one."""
    for hierarchy in own():
        if hierarchy.unified and not _can_delegate(hierarchy.mount):
            raise ConfigError(_CANNOT_DELEGATE.format(hierarchy.mount))
        parent = hierarchy.mount if hierarchy.unified else hierarchy.own
        trial = parent / f"l7proxy-cluster.check.{os.getpid()}"
        trial.mkdir()
        trial.rmdir()


def _can_delegate(path: Path) -> bool:
    """Whether controllers of a version 2 cgroup are, or can be, given to its children (cgroups(7))."""
    available, given = (_read(path / name).split() for name in ("cgroup.controllers", "cgroup.subtree_control"))
    is_root_of_all = not (path / "cgroup.type").exists()
    wanted = {name for name in _WANTED if name in available}
    return wanted <= set(given) or is_root_of_all or not _read(path / "cgroup.procs").split()


def memory_left() -> int:
    """Bytes that our cgroups, and those above them, still allow. A very large number if they have no limit."""
    left = _NO_LIMIT
    for each in hierarchies(*_membership_and_mounts()):
        if each.unified or "memory" in each.controllers.split(","):
            for path in (each.own, *each.own.parents):
                left = min(left, _memory_left(path, *(_MEMORY_FILES[2 if each.unified else 1])))
    return left


def _memory_left(group: Path, limit_file: str, usage_file: str, cached: str) -> int:
    limit, usage = (_read(group / name).strip() for name in (limit_file, usage_file))
    if not (limit.isdigit() and usage.isdigit()):
        return _NO_LIMIT
    reclaimable = dict(line.split() for line in _read(group / "memory.stat").splitlines()).get(cached, "0")
    return int(limit) - int(usage) + int(reclaimable)


def _membership_and_mounts() -> tuple[str, str]:
    return Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()


def _read(path: Path) -> str:
    """Empty if the file does not exist."""
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def to_join(machine: Machine) -> tuple[Path, ...]:
    """The cgroups that the next process of the machine has to join."""
    return tuple(_to_join(group) for group in left([machine.cgroup]))


def _to_join(group: Path) -> Path:
    inner = group / PROCESSES_CHILD
    return inner if inner.exists() else group


def left(names: Iterable[str]) -> list[Path]:
    """Every cgroup of these names, wherever a command was when it made them."""
    wanted = set(names)
    return [Path(parent, name) for parent, names_in, _ in os.walk(ROOT) for name in names_in if name in wanted]


def processes(groups: Iterable[Path]) -> set[int]:
    """The processes in these cgroups and below."""
    found: set[int] = set()
    for group in groups:
        for parent, _, files in os.walk(group):
            if "cgroup.procs" in files:
                with contextlib.suppress(OSError):
                    found.update(int(pid) for pid in Path(parent, "cgroup.procs").read_text().split())
    return found - {0}


def remove(groups: Sequence[Path]) -> None:
    """Remove cgroups whose processes have ended. ConfigError if one stays."""
    deadline = time.monotonic() + _GONE_IN
    while remaining := [group for group in groups if not _removed(group)]:
        if time.monotonic() > deadline:
            raise ConfigError(f"cgroup {remaining[0]} cannot be removed: a process is still in it")
        time.sleep(0.05)


def _removed(group: Path) -> bool:
    for parent, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            Path(parent).rmdir()
    return not group.exists()
