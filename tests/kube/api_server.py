"""A real etcd and kube-apiserver on localhost, for tests that need no nodes.

The binaries are `etcd` and `kube-apiserver` in the directory that L7PROXY_KUBE_BIN names.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

VARIABLE: Final = "L7PROXY_KUBE_BIN"
ADMIN: Final = "admin-token"
MERGE: Final = "application/merge-patch+json"


def missing() -> str:
    """Why no server can be started here; empty if one can."""
    folder = os.environ.get(VARIABLE, "")
    if not folder:
        return f"{VARIABLE} is not set: name a directory with etcd and kube-apiserver"
    lacking = [name for name in ("etcd", "kube-apiserver") if not Path(folder, name).exists()]
    return f"{VARIABLE}={folder}: no {' and no '.join(lacking)} there" if lacking else ""


class ApiServer:
    """`kill` and `start` as often as you like: what etcd holds stays."""

    def __init__(self, folder: Path, etcd_options: Sequence[str] = ()) -> None:
        self._bin = Path(os.environ[VARIABLE])
        self._folder = folder
        self._etcd_ports = _free(), _free()
        self._port = _free()
        self._server: subprocess.Popen[bytes] | None = None
        key = folder / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        subprocess.run(
            ["openssl", "rsa", "-in", key, "-pubout", "-out", folder / "sa.pub"], check=True, capture_output=True
        )
        (folder / "tokens.csv").write_text(f'{ADMIN},admin,1,"system:masters"\n')
        client, peer = (f"http://127.0.0.1:{port}" for port in self._etcd_ports)
        self._etcd = self._run("etcd", "--data-dir", folder / "etcd", "--unsafe-no-fsync", "--listen-client-urls",
            client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
            "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}", *etcd_options)  # fmt: skip
        self.start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def pids(self) -> tuple[int, ...]:
        """Of kube-apiserver and etcd."""
        assert self._server is not None
        return self._server.pid, self._etcd.pid

    @property
    def etcd(self) -> str:
        return f"http://127.0.0.1:{self._etcd_ports[0]}"

    def start(self, patience: float = 120) -> None:
        folder = self._folder
        self._server = self._run("kube-apiserver", f"--etcd-servers=http://127.0.0.1:{self._etcd_ports[0]}",
            "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", f"--secure-port={self._port}",
            f"--cert-dir={folder}/certs", "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder}/sa.pub", f"--service-account-signing-key-file={folder}/sa.key",
            "--authorization-mode=Node,RBAC", f"--token-auth-file={folder}/tokens.csv",
            "--service-cluster-ip-range=10.96.0.0/16", "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none")  # fmt: skip
        deadline = time.monotonic() + patience
        while not self._ready():
            assert self._server.poll() is None, (folder / "kube-apiserver.log").read_text()[-2000:]
            assert time.monotonic() < deadline, f"kube-apiserver is not ready after {patience:.0f} s"
            time.sleep(0.2)

    def kill(self) -> None:
        assert self._server is not None
        self._server.kill()
        self._server.wait()

    def close(self) -> None:
        self.kill()
        self._etcd.kill()
        self._etcd.wait()
        shutil.rmtree(self._folder / "etcd")

    def kubeconfig(self, token: str = ADMIN, name: str = "kubeconfig") -> Path:
        path = self._folder / name
        fresh = path.with_suffix(".new")
        authority = self._folder / "certs" / "apiserver.crt"  # self-signed
        fresh.write_text(json.dumps({
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": self.url, "certificate-authority": str(authority)}}],
            "users": [{"name": "u", "user": {"token": token}}],
        }))  # fmt: skip
        fresh.rename(path)
        return path

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """As administrator. urllib.error.HTTPError when it is refused."""
        kind = MERGE if method == "PATCH" else "application/json"
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode() if body is not None else None,
            {"Authorization": f"Bearer {ADMIN}", "Content-Type": kind},
            method=method,
        )
        context = ssl.create_default_context(cafile=str(self._folder / "certs" / "apiserver.crt"))
        with urllib.request.urlopen(request, context=context, timeout=30) as answer:
            text = answer.read()
            return json.loads(text) if answer.headers.get_content_type() == "application/json" else text

    def _ready(self) -> bool:
        try:
            return bool(self.ask("GET", "/readyz")) and bool(self.ask("GET", "/api/v1/namespaces/default"))
        except OSError:
            return False

    def _run(self, name: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen([self._bin / name, *arguments], stdout=log, stderr=log)


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
