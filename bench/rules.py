"""The HTTP rules of the bench: one list, which is translated to every proxy's language, and the paths that it allows.

Rule i allows `GET /api/s{i}/users/{number}/…`; every fifth also requires an `X-Token` header.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """`path` is a regular expression for the whole path; `header` must be present unless it is empty."""

    method: str
    path: str
    header: str = ""


BULK = (Rule("GET", "/bulk/.*"), Rule("POST", "/bulk/.*"), Rule("POST", "/bench.Echo/.*"))
"""The requests of the bulk and gRPC figures, part of every list."""


def rules(count: int) -> tuple[Rule, ...]:
    """`count` rules, and those of BULK."""
    return (
        *(Rule("GET", f"/api/s{n}/users/[0-9]+/.*", "X-Token" if n % 5 == 4 else "") for n in range(count)),
        *BULK,
    )


def policy(chosen: tuple[Rule, ...], *, http_ports: tuple[int, ...], open_ports: tuple[int, ...]) -> str:
    """A CiliumNetworkPolicy for the server pod (JSON is YAML)."""
    http = [
        {"method": rule.method, "path": rule.path} | ({"headers": [rule.header]} if rule.header else {})
        for rule in chosen
    ]
    judged = {"ports": [_port(port) for port in http_ports], "rules": {"http": http}}
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "l7-policy"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "backend"}},
            "ingress": [
                {
                    "fromEndpoints": [{"matchLabels": {"app": "frontend"}}],
                    "toPorts": [judged, {"ports": [_port(port) for port in open_ports]}],
                }
            ],
        },
    }
    return json.dumps(document) + "\n"


def _port(number: int) -> dict[str, str]:
    return {"port": str(number), "protocol": "TCP"}
