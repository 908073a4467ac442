"""`l7proxy wait`: waits in a pod of the cluster until DaemonSets are ready on every node. Used by the chart's hooks.

Asks the API server with the pod's ServiceAccount, which needs `get` on these DaemonSets only. The standard library is
enough for that, and starts in a fraction of the time of a Kubernetes client.
"""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from l7proxy.errors import ConfigError

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PAUSE: Final = 1.0
ANSWER_SECONDS: Final = 10.0

Get = Callable[[str], Mapping[str, Any]]
"""Name of a DaemonSet → the object. OSError when it cannot be read."""


def wait(
    daemonsets: Annotated[list[str], typer.Argument(help="Names of DaemonSets in this pod's namespace.")],
    timeout: Annotated[float, typer.Option(help="Seconds to wait.", min=0)] = 300,
) -> None:
    """Wait until DaemonSets are ready on every node. Exit code 1 when some are not within the timeout."""
    raise typer.Exit(0 if until_ready(daemonsets, timeout, api_server()) else 1)


def until_ready(names: list[str], seconds: float, get: Get) -> bool:
    """Print what is missing whenever that changes. False after `seconds`."""
    deadline, said = time.monotonic() + seconds, ""
    while True:
        missing = "; ".join(filter(None, (_state(name, get) for name in names)))
        if missing != said:
            print(missing or "ready on every node", flush=True)
            said = missing
        if not missing:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(PAUSE)


def lacking(name: str, daemonset: Mapping[str, Any]) -> str:
    """Why the DaemonSet is not ready on every node with its newest template; "" when it is."""
    status = daemonset.get("status", {})
    if status.get("observedGeneration", 0) < daemonset.get("metadata", {}).get("generation", 1):
        return f"{name}: not seen by its controller yet"
    wanted, ready = status.get("desiredNumberScheduled", 0), status.get("numberReady", 0)
    updated = status.get("updatedNumberScheduled", 0)
    if not wanted:
        return f"{name}: no node"
    if ready < wanted or updated < wanted:
        return f"{name}: ready on {ready} of {wanted} nodes, {updated} updated"
    return ""


def api_server(account: Path = ACCOUNT, environment: Mapping[str, str] = os.environ) -> Get:
    """Reads DaemonSets of this pod's namespace. ConfigError outside a pod."""
    try:
        host, port = environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"]
        namespace = (account / "namespace").read_text()
        trusted = ssl.create_default_context(cafile=account / "ca.crt")
    except (KeyError, OSError) as error:
        raise ConfigError(f"wait: not in a pod with a service account: {error}") from error
    where = f"https://{f'[{host}]' if ':' in host else host}:{port}/apis/apps/v1/namespaces/{namespace}/daemonsets"

    def get(name: str) -> Mapping[str, Any]:
        token = (account / "token").read_text()  # it is replaced before it expires
        asked = urllib.request.Request(f"{where}/{name}", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(asked, timeout=ANSWER_SECONDS, context=trusted) as answer:
            found: Mapping[str, Any] = json.load(answer)
            return found

    return get


def _state(name: str, get: Get) -> str:
    try:
        return lacking(name, get(name))
    except urllib.error.HTTPError as error:
        return f"{name}: the API server answers {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        return f"{name}: {error}"
