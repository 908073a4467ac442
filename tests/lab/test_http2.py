"""HTTP/2 with prior knowledge over real packets: curl and h2 are the peers, and each request has its flows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import Cluster
from tests.lab.http2_world import LABS, flows, http2_lab, python, until

pytestmark = pytest.mark.lab

TWO_STREAMS = """
import json, socket, sys
import h2.config, h2.connection, h2.events
connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
connection.initiate_connection()
for stream, path in ((1, "/api/two"), (3, "/secret/two"), (5, "/api/../secret/two"), (7, "/api/x%2Fy")):
    line = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "server")]
    connection.send_headers(stream, line, end_stream=True)
sock = socket.create_connection(("server", 8081), timeout=5)
sock.sendall(connection.data_to_send())
statuses, bodies, ended = {}, {}, set()
while len(ended) < 4:
    data = sock.recv(65536)
    assert data, "the connection ended"
    for event in connection.receive_data(data):
        if isinstance(event, h2.events.ResponseReceived):
            statuses[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
        elif isinstance(event, h2.events.StreamEnded):
            ended.add(event.stream_id)
print(json.dumps([[statuses[i][":status"], statuses[i].get("location"), bodies[i].decode()] for i in (1, 3, 5, 7)]))
"""


@pytest.fixture(scope="module", params=LABS)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory: Path = tmp_path_factory.mktemp("http2")
    with http2_lab(request.param, directory) as cluster:
        yield cluster


def about(lab: Cluster, path: str) -> list[dict[str, Any]]:
    """The HTTP flows of one path."""
    return [flow for flow in flows(lab, "--type", "l7") if flow["l7"]["http"].get("url", "").endswith(path)]


@pytest.mark.parametrize("pod", ["client", "far"])
def test_curl_with_prior_knowledge_is_served_and_told(lab: Cluster, pod: str) -> None:
    path = f"/api/curl-{pod}"
    url = f"http://server:8081{path}"
    done = lab.exec(pod, "curl", "-s", "-m", "5", "--noproxy", "*", "--http2-prior-knowledge", "-d", "hello", url)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["method"], told["path"], told["body"]) == ("POST", path, 5)
    assert [name for name, _ in told["headers"]][:4] == [":method", ":path", ":scheme", ":authority"]
    asked, answered = until(lambda: about(lab, path), 2)
    assert asked["l7"]["type"] == "REQUEST"
    assert asked["l7"]["http"]["protocol"] == answered["l7"]["http"]["protocol"] == "HTTP/2"
    assert (asked["verdict"], answered["l7"]["http"]["code"]) == ("FORWARDED", 200)
    assert asked["source"]["pod_name"] == pod
    assert told["peer"] == asked["IP"]["source"], "the server sees the client's own address"


@pytest.mark.parametrize("pod", ["client", "far"])
def test_curl_is_denied_and_the_server_hears_nothing(lab: Cluster, pod: str) -> None:
    path = f"/secret/curl-{pod}"
    done = lab.exec(
        pod, "curl", "-s", "-i", "-m", "5", "--noproxy", "*", "--http2-prior-knowledge", f"http://server:8081{path}"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].strip() == "HTTP/2 403"
    assert done.stdout.endswith("Access denied\n")
    asked, answered = until(lambda: about(lab, path), 2)
    assert (asked["verdict"], asked["l7"]["http"]["protocol"]) == ("DROPPED", "HTTP/2")
    assert answered["l7"]["http"]["code"] == 403


def test_streams_of_one_connection_are_judged_one_by_one(lab: Cluster) -> None:
    allowed, denied, hidden, escaped = python(lab, "client", TWO_STREAMS)
    assert allowed[0] == "200"
    assert json.loads(allowed[2])["path"] == "/api/two"
    assert denied == ["403", None, "Access denied\r\n"]
    assert hidden == ["403", None, "Access denied\r\n"], "/api/../secret is /secret"
    assert escaped[:2] == ["307", "/api/x/y"]
    of_one = [flow for flow in about(lab, "/two") if flow["l7"]["type"] == "REQUEST"]
    assert [flow["verdict"] for flow in of_one] == ["FORWARDED", "DROPPED", "DROPPED"]
    assert len({flow["l4"]["TCP"]["source_port"] for flow in of_one}) == 1, "one connection"


def test_a_server_of_http_1_is_told_nothing_and_the_client_gets_502(lab: Cluster) -> None:
    path = "/api/old"
    done = lab.exec(
        "client", "curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", "--noproxy", "*",
        "--http2-prior-knowledge", f"http://server:8082{path}",
    )  # fmt: skip
    assert done.stdout == "502 2", done.stderr
    _, answered = until(lambda: about(lab, path), 2)
    assert answered["l7"]["http"]["code"] == 502


def test_http_1_works_beside_it(lab: Cluster) -> None:
    assert lab.curl("client", "http://server:8082/api/x") == "200"
    assert lab.curl("client", "http://server:8082/secret") == "403"
    assert lab.curl("client", "--http2", "http://server:8082/api/x") == "200", (
        "curl offers h2c; it is answered in HTTP/1"
    )
