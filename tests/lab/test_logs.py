"""What `l7proxy run` writes: flows on standard output and nothing else there, its log on standard error, as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import pytest

from l7proxy.lab import agents
from l7proxy.lab.state import Lab
from tests.lab.conftest import ROOT, Cluster

SECRET = "planted-4711"
REQUESTS = """
import http.client
for number in range(1500):
    connection = http.client.HTTPConnection("backend", 80, timeout=5)
    connection.request("GET", f"/api/{number}")
    assert connection.getresponse().status == 200
    connection.close()
print("done")
"""


class Lines:
    """Reads lines in a thread, while it may."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.found: list[bytes] = []
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._stream:
            for line in self._stream:  # each at once, not all at the end
                self.found.append(line)

    def wait(self) -> None:
        """Until every process that writes has ended."""
        self._thread.join(30)
        assert not self._thread.is_alive()

    def parsed(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.found]


@pytest.fixture
def lab() -> Iterator[Cluster]:
    found = Cluster(f"logs{os.getpid()}")
    found.run("up", "--no-agent")
    try:
        yield found
    finally:
        found.run("down")


def started(name: str, *flags: str) -> subprocess.Popen[bytes]:
    """`l7proxy run` on node-1, with pipes as a container runtime has them."""
    lab = Lab(name)
    argv = [sys.executable, "-m", "l7proxy.cli.main", "run", "--node", "node-1", "--workers", "1"]
    argv += ["--source", f"{lab.store.directory}", "--cni-results", f"{lab.cni_directory('node-1')}"]
    argv += ["--run-dir", f"{lab.run_directory('node-1')}", *flags]
    return subprocess.Popen(
        Cluster.argv("exec", "--name", name, "node/node-1", "--", *argv),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def flow_log(lab: Lab) -> dict[str, Any]:
    status = agents.status(lab, "node-1")
    assert status is not None
    (found,) = status["flows"]["sinks"]
    return dict(found)


def test_flows_and_the_log_as_a_container_runtime_gets_them(lab: Cluster) -> None:
    here = Lab(lab.name)
    process = started(lab.name, "--flow-log", "stdout", "--log-format", "json", "--log-level", "debug")
    assert process.stdout
    assert process.stderr
    log = Lines(process.stderr)
    try:
        until(lambda: agents.not_enforced(here, "node-1") is None, f"not enforced: {log.found}")
        curl = ["-H", f"Authorization: Bearer {SECRET}", "-H", f"X-Token: {SECRET}", f"http://backend/api/x?{SECRET}"]
        assert lab.curl("frontend", *curl) == "200"
        assert lab.curl("frontend", "http://backend/admin") == "403"
        assert lab.curl("stranger", "http://backend/api/x") == "exit 7"
        flows = [json.loads(process.stdout.readline())["flow"] for _ in range(10)]
        assert [one["verdict"] for one in flows].count("DROPPED") == 3  # of the packet two
        # Nobody reads standard output from here on: the pipe fills up, lines are lost, and nothing waits.
        assert lab.exec("frontend", sys.executable, "-c", REQUESTS).stdout == "done\n"
        until(lambda: flow_log(here)["lost"] > 0, "no line was lost")
        assert "no reader" in flow_log(here)["problem"]
        # Nor when the reader is gone.
        process.stdout.close()
        assert lab.curl("frontend", "http://backend/api/x") == "200"
        assert lab.curl("frontend", "http://backend/admin") == "403"
        until(lambda: "Broken pipe" in flow_log(here)["problem"], "a broken pipe is not reported")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        log.wait()
    assert {one["node"] for one in log.parsed()} == {"node-1"}
    loggers = {one["logger"] for one in log.parsed()}
    assert {"l7proxy.agent.supervise", "l7proxy.agent.run", "l7proxy.proxy.server.server"} <= loggers
    assert all(one["time"].endswith("Z") for one in log.parsed())
    assert SECRET not in b"".join(log.found).decode()
    assert SECRET not in json.dumps(flows)
