"""Hubble's API as a gRPC client meets it, over a unix socket and over mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import field_mask_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from l7proxy.agent.hubble import Hubble
from l7proxy.errors import ConfigError
from l7proxy.flows import timestamp
from l7proxy.flows.flow import Endpoint, Flow
from l7proxy.flows.ring import Ring
from l7proxy.hubble import server, service, status
from l7proxy.hubble.api.flow import flow_pb2
from l7proxy.hubble.api.observer import observer_pb2
from l7proxy.hubble.api.peer import peer_pb2
from l7proxy.model.resources import Node
from l7proxy.setting_definitions import Settings
from tests.support.grpc_loop import ONE_LOOP
from tests.support.rings import SECOND, flow, ring_of
from tests.unit.hubble.authority import Authority

pytestmark = ONE_LOOP

OBSERVER = "/observer.Observer/"


@dataclass
class Client:
    channel: grpc.aio.Channel

    def stream(self, method: str, asked: Any, kind: Any = observer_pb2.GetFlowsResponse) -> Any:
        return self.channel.unary_stream(method, type(asked).SerializeToString, kind.FromString)(asked)

    async def one(self, method: str, asked: Any, kind: Any) -> Any:
        return await self.channel.unary_unary(method, type(asked).SerializeToString, kind.FromString)(asked)

    def flows(self, **asked: Any) -> Any:
        return self.stream(OBSERVER + "GetFlows", observer_pb2.GetFlowsRequest(**asked))

    async def numbers(self, **asked: Any) -> list[int]:
        return [int(one.flow.uuid) async for one in self.flows(**asked)]


@contextlib.asynccontextmanager
async def connected(ring: Ring, directory: Path, **settings: Any) -> AsyncIterator[Client]:
    path = directory / "hubble.sock"
    hubble = Hubble(Settings(node="n1", hubble_socket_path=str(path), **settings), ring)
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel, hubble.serving():
        yield Client(channel)


async def fault(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in call:
            pass
    return raised.value.code(), raised.value.details() or ""


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await true():  # noqa: ASYNC110  (what happens in gRPC's threads sets no event of ours)
            await asyncio.sleep(0.01)


def at(second: int) -> Any:
    return {"seconds": second}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, list(range(10))),
        ({"number": 3}, [7, 8, 9]),
        ({"number": 2**64 - 1}, list(range(10))),
        ({"number": 2, "first": True}, [0, 1]),
        ({"first": True}, list(range(10))),
        ({"since": at(4), "until": at(6)}, [4, 5, 6]),
        ({"since": at(4), "number": 2}, [4, 5]),
        ({"number": 2, "whitelist": [{"verdict": ["DROPPED"]}]}, [6, 9]),
        ({"blacklist": [{"verdict": ["DROPPED"]}], "until": at(4)}, [1, 2, 4]),
        ({"whitelist": [{"uuid": ["3"]}, {"uuid": ["5"], "verdict": ["FORWARDED"]}]}, [3, 5]),
        ({"blacklist": [{}]}, []),
    ],
)
async def test_which_flows_a_client_gets(tmp_path: Path, asked: dict[str, Any], expected: list[int]) -> None:
    async with connected(ring_of(10), tmp_path) as client:
        assert await client.numbers(**asked) == expected


@pytest.mark.parametrize(
    ("asked", "code", "text"),
    [
        ({"first": True, "follow": True}, "INVALID_ARGUMENT", "first cannot be specified with follow"),
        ({"whitelist": [{"http_path": ["("]}]}, "UNKNOWN", "invalid http path filter: missing ): ("),
        ({"whitelist": [{"source_ip": ["a"]}]}, "UNKNOWN", 'invalid IP address "a" in filter'),
        ({"whitelist": [{"http_url": ["a"] * 200}, {"dns_query": ["a"] * 200}]}, "UNKNOWN", "400 patterns"),
        ({"blacklist": [{}] * 300}, "UNKNOWN", "more than 256"),
        ({"field_mask": field_mask_pb2.FieldMask(paths=["nothing"])}, "UNKNOWN", "invalid fieldmask"),
        ({"field_mask": field_mask_pb2.FieldMask(paths=["source.workloads.name"])}, "UNKNOWN", "invalid fieldmask"),
        ({"since": {"nanos": -1}}, "UNKNOWN", "invalid since"),
        ({"whitelist": [{"experimental": {"cel_expression": ["true"]}}]}, "UNKNOWN", "error compiling CEL"),
    ],
)
async def test_a_wrong_request_is_refused(tmp_path: Path, asked: dict[str, Any], code: str, text: str) -> None:
    async with connected(ring_of(3), tmp_path) as client:
        found, details = await fault(client.flows(**asked))
        assert found.name == code and text in details
        assert await client.numbers() == [0, 1, 2]


async def test_each_filter_of_the_api_is_known(tmp_path: Path) -> None:
    """One value per field: a field without a filter would be an error, not a filter that is silently ignored."""
    special = {"source_ip": "1.1.1.1", "destination_ip": "::/0", "source_ip_xlated": "1.1.1.1", "protocol": "tcp"}
    special |= {"http_status_code": "5+", "source_port": "1", "destination_port": "2"}
    async with connected(ring_of(1), tmp_path) as client:
        for field in flow_pb2.FlowFilter.DESCRIPTOR.fields:
            asked = flow_pb2.FlowFilter()
            if field.message_type is not None:
                value = getattr(asked, field.name)
                value.add() if field.is_repeated else value.SetInParent()
            else:
                text = field.type == field.TYPE_STRING
                getattr(asked, field.name).append(special.get(field.name, "a") if text else 1)
            assert set(await client.numbers(whitelist=[asked])) <= {0}, field.name


async def test_a_follower_gets_what_comes_and_a_mask_keeps_its_fields(tmp_path: Path) -> None:
    ring = ring_of(3)
    async with connected(ring, tmp_path) as client:
        mask = field_mask_pb2.FieldMask(paths=["uuid"])
        call = client.flows(follow=True, number=1, field_mask=mask)
        first = await call.read()
        ring.append(flow(3))
        second = await call.read()
        assert [first.flow, second.flow] == [flow_pb2.Flow(uuid="2"), flow_pb2.Flow(uuid="3")]
        assert second.time.seconds == 3 and second.node_name == "n1"
        call.cancel()


async def test_a_stalled_reader_delays_nobody_and_learns_how_many_flows_it_lost(tmp_path: Path) -> None:
    total = 40_000
    ring = ring_of(1, capacity=255)
    async with connected(ring, tmp_path) as client:
        stalled, other = client.flows(follow=True, number=1), client.flows(follow=True, number=1)
        await stalled.read()  # and no more until the end
        await other.read()
        for start in range(0, total, 200):
            ring.extend([Flow(uuid=str(number), summary="x" * 1000) for number in range(start, start + 200)])
            assert [int((await other.read()).flow.uuid) for _ in range(200)] == list(range(start, start + 200))
        seen = lost = 0
        while seen + lost < total:
            response = await stalled.read()
            if response.HasField("lost_events"):
                assert response.lost_events.source == flow_pb2.HUBBLE_RING_BUFFER
                lost += response.lost_events.num_events_lost
            else:
                assert int(response.flow.uuid) == seen + lost
                seen += 1
        assert lost > 0
        stalled.cancel()
        other.cancel()


async def test_streams_end_with_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "hubble.sock"
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:  # it must outlive the server to see its end
        async with Hubble(Settings(node="n1", hubble_socket_path=str(path)), ring_of(1)).serving():
            call = Client(channel).flows(follow=True, number=1)
            await call.read()
        # Its text is ours, or gRPC's own if the client happens to write to the closed connection before it reads that.
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_streams_are_bounded_and_their_places_become_free(tmp_path: Path) -> None:
    ring = ring_of(1)
    async with connected(ring, tmp_path) as client:
        calls = [client.flows(follow=True, number=1) for _ in range(service.MAX_STREAMS)]
        for call in calls:
            await call.read()
        code, text = await fault(client.flows())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "too many streams" in text
        found = await client.one(
            OBSERVER + "ServerStatus", observer_pb2.ServerStatusRequest(), observer_pb2.ServerStatusResponse
        )
        assert found.num_flows == 1
        for call in calls:
            call.cancel()

        async def free() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return await client.numbers() == [0]
            return False

        await until(free)


async def test_status_nodes_and_namespaces(tmp_path: Path) -> None:
    ring = Ring(15, node_name="kind/n1")
    now = time.time_ns()
    ends = [Endpoint(namespace="shop", cluster_name="kind"), Endpoint(namespace="bank", cluster_name="default")]
    ring.append(Flow(time=timestamp.text(now - 7200 * SECOND), source=Endpoint(namespace="old")))
    ring.append(Flow(time=timestamp.text(now), source=ends[0], destination=ends[1]))
    ring.append(Flow(time=timestamp.text(now), source=ends[0], destination=Endpoint()))
    async with connected(ring, tmp_path, cluster="kind") as client:
        found = await client.one(
            OBSERVER + "ServerStatus", observer_pb2.ServerStatusRequest(), observer_pb2.ServerStatusResponse
        )
        assert (found.num_flows, found.max_flows, found.seen_flows) == (3, 15, 3)
        assert found.version == status.VERSION and found.flows_rate == pytest.approx(2 / 60)
        assert not found.HasField("num_connected_nodes")
        nodes = await client.one(OBSERVER + "GetNodes", observer_pb2.GetNodesRequest(), observer_pb2.GetNodesResponse)
        assert [(node.name, node.num_flows) for node in nodes.nodes] == [("kind/n1", 3)]
        spaces = await client.one(
            OBSERVER + "GetNamespaces", observer_pb2.GetNamespacesRequest(), observer_pb2.GetNamespacesResponse
        )
        assert [(one.cluster, one.namespace) for one in spaces.namespaces] == [("", "bank"), ("kind", "shop")]
        for method, asked in (
            ("GetAgentEvents", observer_pb2.GetAgentEventsRequest()),
            ("GetDebugEvents", observer_pb2.GetDebugEventsRequest()),
        ):
            assert (await fault(client.stream(OBSERVER + method, asked)))[0] is grpc.StatusCode.UNIMPLEMENTED


async def test_the_rate_of_a_ring_that_covers_less_than_a_minute() -> None:
    ring = ring_of(100, capacity=15)  # seconds 85 to 99
    assert status.flows_rate(ring, 100 * SECOND) == pytest.approx(15 / 15)
    assert status.flows_rate(ring, 1000 * SECOND) == 0
    assert status.flows_rate(Ring(15), 100 * SECOND) == 0


async def test_health_and_reflection(tmp_path: Path) -> None:
    async with connected(Ring(1), tmp_path) as client:
        for name in ("", "hubble.server.Observer"):
            asked = health_pb2.HealthCheckRequest(service=name)
            found = await client.one("/grpc.health.v1.Health/Check", asked, health_pb2.HealthCheckResponse)
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        for version in ("v1alpha", "v1"):
            call = client.channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                reflection_pb2.ServerReflectionRequest.SerializeToString,
                reflection_pb2.ServerReflectionResponse.FromString,
            )(iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol="observer.Observer")]))
            assert b"observer/observer.proto" in (await call.read()).file_descriptor_response.file_descriptor_proto[0]


async def test_the_socket_is_ours_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "hubble.sock"
    async with connected(Ring(1), tmp_path):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(
            ConfigError, match="in use by another l7proxy process: stop it, or set another hubble-socket"
        ):
            async with connected(Ring(1), tmp_path):
                pass
        assert path.exists()
    assert not path.exists()
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="hubble-socket-path: others may write to"):
        async with connected(Ring(1), tmp_path):
            pass


async def test_relay_hears_of_each_node_and_of_changes(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    settings = authority.settings(cluster="my.kind", hubble_socket_path=str(tmp_path / "h.sock"))
    hubble = Hubble(settings, Ring(1))
    async with hubble.serving(), grpc.aio.insecure_channel(f"unix:{tmp_path}/h.sock") as channel:
        call = Client(channel).stream("/peer.Peer/Notify", peer_pb2.NotifyRequest(), peer_pb2.ChangeNotification)
        own = await call.read()
        assert (own.name, own.type) == ("my.kind/n1", peer_pb2.PEER_ADDED)
        assert own.tls.server_name == "n1.my-kind.hubble-grpc.cilium.io"
        port = own.address.rpartition(":")[2]
        n2 = Node("n2.example", ("fd00::2", "10.0.0.2"))
        hubble.nodes((Node("n1", ("10.0.0.1",)), n2))
        added = await call.read()
        assert (added.name, added.address) == ("my.kind/n2.example", f"10.0.0.2:{port}")
        assert added.tls.server_name == "n2-example.my-kind.hubble-grpc.cilium.io"
        hubble.nodes((Node("n2.example", ("fd00::2",)),))
        updated = await call.read()
        assert (updated.address, updated.type) == (f"[fd00::2]:{port}", peer_pb2.PEER_UPDATED)
        hubble.nodes(())
        gone = await call.read()
        assert (gone.name, gone.type) == ("my.kind/n2.example", peer_pb2.PEER_DELETED)
        call.cancel()


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    yield Authority(tmp_path)


async def asked(authority: Authority, settings: Settings, signer: Authority | None) -> list[int]:
    async with authority.channel(settings, signer) as channel:
        return await Client(channel).numbers(number=1)


async def test_only_a_client_with_a_certificate_is_served(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "other").mkdir()
    settings, stranger = authority.settings(), Authority(tmp_path / "other")
    async with Hubble(settings, ring_of(2)).serving():
        assert await asked(authority, settings, authority) == [1]
        for signer in (None, stranger):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asked(authority, settings, signer)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_serves_new_connections_and_a_broken_one_none(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("l7proxy.hubble.certificates.CHECK_EVERY", 0.0)
    settings = authority.settings()
    async with Hubble(settings, ring_of(2)).serving():
        first = await asyncio.to_thread(authority.served, settings)
        authority.issue()
        second = await asyncio.to_thread(authority.served, settings)
        Path(settings.hubble_tls_key_file).write_text("broken")
        third = await asyncio.to_thread(authority.served, settings)
        assert first != second == third


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hubble_tls_cert_file", "not a PEM certificate and its unencrypted key"),
        ("hubble_tls_key_file", "not a PEM certificate and its unencrypted key"),
        ("hubble_tls_client_ca_files", "not PEM certificates"),
    ],
)
async def test_a_file_that_is_no_certificate_at_start_is_named_and_waited_for(
    authority: Authority, name: str, text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Policies of the node must not wait for a certificate of Hubble."""
    monkeypatch.setattr(server, "CERTIFICATES_EVERY", 0.01)
    caplog.set_level("INFO", "l7proxy.hubble.server")
    settings = authority.settings()
    found = getattr(settings, name)
    file = Path(found[0] if isinstance(found, tuple) else found)
    right = file.read_bytes()
    file.write_text("nothing")
    async with Hubble(settings, ring_of(2)).serving():
        await until(lambda: _logged(caplog, text))
        file.unlink()
        await until(lambda: _logged(caplog, "cannot read"))
        file.write_bytes(right)
        await until(lambda: _logged(caplog, "serving at"))
        assert await asked(authority, settings, authority) == [1]


