"""Where it is measured: a lab of one node, and one proxy at a time behind the same TPROXY rules.

Ours is the real `l7proxy run` of the lab. For Envoy's turn the supervisor is stopped (SIGSTOP, so that nothing is
restarted), the worker is ended, and Envoy listens on the port that the kernel's rules point at; then all goes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import envoy
from bench.cpu import Used, rss_mb, used
from l7proxy.lab import agents, lifecycle
from l7proxy.lab.manifests import read
from l7proxy.lab.settings import Cni, Kernel, Settings
from l7proxy.lab.state import Lab

HERE = Path(__file__).resolve().parent
NAME = "bench"
NODE = "node-1"
PROXY_PORT = 15001
MARK_UPSTREAM = 0x02000000


@dataclass(frozen=True, slots=True)
class Turn:
    """One proxy under one load. CPU in seconds, memory in MiB."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    proxy: Used
    beside: Used
    rss: float

    @property
    def us_per_request(self) -> float:
        return self.proxy.total * 1e6 / self.requests


class Stage:
    """A lab that is up. Use `stage()`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        state = lab.load()
        self.server = next(address for document in self._documents() for address in _addresses(document, "server"))
        assert state.nodes[NODE].process is not None

    def _documents(self) -> Iterator[dict[str, Any]]:
        for manifest in read([self.lab.store.directory]):
            yield dict(manifest.document)

    def status(self) -> dict[str, Any]:
        return agents.status(self.lab, NODE) or {}

    def worker(self) -> int:
        """The pid of our worker, once it judges by the present policy."""
        return int(_until(lambda: next((w["pid"] for w in self.status().get("workers", ()) if w["revision"]), None)))

    def agent(self) -> int:
        """The pid of the agent: the peer of its own socket (SO_PEERCRED)."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.lab.run_directory(NODE) / agents.SOCKET))
            return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)

    def inside(self, where: str, *argv: str) -> list[str]:
        return [sys.executable, "-m", "l7proxy.cli.main", "lab", "exec", "--name", NAME, where, "--", *argv]

    def load(self, *, seconds: float, connections: int, rate: float = 0.0) -> dict[str, float]:
        """Run the load client in its pod."""
        command = self.inside("client", sys.executable, str(HERE / "load.py"), self.server, "80")
        command += ["--seconds", str(seconds), "--connections", str(connections), "--rate", str(rate)]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=seconds + 60)
        if done.returncode != 0:
            raise SystemExit(f"the load client failed: {done.stderr}")
        result: dict[str, float] = json.loads(done.stdout)
        if result["errors"] or not result["requests"]:
            raise SystemExit(f"the load met errors: {result}")
        return result

    def turn(self, proxy: int, beside: int | None, *, seconds: float, connections: int, rate: float = 0.0) -> Turn:
        """Warm up for a second, then measure."""
        self.load(seconds=1.0, connections=connections)
        before, before_beside = used(proxy), used(beside) if beside else Used(0, 0)
        seen = self.load(seconds=seconds, connections=connections, rate=rate)
        after, after_beside = used(proxy), used(beside) if beside else Used(0, 0)
        return Turn(
            int(seen["requests"]), seen["seconds"], seen["p50_us"], seen["p99_us"],
            after - before, after_beside - before_beside, rss_mb(proxy),
        )  # fmt: skip

    @contextlib.contextmanager
    def envoy(self) -> Iterator[int]:
        """Envoy in our worker's place; its pid. Ours is back afterwards."""
        worker = self.worker()
        supervisor = _parent(worker)
        os.kill(supervisor, signal.SIGSTOP)
        try:
            os.kill(worker, signal.SIGKILL)
            with tempfile.TemporaryDirectory() as directory:
                config = Path(directory) / "envoy.json"
                log = Path(directory) / "access.log"
                config.write_text(envoy.config(port=PROXY_PORT, mark=MARK_UPSTREAM, log=str(log)))
                argv = [envoy.binary() or "envoy", "-c", str(config), "--concurrency", "1", "--disable-hot-restart"]
                process = subprocess.Popen(
                    self.inside(f"node/{NODE}", *argv, "-l", "error"), cwd=HERE.parent, stderr=subprocess.DEVNULL
                )
                try:
                    _until(lambda: self._answers() or None)
                    yield process.pid
                finally:
                    process.terminate()
                    process.wait(10)
        finally:
            os.kill(supervisor, signal.SIGCONT)

    def _answers(self) -> bool:
        argv = self.inside("client", "curl", "-s", "-m", "1", "-o", "/dev/null", f"http://{self.server}/api/x")
        return subprocess.run(argv, cwd=HERE.parent, check=False).returncode == 0


@contextlib.contextmanager
def stage(report: Callable[[str], None]) -> Iterator[Stage]:
    """Bring the bench's lab up, and down again whatever happens."""
    with tempfile.TemporaryDirectory() as directory:
        manifest = Path(directory) / "world.yaml"
        manifest.write_text(
            (HERE / "world.yaml").read_text().replace("@PYTHON@", sys.executable).replace("@BENCH@", str(HERE))
        )
        lab = lifecycle.up(Settings(name=NAME, cni=Cni.PTP, backend=Kernel.NFTABLES), read([manifest]), report)
    try:
        yield Stage(lab)
    finally:
        lifecycle.down(lab)


def _addresses(document: dict[str, Any], pod: str) -> Iterator[str]:
    if document["kind"] == "Pod" and document["metadata"]["name"] == pod:
        yield document["status"]["podIP"]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _until(look: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Ask until it answers something other than None."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = look()
        if answer is not None:
            return answer
        time.sleep(0.1)
    raise SystemExit("the bench waited in vain: is the lab up? (`l7proxy lab status --name bench`)")
