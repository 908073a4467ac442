"""On a machine without the requirements, one line says what to install or grant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tproxy_rules.backend import KernelError
from tproxy_rules.detect import NAMES, choose
from tproxy_rules.tool import run

_CHECK = """
import os, sys
from tproxy_rules.backend import KernelError
from tproxy_rules.detect import choose
if sys.argv[2]:
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
try:
    choose(sys.argv[1])
except KernelError as error:
    print(error)
    sys.exit(3)
"""


def complaint(name: str, *, path: str | None = None, uid: str = "") -> str:
    """The error message of a separate process, with that PATH and that user."""
    environment = dict(os.environ, PATH=path if path is not None else "/usr/sbin:/usr/bin:/sbin:/bin")
    done = subprocess.run(
        [sys.executable, "-c", _CHECK, name, uid], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("\n") == 1
    return done.stdout.strip()


def test_a_missing_tool_is_named_with_its_package(tmp_path: Path) -> None:
    nowhere = str(tmp_path)
    assert complaint("nftables", path=nowhere) == ("nftables: nft is not installed: install the package nftables")
    assert "install the package ipset" in complaint("iptables", path=nowhere)
    both = complaint("auto", path=nowhere)
    assert "nftables: nft is not installed" in both
    assert "; iptables: ipset is not installed" in both


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give it up")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "auto"])
def test_without_privilege_it_says_so(name: str) -> None:
    assert "permission denied: run as root, or with CAP_NET_ADMIN" in complaint(name, uid="65534")


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(KernelError, match="unknown backend 'ebpf': must be one of auto, nftables, iptables"):
        choose("ebpf")


def test_a_tools_complaint_is_passed_on_but_not_all_of_it() -> None:
    with pytest.raises(KernelError, match=r"^sh failed with status 4: one; two; three; four$"):
        run(("sh", "-c", "for word in one two three four five; do echo $word >&2; done; exit 4"))
    with pytest.raises(KernelError, match="sh: permission denied"):
        run(("sh", "-c", "echo 'Operation not permitted (you must be root)' >&2; exit 1"))


def test_what_is_not_executable_is_no_crash(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("text", encoding="ascii")
    with pytest.raises(KernelError, match="cannot run"):
        run((str(tool),))


def test_a_tool_reads_its_input_and_answers() -> None:
    assert run(("cat",), "text") == "text"
