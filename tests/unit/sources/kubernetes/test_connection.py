from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from l7proxy.errors import ApiError, ConfigError
from l7proxy.sources.kubernetes import connection
from l7proxy.sources.kubernetes.connection import MERGE_PATCH, Connection
from l7proxy.sources.kubernetes.credentials import Access
from tests.support.certificates import self_signed
from tests.support.kube_api import KubeApi

AUTHORITY = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))


NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}


async def test_answers_are_raw_bytes(server: KubeApi, access: Access) -> None:
    server.put("a", NODE)
    async with Connection(access) as api:
        body = json.loads(await api.request("GET", "/api/v1/nodes", query={"limit": "5"}))
        assert [item["metadata"]["name"] for item in body["items"]] == ["a"]
        assert api.location == server.url


async def test_a_patch_and_a_creation_are_sent_as_json(server: KubeApi, access: Access) -> None:
    server.put("a", NODE)
    async with Connection(access) as api:
        patch = {"status": {"phase": "x"}}
        await api.request("PATCH", "/api/v1/nodes/a/status", body=patch, content_type=MERGE_PATCH)
        assert server.get("a")["status"] == {"phase": "x"}
        await api.request("POST", "/api/v1/nodes", body={"kind": "Node", "metadata": {"name": "b"}})
        assert server.get("nodes/b")["kind"] == "Node"


async def test_a_refusal_names_the_request_and_the_reason(server: KubeApi, access: Access) -> None:
    server.trouble("/nodes", 429, reason="TooManyRequests", message="slow down", headers={"Retry-After": "7"})
    async with Connection(access) as api:
        with pytest.raises(ApiError, match=r"^GET /api/v1/nodes: 429 slow down$") as found:
            await api.request("GET", "/api/v1/nodes")
    error = found.value
    assert (error.status, error.reason, error.retry_after) == (429, "TooManyRequests", 7.0)


async def test_a_server_that_does_not_answer_is_an_error_without_a_status(server: KubeApi, access: Access) -> None:
    server.trouble("/nodes", hang=True)
    async with Connection(access) as api:
        with pytest.raises(ApiError, match="no answer in time") as found:
            await api.request("GET", "/api/v1/nodes", timeout=0.05)
        assert found.value.status == 0
        server.stop()
        with pytest.raises(ApiError, match="refused"):
            await api.request("GET", "/api/v1/nodes")
        server.start()
        await api.request("GET", "/api/v1/nodes")


async def test_a_silent_stream_is_an_error(server: KubeApi, access: Access) -> None:
    async with Connection(access) as api:
        with pytest.raises(ApiError, match="no answer in time"):
            async with api.stream("/api/v1/nodes", {"watch": "1"}, silence=0.05) as response:
                async for _ in response.content.iter_any():
                    pass


async def test_a_token_that_expired_is_read_again_at_once(server: KubeApi, access: Access, tmp_path: Path) -> None:
    async with Connection(access) as api, api.stream("/api/v1/nodes", {"watch": "1"}, silence=5) as stream:
        server.tokens = {"second"}
        with pytest.raises(ApiError) as found:
            await api.request("GET", "/api/v1/nodes")
        assert found.value.status == 401
        server.kubeconfig(tmp_path, token="second")
        await api.request("GET", "/api/v1/nodes")
        server.put("a", NODE)  # the running stream is not cut
        assert b'"ADDED"' in await stream.content.readany()


async def test_a_token_that_is_replaced_is_used_before_the_old_one_expires(
    server: KubeApi, access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CHECK", 0.0)
    server.tokens = {"test-token", "second"}
    async with Connection(access) as api:
        await api.request("GET", "/api/v1/nodes")
        server.kubeconfig(tmp_path, token="second")
        await api.request("GET", "/api/v1/nodes")
        server.tokens = {"second"}
        before = len(server.requests)
        await api.request("GET", "/api/v1/nodes")
        assert len(server.requests) == before + 1, "no request was refused"


async def test_a_broken_kubeconfig_leaves_the_credentials_in_use(
    server: KubeApi, access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CHECK", 0.0)
    async with Connection(access) as api:
        (tmp_path / "kubeconfig").write_text("{")
        await api.request("GET", "/api/v1/nodes")


async def test_a_rotated_ca_is_read_again_at_once(tmp_path: Path) -> None:
    first, context = self_signed(tmp_path, "first")
    server = KubeApi(tls=context)
    server.authority = tmp_path / "ca.crt"
    server.authority.write_bytes(first.read_bytes())
    async with Connection(Access(str(server.kubeconfig(tmp_path)))) as api:
        await api.request("GET", "/api/v1/nodes")
        second, server.tls = self_signed(tmp_path, "second")
        server.stop()
        server.start()
        with pytest.raises(ApiError, match="certificate verify failed") as found:
            await api.request("GET", "/api/v1/nodes")
        assert found.value.lost
        server.authority.write_bytes(second.read_bytes())
        await api.request("GET", "/api/v1/nodes")
    server.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("users: [{token: hunter2", "line 1: is not YAML"),
        ("", "kubeconfig"),
        ("current-context: x", "kubeconfig"),
        ("[]", "kubeconfig"),
    ],
)
async def test_a_kubeconfig_that_cannot_be_used_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"credentials for the Kubernetes API: {path}") as found:
        async with Connection(Access(str(path))):
            pass
    assert said in str(found.value)
    assert "hunter2" not in str(found.value)


async def test_without_credentials_the_error_says_what_to_do(tmp_path: Path) -> None:
    access = Access(environ={"KUBECONFIG": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="none: no such file, and this is no pod"):
        async with Connection(access):
            pass


async def test_in_a_pod_the_service_account_is_used(tmp_path: Path) -> None:
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = Access(account=tmp_path, environ=environ)
    with pytest.raises(ConfigError, match=f"{tmp_path}.*token"):
        async with Connection(access):
            pass
    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"a certificate of .*ca.crt"):
        async with Connection(access):
            pass
    (tmp_path / "ca.crt").write_text(AUTHORITY.read_text())
    async with Connection(access) as api:
        assert api.location == "https://[fd00::1]:443"
