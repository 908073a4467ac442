"""The options of `observe` that choose and reach a Hubble server, named as those of `hubble`.

One rule says who is asked: a socket named agent.sock is our agent's own; every other address is a Hubble server's.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Final, NoReturn

import typer

from l7proxy.agent import client as agent
from l7proxy.cli import agent_socket
from l7proxy.cli.flags import flag
from l7proxy.cli.flow_time import DURATION, UNITS
from l7proxy.errors import ConfigError
from l7proxy.flows import flow

VARIABLE: Final = "HUBBLE_SERVER"
TLS_SCHEME: Final = "tls://"
RELAY_PORT: Final = 4245
_TEXTS: Final = {
    "tls-client-cert-file": "Certificate of the client, PEM.",
    "tls-client-key-file": "Its private key, PEM.",
    "tls-server-name": "Name to expect in the server's certificate.",
    "basic-auth-username": "User for basic authentication; needs TLS.",
    "basic-auth-password": "Password for basic authentication.",
    "timeout": "How long to try to connect [default: 5s].",
    "request-timeout": "Of calls that are no streams; observe has none.",
    "kube-context": "Context of the kubeconfig, with --port-forward.",
    "kube-namespace": "Namespace of hubble-relay, with --port-forward [default: kube-system].",
    "kubeconfig": "Path of the kubeconfig, with --port-forward.",
}
_SWITCHES: Final = {
    "tls": "Use TLS; as with a server tls://HOST:PORT.",
    "tls-allow-insecure": "Do not verify the server's certificate: somebody between may read and change all.",
}


def flags() -> Iterator[inspect.Parameter]:
    """Each may also be set by a variable, as with `hubble`: HUBBLE_TLS_CA_CERT_FILES."""
    for name, text in _SWITCHES.items():
        yield _flag(name, bool, text)
    yield _flag("tls-ca-cert-files", list[str], "Certificates of the CAs to trust, PEM; default: those of the system.")
    for name, text in _TEXTS.items():
        yield _flag(name, str, text)
    yield _flag("port-forward", bool, "Reach hubble-relay in the cluster: says which kubectl command to run.", "-P")
    yield _flag("port-forward-port", int, f"Local port, with --port-forward [default: {RELAY_PORT}].")


def _flag(name: str, kind: Any, text: str, *short: str) -> inspect.Parameter:
    variable = f"HUBBLE_{name.upper().replace('-', '_')}"
    word = None if kind is bool else "FILE" if "file" in name else "VALUE"
    option = typer.Option(
        f"--{name}", *short, help=text, metavar=word, envvar=variable, show_envvar=False, show_default=False
    )
    return flag(name, kind, option)


def chosen(run_dir: Path, server: str) -> str:
    """The Hubble server to ask; empty: the agent. HUBBLE_SERVER counts only where no agent is named."""
    if not server and run_dir == agent_socket.RUN_DIR:
        server = os.environ.get(VARIABLE, "")
    name = PurePath(server.removeprefix("unix://")).name
    return "" if not server or name == agent.SOCKET_NAME else server


def flows(
    address: str, given: Mapping[str, Any], request: Mapping[str, Any], mask: Sequence[str] | None
) -> Iterator[flow.Response]:
    """`mask` None: the fields that are printed."""
    try:
        from l7proxy.hubble import client
    except ImportError as error:
        raise ConfigError(f"--server needs grpcio and protobuf ({error}): pip install 'l7proxy[hubble]'") from error
    bare = address.removeprefix(TLS_SCHEME)
    server = client.Server(
        address=f"unix://{bare}" if bare.startswith("/") else bare,
        tls=bool(given.get("tls")) or address.startswith(TLS_SCHEME),
        allow_insecure=bool(given.get("tls_allow_insecure")),
        server_name=given.get("tls_server_name", ""),
        ca_files=[name for value in given.get("tls_ca_cert_files", ()) for name in value.split(",")],
        cert_file=given.get("tls_client_cert_file", ""),
        key_file=given.get("tls_client_key_file", ""),
        username=given.get("basic_auth_username", ""),
        password=given.get("basic_auth_password", ""),
        timeout=_seconds(given.get("timeout", "5s")),
    )
    return client.flows(server, client.request(request, client.PRINTED if mask is None else mask))


def refuse_port_forward(given: Mapping[str, Any]) -> NoReturn:
    """Kubernetes is kubectl's work: the error says which command does it."""
    port = given.get("port_forward_port", RELAY_PORT)
    names = {"--kubeconfig": "kubeconfig", "--context": "kube_context"}
    options = "".join(f"{option} {given[name]} " for option, name in names.items() if given.get(name))
    namespace = given.get("kube_namespace", "kube-system")
    raise ConfigError(
        f"--port-forward is not done here: run `kubectl {options}-n {namespace} port-forward deployment/hubble-relay "
        f"{port}:{RELAY_PORT}`, and `l7proxy observe --server localhost:{port}`"
    )


def _seconds(value: str) -> float:
    found = DURATION.fullmatch(value)
    if found is None:
        raise ConfigError(f"--timeout {value}: must be a duration as 5s or 500ms")
    return float(found[1]) * UNITS[found[2]] / UNITS["s"]
