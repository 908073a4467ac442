"""The agent serves Hubble's API only where a setting asks for it, and over TCP only with certificates of clients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from l7proxy.errors import ConfigError
from l7proxy.settings.read import load

TLS = {"hubble_tls_cert_file": "/a", "hubble_tls_key_file": "/b", "hubble_tls_client_ca_files": "/c"}
WITHOUT_GRPC = """
import sys
sys.modules["grpc"] = None  # as if it were not installed
from l7proxy.agent import run
from l7proxy.setting_definitions import Settings
from l7proxy.flows.ring import Ring
assert run._hubble(Settings(), Ring(1)) is None
try:
    run._hubble(Settings(hubble_socket_path="/run/hubble.sock"), Ring(1))
except run.ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"hubble_socket_path": "hubble.sock"}, "flag --hubble-socket-path: must be an absolute path"),
        ({"hubble_listen_address": "4244"} | TLS, "flag --hubble-listen-address: must be ADDRESS:PORT"),
        ({"hubble_listen_address": "[::1]:0"} | TLS, "flag --hubble-listen-address: the port must be"),
        *(
            ({"hubble_listen_address": ":4244"} | {name: path for name, path in TLS.items() if name != without},
             f"flag --hubble-listen-address: needs {without.replace('_', '-')}: flows are served over mutual TLS only")
            for without in TLS
        ),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(given: dict[str, str], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        load(None, {"node": "n1"} | given, environment={})


def test_right_settings_are_taken() -> None:
    load(None, {"node": "n1", "hubble_socket_path": "/run/hubble.sock", "hubble_listen_address": ":4244"} | TLS)
    assert load(None, {"node": "n1"}, environment={}).hubble_socket_path == ""


def test_the_agent_needs_no_grpc_until_the_api_is_served() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_GRPC], capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout.endswith("is not installed: pip install 'l7proxy[hubble]'\n"), done.stderr
