"""`l7proxy observe --server` against real servers of Hubble's API, on a unix socket and over mutual TLS."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from l7proxy.agent.hubble import Hubble
from l7proxy.flows.flow import IP, Endpoint, Flow, Layer4, Ports
from l7proxy.flows.ring import Ring
from l7proxy.setting_definitions import Settings
from tests.support.grpc_loop import ONE_LOOP
from tests.support.rings import flow, ring_of
from tests.unit.cli.conftest import Agent, Run
from tests.unit.hubble.authority import NAME, Authority

DENIED = Flow(
    time="2025-11-23T20:00:00.004Z",
    uuid="denied",
    verdict="DROPPED",
    ip=IP(source="10.0.0.10", destination="10.0.0.20"),
    l4=Layer4(tcp=Ports(source_port=50000, destination_port=80)),
    source=Endpoint(identity=1234, namespace="default", pod_name="client", labels=("k8s:app=client",)),
    destination=Endpoint(identity=5678, namespace="default", pod_name="backend"),
    destination_names=("backend.example.com",),
    traffic_direction="INGRESS",
    policy_log=("no rule matched",),
    summary="TCP Flags: SYN",
)
LINE = (
    "Nov 23 20:00:00.004: default/client:50000 (ID:1234) <> default/backend:80 (ID:5678) UNKNOWN DROPPED "
    "(TCP Flags: SYN)"
)


@asynccontextmanager
async def serving(ring: Ring, tmp_path: Path, settings: Settings | None = None) -> AsyncIterator[str]:
    """Yields the address of the unix socket."""
    path = tmp_path / "hubble.sock"
    async with Hubble(settings or Settings(node="n1", hubble_socket_path=str(path)), ring).serving():
        yield f"unix://{path}"


async def observed(run: Run, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(run, "observe", *arguments, **variables)


async def uuids(run: Run, server: str, *flags: str) -> list[str]:
    found = await observed(run, "--server", server, "-o", "json", *flags)
    assert (found.returncode, found.stderr) == (0, "")
    return [json.loads(line)["flow"]["uuid"] for line in found.stdout.splitlines()]


@ONE_LOOP
async def test_flows_are_selected_and_filtered_by_the_server(run: Run, tmp_path: Path) -> None:
    async with serving(ring_of(30, capacity=63), tmp_path) as server:
        assert await uuids(run, server) == [str(number) for number in range(10, 30)], "the last 20"
        assert await uuids(run, server, "--all") == [str(number) for number in range(30)]
        assert await uuids(run, server, "--last", "2", "--verdict", "DROPPED") == ["24", "27"]
        assert await uuids(run, server, "--first", "2", "--not", "--verdict", "DROPPED") == ["1", "2"]
        assert await uuids(run, server, "--since", "1970-01-01T00:00:04Z", "--until", "1970-01-01T00:00:05Z") == [
            "4",
            "5",
        ]
        assert await uuids(run, server, "--allowlist", '{"uuid":["7"]}') == ["7"]


@ONE_LOOP
async def test_what_is_printed_is_asked_for(run: Run, tmp_path: Path) -> None:
    ring = ring_of(0)
    ring.append(DENIED)
    async with serving(ring, tmp_path) as server:
        assert (await observed(run, "--server", server)).stdout == f"{LINE} reason: no rule matched\n"
        assert (await observed(run, "--server", server, "-o", "compact")).stdout == f"{LINE}\n"
        assert (await observed(run, HUBBLE_SERVER=server, L7PROXY_RUN_DIR="/run/l7proxy")).stdout.startswith(LINE)
        whole = json.loads((await observed(run, "--server", server, "-o", "json")).stdout)
        assert whole == {**DENIED.to_json(), "node_name": "n1"}
        few = await observed(run, "--server", server, "-o", "json", "--field-mask", "uuid,source.labels")
        assert json.loads(few.stdout)["flow"] == {"uuid": "denied", "source": {"labels": ["k8s:app=client"]}}


@ONE_LOOP
async def test_what_the_server_refuses_is_told_in_its_words(run: Run, tmp_path: Path) -> None:
    async with serving(ring_of(1), tmp_path) as server:
        found = await observed(run, "--server", server, "--cel-expression", "true")
        assert (found.returncode, found.stdout) == (2, "")
        assert found.stderr == "error: error compiling CEL expression: CEL filters are not supported\n"


@ONE_LOOP
async def test_following_shows_flows_as_they_come(tmp_path: Path) -> None:
    ring = ring_of(3)
    async with serving(ring, tmp_path) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "l7proxy", "observe", "--server", server, "-f", "--last", "1", "-o", "json"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert json.loads(await process.stdout.readline())["flow"]["uuid"] == "2"
            ring.append(flow(3))
            assert json.loads(await process.stdout.readline())["flow"]["uuid"] == "3"
            process.send_signal(2)
            _, errors = await process.communicate()
        assert (process.returncode, errors) == (130, b"")


@ONE_LOOP
async def test_mutual_tls(run: Run, tmp_path: Path) -> None:
    settings = Authority(tmp_path).settings()
    address = settings.hubble_listen_address
    trust = ("--tls-ca-cert-files", str(tmp_path / "ca.crt"), "--tls-server-name", NAME)
    own = ("--tls-client-cert-file", str(tmp_path / "tls.crt"), "--tls-client-key-file", str(tmp_path / "tls.key"))
    async with serving(ring_of(2), tmp_path, settings):
        assert await uuids(run, address, "--tls", *trust, *own) == ["0", "1"]
        assert await uuids(run, f"tls://{address}", *trust, *own) == ["0", "1"]
        assert await uuids(run, address, "--tls", "--tls-allow-insecure", *own) == ["0", "1"]
        for flags, told in (
            ((), "if it uses TLS, add --tls"),
            (("--tls", *trust), "client certificate"),
            (("--tls", *own, "--tls-server-name", NAME), "its certificate is not trusted: give its CA by"),
            (("--tls", *own, *trust, "--tls-server-name", "x.example"), "give that by --tls-server-name"),
        ):
            found = await observed(run, "--server", address, *flags)
            assert (found.returncode, found.stdout) == (2, "")
            assert told in found.stderr, found.stderr


def test_a_server_that_is_not_there(run: Run, tmp_path: Path) -> None:
    assert "nothing listens there" in run("observe", "--server", f"unix://{tmp_path}/hubble.sock").stderr
    assert "its name is not known" in run("observe", "--server", "nosuch.invalid:4245").stderr
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = run("observe", "--server", f"localhost:{port}")
    assert found.returncode == 2
    assert found.stderr.startswith(f"error: cannot read flows from localhost:{port}: nothing listens there")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--tls-client-cert-file a --tls-client-key-file b", "need --tls"),
        ("--tls --tls-client-cert-file a", "must be set together"),
        ("--tls --tls-ca-cert-files /nosuch", "--tls-ca-cert-files /nosuch: No such file"),
        (f"--tls --tls-ca-cert-files {__file__}", "must hold PEM encoded certificates"),
        ("--basic-auth-username a --basic-auth-password b", "needs --tls"),
        ("--timeout soon", "--timeout soon: must be a duration"),
        ("-P --kube-namespace cilium", "kubectl -n cilium port-forward deployment/hubble-relay 4245:4245"),
        ("--field-mask nosuch -o json", 'invalid path "nosuch"'),
        ("--field-mask uuid", "compact output format is not compatible with custom field mask"),
    ],
)
def test_wrong_use_says_what_to_do(run: Run, flags: str, told: str) -> None:
    found = run("observe", "--server", "localhost:1", *flags.split())
    assert (found.returncode, found.stdout) == (2, "")
    assert told in found.stderr


def test_a_socket_named_agent_sock_is_the_agents_own(run: Run, agent: Agent) -> None:
    agent.says("observe", DENIED.to_json())
    for server in (str(agent.path), f"unix://{agent.path}"):
        assert run("observe", "--server", server, HUBBLE_SERVER="localhost:1").stdout.startswith(LINE)
    assert run("observe", HUBBLE_SERVER="localhost:1").stdout.startswith(LINE), "--run-dir names an agent"


def test_without_grpc_the_error_names_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "l7proxy.hubble.client", None)
    monkeypatch.delattr("l7proxy.hubble.client", raising=False)
    found = run("observe", "--server", "localhost:1")
    assert (found.returncode, "pip install 'l7proxy[hubble]'" in found.stderr) == (2, True)
