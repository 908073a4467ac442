"""`l7proxy wait` against a small API server: what counts as ready, what it says, and when it gives up."""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from l7proxy.cli.wait import api_server, lacking, until_ready
from l7proxy.errors import ConfigError


def daemonset(wanted: int, ready: int, updated: int | None = None, *, seen: int = 3) -> dict[str, Any]:
    status = {
        "observedGeneration": seen,
        "desiredNumberScheduled": wanted,
        "numberReady": ready,
        "updatedNumberScheduled": ready if updated is None else updated,
    }
    return {"metadata": {"generation": 3}, "status": status}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (daemonset(2, 2), ""),
        (daemonset(2, 1), "x: ready on 1 of 2 nodes, 1 updated"),
        (daemonset(2, 2, 1), "x: ready on 2 of 2 nodes, 1 updated"),
        (daemonset(2, 2, seen=2), "x: not seen by its controller yet"),
        ({"metadata": {"generation": 1}, "status": {"desiredNumberScheduled": 0}}, "x: not seen by its controller yet"),
        (daemonset(0, 0), "x: no node"),
    ],
    ids=["ready", "one node missing", "old template", "changed a moment ago", "just made", "no node matches"],
)
def test_what_counts_as_ready(found: dict[str, Any], said: str) -> None:
    assert lacking("x", found) == said


class Api:
    """Answers from a list of answers, one per question; remembers the questions."""

    def __init__(self, directory: Path) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answers: list[tuple[int, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers["Authorization"]))
                code, value = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                body = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        _certificate(directory)
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "ca.crt", directory / "key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        (directory / "namespace").write_text("kube-system")
        (directory / "token").write_text("abc")
        self.environment = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self.server.server_port),
        }


def _certificate(directory: Path) -> None:
    ask = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=api"
    files = ["-keyout", str(directory / "key"), "-out", str(directory / "ca.crt")]
    subprocess.run([*ask.split(), "-addext", "subjectAltName=IP:127.0.0.1", *files], check=True, capture_output=True)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    made = Api(tmp_path)
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_it_asks_until_every_node_is_ready(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("l7proxy.cli.wait.PAUSE", 0.0)
    api.answers = [(404, {}), (200, daemonset(2, 1)), (200, daemonset(2, 1)), (200, daemonset(2, 2))]
    assert until_ready(["l7proxy"], 30, api_server(tmp_path, api.environment))
    assert capsys.readouterr().out.splitlines() == [
        "l7proxy: the API server answers 404 Not Found",
        "l7proxy: ready on 1 of 2 nodes, 1 updated",
        "ready on every node",
    ]
    assert set(api.asked) == {("/apis/apps/v1/namespaces/kube-system/daemonsets/l7proxy", "Bearer abc")}


def test_it_gives_up_and_says_what_is_missing(api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers = [(200, daemonset(3, 1))]
    assert not until_ready(["a", "b"], 0, api_server(tmp_path, api.environment))
    assert capsys.readouterr().out == "a: ready on 1 of 3 nodes, 1 updated; b: ready on 1 of 3 nodes, 1 updated\n"


def test_a_server_with_another_certificate_is_not_told_the_token(api: Api, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("namespace", "token"):
        (other / name).write_text((tmp_path / name).read_text())
    _certificate(other)
    api.answers = [(200, daemonset(1, 1))]
    assert not until_ready(["a"], 0, api_server(other, api.environment))
    assert api.asked == []


def test_outside_a_pod_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not in a pod with a service account"):
        api_server(tmp_path, {})
