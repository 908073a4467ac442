"""The errors of l7proxy, sorted by who can act on them.

L7ProxyError
├── ConfigError      the operator: a flag, the configuration file, privileges, a missing tool
├── PolicyError      the policy's author: `at` names the field (`spec.ingress[0].toPorts`)
├── SourceError      whoever writes the manifests: file, line and field
├── PeerError        the far end of a connection: `status` is the HTTP status it is answered with
├── UpstreamError    the server behind the proxy
└── LinkError        the other half of l7proxy spoke nonsense

`tproxy_rules.KernelError` stands alone: that package imports nothing of ours.
"""

from __future__ import annotations


class L7ProxyError(Exception):
    """Base of all. Messages tell the operator what to look at."""


class ConfigError(L7ProxyError):
    """The operator can fix it: a flag, a file, a privilege, a missing tool."""


class PolicyError(L7ProxyError):
    """A policy document that we cannot honour.

    `at` is the path of the field inside the document, as `spec.ingress[0].toPorts[1].ports[0].port`.
    `unsupported` tells a valid document that uses what we do not enforce yet from an invalid one.
    """

    def __init__(self, message: str, *, at: str = "", unsupported: bool = False) -> None:
        super().__init__(f"{at}: {message}" if at else message)
        self.message = message
        self.at = at
        self.unsupported = unsupported


class SourceError(L7ProxyError):
    """A manifest that cannot be used: where it is and which field is wrong."""

    def __init__(self, message: str, *, file: str = "", line: int | None = None, field: str = "") -> None:
        place = ":".join(str(part) for part in (file, line) if part)
        super().__init__(": ".join(part for part in (place, field, message) if part))
        self.message = message
        self.file = file
        self.line = line
        self.field = field


class PeerError(L7ProxyError):
    """The peer broke the protocol. `status` is what an HTTP client is answered with."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class UpstreamError(L7ProxyError):
    """The server behind the proxy could not be reached or broke the protocol."""


class LinkError(L7ProxyError):
    """A frame on the link or the agent socket that is not one of ours."""
