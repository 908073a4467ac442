"""The few requests that the tool itself makes to the API server, through the gateway."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any, Final

import yaml

from deploy.cluster.plan import Cluster
from l7proxy.errors import ConfigError

_REQUEST_TIMEOUT: Final = 15.0


def server_of(cluster: Cluster) -> str:
    """The address of the API server in the administrator's kubeconfig."""
    document = yaml.safe_load(cluster.kubeconfig.read_text())
    return str(document["clusters"][0]["cluster"]["server"])


class Api:
    """The API server, as the administrator of the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.server = server_of(cluster)
        self._context = ssl.create_default_context(cafile=str(cluster.pki / "ca.crt"))
        self._context.load_cert_chain(cluster.pki / "admin.crt", cluster.pki / "admin.key")

    def get(self, path: str) -> Any:
        return self._request("GET", path, None)

    def create(self, path: str, document: dict[str, Any]) -> None:
        """Create an object, unless it exists."""
        try:
            self._request("POST", path, document)
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise

    def _request(self, method: str, path: str, document: dict[str, Any] | None) -> Any:
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(self.server + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, context=self._context, timeout=_REQUEST_TIMEOUT) as response:
            text = response.read()
        return text.decode() if path == "/readyz" else json.loads(text)

    def is_ready(self) -> bool:
        try:
            return bool(self.get("/readyz") == "ok")
        except (OSError, HTTPException):
            return False

    def ready_nodes(self) -> set[str]:
        """The names of the nodes whose condition Ready is true."""
        return {
            node["metadata"]["name"]
            for node in self.get("/api/v1/nodes")["items"]
            for condition in node.get("status", {}).get("conditions", ())
            if condition["type"] == "Ready" and condition["status"] == "True"
        }

    def available(self, namespace: str, deployment: str) -> bool:
        """True if all replicas of a Deployment are available."""
        found = self.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}")
        return bool(found.get("status", {}).get("availableReplicas", 0) >= found["spec"]["replicas"])


def wait_until(holds: Callable[[], bool], what: str, seconds: float, check: Callable[[], None] = lambda: None) -> None:
    """Poll until `holds`; a request that fails counts as no. ConfigError after `seconds`; `check` may raise one
    earlier, with the cause."""
    deadline = time.monotonic() + seconds
    while True:
        problem = ""
        try:
            if holds():
                return
        except (OSError, HTTPException) as error:
            problem = f": {error}"
        check()
        if time.monotonic() > deadline:
            raise ConfigError(f"{what}: not within {seconds:.0f} s{problem}")
        time.sleep(0.1)
