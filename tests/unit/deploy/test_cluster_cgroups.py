"""Finding our own cgroups in the three kinds of systems (cgroups(7))."""

from __future__ import annotations

from pathlib import Path

from deploy.cluster.cgroups import Hierarchy, hierarchies

MOUNT_2 = "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNTS_1 = (
    "31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "32 25 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "33 25 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n"
    "20 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
)


def test_version_2() -> None:
    found = hierarchies("0::/user.slice/session.scope\n", MOUNT_2)
    assert found == (Hierarchy("", Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/user.slice/session.scope")),)
    assert found[0].unified


def test_version_1() -> None:
    found = hierarchies("3:cpu,cpuacct:/a\n2:memory:/a/b\n1:name=systemd:/\n", MOUNTS_1)
    assert [(each.controllers, str(each.own)) for each in found] == [
        ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/a"),
        ("memory", "/sys/fs/cgroup/memory/a/b"),
        ("name=systemd", "/sys/fs/cgroup/systemd"),
    ]
    assert not any(each.unified for each in found)


def test_in_a_hybrid_system_version_2_has_no_controllers_and_is_left_out() -> None:
    unified = "34 25 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    found = hierarchies("2:memory:/\n1:name=systemd:/\n0::/\n", MOUNTS_1 + unified)
    assert [each.controllers for each in found] == ["memory", "name=systemd"]


def test_version_2_with_a_named_hierarchy_is_version_2() -> None:
    found = hierarchies("1:name=systemd:/\n0::/x\n", MOUNTS_1 + MOUNT_2)
    assert [each.controllers for each in found] == ["name=systemd", ""]


def test_in_a_container_the_path_is_below_the_root_of_the_mount() -> None:
    mount = "32 25 0:28 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    found = hierarchies("2:memory:/docker/abc/inner\n", mount)
    assert found[0].own == Path("/sys/fs/cgroup/memory/inner")


def test_what_is_not_mounted_is_left_out() -> None:
    assert hierarchies("9:rdma:/\n", MOUNTS_1) == ()