async def _logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in one.getMessage() for one in caplog.records)


async def test_an_agent_that_waits_for_certificates_can_stop(authority: Authority, tmp_path: Path) -> None:
    settings = authority.settings()
    (tmp_path / "tls.key").unlink()
    async with Hubble(settings, Ring(1)).serving():
        pass


async def test_a_port_in_use_is_named(authority: Authority) -> None:
    settings = authority.settings()
    async with Hubble(settings, Ring(1)).serving():
        with pytest.raises(ConfigError, match=r"hubble-listen-address: cannot listen at 127\.0"):
            async with Hubble(settings, Ring(1)).serving():
                pass


async def test_silent_connections_are_ended(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that only connects must not use up the agent's descriptors."""
    settings = authority.settings()
    port = int(settings.hubble_listen_address.rpartition(":")[2])
    quick = {**dict(server.OPTIONS), "grpc.server_handshake_timeout_ms": 200}
    monkeypatch.setattr(server, "OPTIONS", tuple(quick.items()))
    async with Hubble(settings, Ring(1)).serving():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()


async def test_connections_are_bounded(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that have not shown a certificate: each is a descriptor of the agent."""
    few = {
        **dict(server.OPTIONS),
        "grpc.max_allowed_incoming_connections": 4,
        "grpc.server_handshake_timeout_ms": 10**6,
    }
    monkeypatch.setattr(server, "OPTIONS", tuple(few.items()))
    settings = authority.settings()
    port = int(settings.hubble_listen_address.rpartition(":")[2])
    async with Hubble(settings, ring_of(2)).serving():
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(12)]
        ended = asyncio.Semaphore(0)

        async def wait(reader: asyncio.StreamReader) -> None:
            with contextlib.suppress(ConnectionError):
                await reader.read()
            ended.release()

        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(wait(reader), name="silent") for reader, _ in opened]
            for _ in range(8):
                await ended.acquire()
            for task in waiting:
                task.cancel()
        for _, writer in opened:
            writer.close()
        await until(lambda: served(authority, settings))


async def served(authority: Authority, settings: Settings) -> bool:
    with contextlib.suppress(grpc.aio.AioRpcError):
        return await asked(authority, settings, authority) == [1]
    return False
