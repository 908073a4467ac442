"""deploy/systemd: the units are valid, and their commands enforce policy with no more than the units give them.

There is no systemd in a test: the user that reads the units here starts the commands as systemd would, with the
environment file, the capabilities, the limits and the notification socket. What is not imitated are the mounts and the
filter of system calls.
"""

from __future__ import annotations

import configparser
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from l7proxy.lab import agents
from l7proxy.lab.state import Lab
from tests.lab.conftest import ROOT, Cluster, need

UNITS = ROOT / "deploy" / "systemd"
NAMES = ("l7proxy-agent", "l7proxy-workers")
INSTALLED = "/opt/l7proxy/.venv/bin/l7proxy"


def unit(name: str) -> Mapping[str, str]:
    """The section Service. Repeated keys (there are none that count here) keep the last value."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / f"{name}.service")
    return parser["Service"]


def environment_file() -> dict[str, str]:
    lines = (UNITS / "l7proxy.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("name", NAMES)
def test_systemd_accepts_the_unit_and_finds_it_hardened(name: str, tmp_path: Path) -> None:
    need("systemd-analyze")
    copy = tmp_path / f"{name}.service"
    text = (UNITS / f"{name}.service").read_text()
    assert INSTALLED in text
    copy.write_text(text.replace(INSTALLED, shutil.which("true") or "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    exposure = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=30", str(copy)], capture_output=True, text=True
    )
    assert exposure.returncode == 0, f"more than 3.0 of 10:\n{exposure.stdout}"


@contextmanager
def running(lab: Lab, name: str, told: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The unit's ExecStart on node-1, with the lab's directories."""
    service = unit(name)
    environment = {
        **os.environ,
        **environment_file(),
        "L7PROXY_NODE": "node-1",
        "L7PROXY_SOURCE": str(lab.store.directory),
        "L7PROXY_RUN_DIR": str(lab.run_directory("node-1")),
        "L7PROXY_CNI_RESULTS": str(lab.cni_directory("node-1")),
        "L7PROXY_FLOW_LOG": str(lab.directory / "flows.jsonl"),
        "L7PROXY_WORKERS": "1",
    }
    if service["Type"] == "notify":
        environment["NOTIFY_SOCKET"] = str(told)
    program, *arguments = shlex.split(service["ExecStart"])
    assert program == INSTALLED
    capabilities = ",".join(f"+{one.removeprefix('CAP_').lower()}" for one in service["CapabilityBoundingSet"].split())
    confined = ["setpriv", f"--bounding-set=-all,{capabilities}", "--inh-caps=-all"]
    confined += ["--no-new-privs"] if service["NoNewPrivileges"] == "yes" else []
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # no right to raise it in a container
    limited = ["prlimit", f"--nofile={min(int(service['LimitNOFILE']), most)}"]
    argv = [*limited, *confined, sys.executable, "-m", "l7proxy.cli.main", *arguments]
    with (lab.directory / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            Cluster.argv("exec", "--name", lab.name, "node/node-1", "--", *argv),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env=environment,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def stop(process: subprocess.Popen[bytes], name: str) -> int:
    """As `systemctl stop`: SIGTERM, and no need to kill."""
    process.send_signal(signal.SIGTERM)
    return process.wait(float(unit(name)["TimeoutStopSec"]))


def until(holds: Callable[[], object], lab: Lab) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "\n".join(agents.log_tail(lab.directory / f"{name}.log") for name in NAMES)
        time.sleep(0.05)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    need("setpriv", "prlimit")
    found = Cluster(f"units{os.getpid()}")
    found.run("up", "--no-agent")
    try:
        yield found
    finally:
        found.run("down")


def test_the_units_enforce_policy_and_restart_apart(cluster: Cluster) -> None:
    lab = Lab(cluster.name)
    told = lab.directory / "notify"
    agent_name, workers_name = NAMES
    with ExitStack() as stack, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(told))
        manager.settimeout(60)
        agent = stack.enter_context(running(lab, agent_name, told))
        assert manager.recv(4096).startswith(b"READY=1\n")
        # Ready means enforced, also while there is no worker.
        assert cluster.curl("stranger", "http://backend/api/x") == "exit 7"
        assert cluster.curl("frontend", "http://backend/api/x") == "exit 7"
        workers = stack.enter_context(running(lab, workers_name, told))
        until(lambda: agents.not_enforced(lab, "node-1") is None, lab)
        assert cluster.curl("frontend", "http://backend/api/x") == "200"
        assert cluster.curl("frontend", "http://backend/admin") == "403"
        assert (lab.directory / "flows.jsonl").read_text()

        assert stop(agent, agent_name) == 0
        assert manager.recv(4096).startswith(b"STOPPING=1\n")
        assert cluster.curl("frontend", "http://backend/api/x") == "200", "workers go on without the agent"
        assert cluster.curl("frontend", "http://backend/admin") == "403"
        assert cluster.curl("stranger", "http://backend/api/x") == "exit 7"
        stack.enter_context(running(lab, agent_name, told))
        assert manager.recv(4096).startswith(b"READY=1\n")

        assert stop(workers, workers_name) == 0
        assert cluster.curl("frontend", "http://backend/api/x") == "exit 7", "closed without workers"
        stack.enter_context(running(lab, workers_name, told))
        until(lambda: cluster.curl("frontend", "http://backend/api/x") == "200", lab)
        assert cluster.curl("frontend", "http://backend/admin") == "403"
