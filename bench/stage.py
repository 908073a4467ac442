"""The test bed: a lab of one node, and one proxy at a time with the same TPROXY rules.

The lab starts without an agent. Ours is `l7proxy run`, started as the peers are; its kernel rules, which stay enforced
after it stops, redirect the same connections to the same port for the proxy that listens there next.
The server pod serves on HTTP (and BULK, GRPC) through the proxy, and on DIRECT without.
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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from bench import programs
from bench.cores import Cores, pinned
from bench.cpu import Used, children, used
from bench.proxies import Peer, Place
from bench.proxies.envoy import Envoy
from bench.proxies.haproxy import HAProxy
from bench.proxies.nginx import Nginx
from bench.rules import Rule, policy, rules
from l7proxy.lab import agents, lifecycle, netns, processes
from l7proxy.lab.manifests import read
from l7proxy.lab.settings import Cni, Kernel, Settings
from l7proxy.lab.state import Lab
from l7proxy.proxy.server.steering import PORTS

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[1]
NODE: Final = "node-1"
PROXY_PORT: Final = 15001
MARK_UPSTREAM: Final = 0x02000000
HTTP, BULK, GRPC, DIRECT = 80, 81, 82, 90
OURS: Final = "l7proxy"
PEERS: Final[tuple[Peer, ...]] = (Envoy(), HAProxy(), Nginx())
STOP_SECONDS: Final = 15.0
ENFORCED_SECONDS: Final = 30.0

# HAProxy and nginx cannot mark their upstream sockets. A packet from a local socket with an address that is not the
# node's can only be a proxy's connection to a server, so it is marked before our rules evaluate it.
MARK_FOR_PEERS: Final = f"""
table inet bench {{
  chain output {{
    type route hook output priority -95; policy accept;
    ct direction original meta l4proto tcp fib saddr type != local meta mark set meta mark | {MARK_UPSTREAM:#010x}
  }}
}}
"""
# Tens of thousands of new connections need many ports. The client's and those that proxies use on its behalf must
# differ: conntrack would take two connections with the same addresses and ports for one.
PORT_RANGES: Final = {"client": f"{PORTS.stop} 65535", "proxy": f"{PORTS.start} {PORTS.stop - 1}"}
CHOSEN: Final = "60000-64999"
"""Source ports of clients that choose them."""
REUSE_WAITING: Final = {"net/ipv4/tcp_tw_reuse": "1"}
"""For a connection per request: ports in TIME_WAIT are reused."""
SERVER_CONFIG: Final = """user root; worker_processes 1; daemon off; error_log stderr error; pid {directory}/server.pid;
events {{ worker_connections 8192; }}
http {{
  {paths}
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;
  server {{
    listen {http} backlog=4096; listen {direct} backlog=4096;
    default_type text/plain;
    location / {{ return 200 "Hello, world\\n"; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Running:
    """A running proxy. `beside` are its other processes: our agent."""

    name: str
    proxy: int
    beside: tuple[int, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.proxy, *self.beside)


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU of one stretch of load: of the proxy, and of its other processes."""

    proxy: Used
    beside: Used

    @property
    def total(self) -> float:
        return self.proxy.total + self.beside.total


class Stage:
    """A running lab. Use `stage()`."""

    def __init__(self, lab: Lab, directory: Path, cores: Cores) -> None:
        self.lab = lab
        self.directory = directory
        self.cores = cores
        self.server = _address(lab, "server")
        self._namespace = lab.load().pods["default/server"].namespace
        self._steers = False

    # what runs where

    def inside(self, where: str, *argv: str) -> list[str]:
        """A command for a pod or the node. The starting process execs it, so the pid stays the same."""
        return [sys.executable, "-m", "l7proxy.cli.main", "lab", "exec", "--name", self.lab.name, where, "--", *argv]

    def start(self, where: str, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(self.inside(where, *argv), cwd=ROOT, env=environment, **options)

    def ask(self, where: str, *argv: str, seconds: float) -> str:
        """The output of a command, which must succeed."""
        with self.start(where, *argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            try:
                out, err = child.communicate(timeout=seconds)
            except BaseException:
                child.kill()
                raise
        if child.returncode:
            raise SystemExit(f"{' '.join(argv[:4])}…: exit code {child.returncode}: {err.decode()[-2000:]}")
        return out.decode()

    def from_client(self, *argv: str, seconds: float) -> str:
        """The output of a load, run on the cores that the proxy does not use."""
        return self.ask("client", *self.cores.pin_other(list(argv)), seconds=seconds)

    @contextlib.contextmanager
    def serving(self, port: int, *argv: str) -> Iterator[None]:
        """Another server in the server pod."""
        child = self.start("server", *self.cores.pin_other(list(argv)), stdout=subprocess.DEVNULL)
        try:
            until(lambda: self._listens(port) or None, f"nothing serves on port {port} of the server pod")
            yield
        finally:
            stop(child)

    def _listens(self, port: int) -> bool:
        with contextlib.suppress(OSError):
            netns.inside(self._namespace, partial(socket.create_connection, ("127.0.0.1", port), 1)).close()
            return True
        return False

    # proxies

    def peers(self) -> list[Peer]:
        return [peer for peer in PEERS if not peer.missing()]

    @contextlib.contextmanager
    def proxy(self, name: str, *, count: int = 10) -> Iterator[Running]:
        """A proxy by its name, with `count` rules, once it answers."""
        if name != OURS and not self._steers:  # peers need the redirect rules that l7proxy installs
            with self.proxy(OURS):
                pass
        chosen = rules(count)
        with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
            serve = self._ours if name == OURS else self._peer
            with serve(name, Path(scratch), chosen) as running:
                self._warm()
                yield running

    @contextlib.contextmanager
    def _peer(self, name: str, scratch: Path, chosen: tuple[Rule, ...]) -> Iterator[Running]:
        peer = next(peer for peer in PEERS if peer.name == name)
        place = Place(scratch, PROXY_PORT, MARK_UPSTREAM, self.server, (HTTP, BULK, GRPC))
        command = peer.command(place, chosen)
        if peer.needs_listener:
            command = [sys.executable, "-m", "bench.listener", str(PROXY_PORT), "--", *command]
        with (scratch / "out.log").open("wb") as out, (scratch / "err.log").open("wb") as err:
            child = self.start(f"node/{NODE}", *self.cores.pin_proxy(command), stdout=out, stderr=err)
        try:
            self._answers(child, scratch / "err.log", name)
            workers = children(child.pid)  # nginx: the master only supervises
            yield Running(name, workers[0] if workers else child.pid)
        finally:
            stop(child)

    @contextlib.contextmanager
    def _ours(self, name: str, scratch: Path, chosen: tuple[Rule, ...]) -> Iterator[Running]:
        self.write_policy(chosen)
        with self.l7proxy({"flow_log": str(scratch / "flows.json")}, scratch, subprocess.DEVNULL) as (running, _):
            self._steers = True
            yield running

    @contextlib.contextmanager
    def l7proxy(
        self, settings: dict[str, Any], scratch: Path, out: int | IO[bytes]
    ) -> Iterator[tuple[Running, subprocess.Popen[bytes]]]:
        """`l7proxy run` with these settings, once it enforces and answers; its standard output goes to `out`."""
        config = scratch / "l7proxy.json"
        config.write_text(json.dumps({"drain": 1.0, **settings}))
        argv = agents.container(self.lab, self.lab.load().settings, NODE).argv
        command = self.cores.pin_proxy([*argv, "--config", str(config)])
        log = scratch / "err.log"
        with log.open("wb") as err:
            child = self.start(f"node/{NODE}", *command, stdout=out, stderr=err)
        try:
            self._enforced(child, log)
            self._answers(child, log, OURS)
            worker = int(self.status()["workers"][0]["pid"])
            beside = tuple(pid for pid in children(child.pid) if pid != worker)
            yield Running(OURS, worker, beside), child
        finally:
            stop(child)

    def _enforced(self, child: subprocess.Popen[bytes], log: Path) -> None:
        """Wait until our agent reports that all is enforced."""
        end = time.monotonic() + ENFORCED_SECONDS
        while (missing := agents.not_enforced(self.lab, NODE)) is not None:
            _alive(child, log)
            if time.monotonic() > end:
                raise SystemExit(f"after {ENFORCED_SECONDS:.0f} s: {missing}: {tail(log)}")
            time.sleep(0.05)

    def write_policy(self, chosen: tuple[Rule, ...], ports: tuple[int, ...] = (HTTP, BULK, GRPC)) -> None:
        """Writes to the manifest directory that our agent watches."""
        text = policy(chosen, http_ports=ports, open_ports=(DIRECT,))
        path = self.lab.store.directory / "l7-policy.yaml"
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(path)

    def status(self) -> dict[str, Any]:
        return agents.status(self.lab, NODE) or {}

    def _answers(self, child: subprocess.Popen[bytes], log: Path, name: str) -> None:
        """An allowed path passes and another is refused: traffic goes through the proxy and its rules are enforced."""

        def look() -> bool | None:
            _alive(child, log)
            return self.answers() or None

        until(look, f"{name} does not serve: {tail(log)}")

    def answers(self) -> bool:
        return (self._get("/api/s0/users/1/x"), self._get("/forbidden")) == ("200", "403")

    def _get(self, path: str) -> str:
        url = f"http://{self.server}:{HTTP}{path}"
        argv = self.inside("client", "curl", "-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", url)
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False).stdout

    def _warm(self) -> None:
        """Allocations and compilations of the first use are not counted."""
        from bench import load

        load.full_rate(self, seconds=0.5)

    @contextlib.contextmanager
    def _server(self) -> Iterator[None]:
        config = self.directory / "server.conf"
        paths = programs.nginx_paths(self.directory)
        config.write_text(SERVER_CONFIG.format(directory=self.directory, paths=paths, http=HTTP, direct=DIRECT))
        nginx = ("nginx", "-p", str(self.directory), "-e", "stderr", "-c", str(config))
        with self.serving(DIRECT, *nginx):
            yield


def cost(running: Running, work: Callable[[], T]) -> tuple[T, Cost]:
    """The result of `work`, and the CPU that the proxy used for it."""
    proxy, beside = used(running.proxy), used(*running.beside)
    result = work()
    return result, Cost(used(running.proxy) - proxy, used(*running.beside) - beside)


@contextlib.contextmanager
def stage(
    report: Callable[[str], None],
    name: str = "bench",
    *,
    cores: Cores | None = None,
    sysctls: Mapping[str, str] = REUSE_WAITING,
) -> Iterator[Stage]:
    """Starts the bench's lab, and always removes it at the end."""
    if absent := programs.missing(("wrk", "nginx", "taskset")):
        raise SystemExit(f"the bench's load and server need {', '.join(absent)}: apt-get install wrk nginx-light")
    with tempfile.TemporaryDirectory(prefix="l7proxy-bench-") as directory:
        settings = Settings(name=name, cni=Cni.PTP, backend=Kernel.NFTABLES, agent=False)
        lab = lifecycle.up(settings, read([Path(__file__).parent / "world.yaml"]), report)
        try:
            place = Stage(lab, Path(directory), cores or pinned())
            _prepare(lab, sysctls)
            _pin_pods(lab, place.cores)
            with place._server():
                yield place
        finally:
            lifecycle.down(lab)


def _prepare(lab: Lab, sysctls: Mapping[str, str]) -> None:
    state = lab.load()
    node, client = state.nodes[NODE].namespace, state.pods["default/client"].namespace
    for namespace, whose in ((node, "proxy"), (client, "client")):
        ports = {"net/ipv4/ip_local_port_range": PORT_RANGES[whose], "net/ipv4/ip_local_reserved_ports": CHOSEN}
        netns.inside(namespace, partial(_tune, {**ports, **sysctls}))
    netns.inside(node, lambda: subprocess.run(["nft", "-f", "-"], input=MARK_FOR_PEERS, text=True, check=True))


def _pin_pods(lab: Lab, cores: Cores) -> None:
    """Moves the servers that the lab has started in pods, with all threads, so that they take no CPU from what is
    measured: neither from the proxy nor from the figures' client and server, which share a core."""
    namespaces = netns.inodes(pod.namespace for pod in lab.load().pods.values())
    for process in processes.inside(namespaces):
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores.others)
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def _tune(sysctls: Mapping[str, str]) -> None:
    for key, value in sysctls.items():
        netns.set_sysctl(key, value)


def _address(lab: Lab, pod: str) -> str:
    cluster = lifecycle.cluster_of(lab)
    return next(one.addresses[0] for one in cluster.pods if one.name == pod)


def tail(log: Path, lines: int = 30) -> str:
    return agents.log_tail(log, lines)


def _alive(child: subprocess.Popen[bytes], log: Path) -> None:
    if child.poll() is not None:
        raise SystemExit(f"it ended with exit code {child.returncode}: {tail(log)}")


def stop(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL if it does not end."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def until(look: Callable[[], T | None], what: str, seconds: float = 20.0) -> T:
    """Call `look` until it returns something other than None."""
    end = time.monotonic() + seconds
    while (answer := look()) is None:
        if time.monotonic() > end:
            raise SystemExit(f"the bench waited in vain: {what}")
        time.sleep(0.05)
    return answer
