"""Sysctls in a container: /proc/sys is mounted read-only there, and the node's network part of it is mounted beside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONTAINER = """
set -e
mount -t tmpfs none "$1"
mkdir -p "$1/host/net" "$1/empty"
mount --bind /proc/sys/net "$1/host/net"
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
shift
exec "$@"
"""
PROGRAM = """
import sys
from pathlib import Path
from tproxy_rules import sysctl
name, host = "net/ipv4/tcp_migrate_req", Path(sys.argv[1])
before = sysctl.read(name)
try:
    sysctl.write(name, "1", host=host)
except OSError as error:
    print(error.strerror)
print(before, sysctl.read(name))
"""

pytestmark = [pytest.mark.sandbox, pytest.mark.usefixtures("sandbox")]


def in_container(place: Path, host: str) -> list[str]:
    program = [sys.executable, "-c", PROGRAM, str(place / host)]
    command = ["unshare", "--mount", "--net", "sh", "-c", CONTAINER, "sh", str(place), *program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_nodes_part_of_proc_is_used_where_the_own_one_is_read_only(tmp_path: Path) -> None:
    assert in_container(tmp_path, "host") == ["0 1"]


def test_without_it_the_error_is_that_of_the_read_only_mount(tmp_path: Path) -> None:
    assert in_container(tmp_path, "empty") == ["Read-only file system", "0 0"]
