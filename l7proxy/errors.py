"""Error classes of l7proxy, grouped by who can fix the cause.

L7ProxyError
├── ConfigError      the operator: a flag, the configuration file, privileges, a missing tool
├── PolicyError      the author of the policy: `at` names the field (`spec.ingress[0].toPorts`)
├── SourceError      the author of the manifests: file, line and field
├── PeerError        the peer of a connection: `status` is the HTTP status of the response to it
├── UpstreamError    the server behind the proxy
├── LinkError        the other l7proxy process sent an invalid frame
├── ApiError         the Kubernetes API server: `status` is that of its answer, 0 without an answer
└── RequestRefusedError  the agent has not done what a worker asked

`tproxy_rules.KernelError` is separate: that package imports nothing from l7proxy.
"""

from __future__ import annotations


class L7ProxyError(Exception):
    """Base class. The message states what the operator has to check."""


class ConfigError(L7ProxyError):
    """An error that the operator can fix: a flag, a file, a privilege, a missing tool."""


class PolicyError(L7ProxyError):
    """A policy document that cannot be enforced.

    `at` is the path of the field inside the document, e.g. `spec.ingress[0].toPorts[1].ports[0].port`.
    `unsupported`: the document is valid but uses a feature that is not enforced yet; else it is invalid.
    """

    def __init__(self, message: str, *, at: str = "", unsupported: bool = False) -> None:
        super().__init__(f"{at}: {message}" if at else message)
        self.message = message
        self.at = at
        self.unsupported = unsupported


class SourceError(L7ProxyError):
    """A manifest that cannot be used: its location and the wrong field."""

    def __init__(self, message: str, *, file: str = "", line: int | None = None, field: str = "") -> None:
        place = ":".join(str(part) for part in (file, line) if part)
        super().__init__(": ".join(part for part in (place, field, message) if part))
        self.message = message
        self.file = file
        self.line = line
        self.field = field


class PeerError(L7ProxyError):
    """The peer violated the protocol. `status`: the HTTP status of the response to a client."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class UpstreamError(L7ProxyError):
    """The server behind the proxy could not be reached or violated the protocol."""


class ApiError(L7ProxyError):
    """The Kubernetes API server did not answer (`status` 0), or refused.

    `reason`: the API's word for it, as `Expired`. `retry_after`: seconds, if the server names them.
    """

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after

    @property
    def lost(self) -> bool:
        """The server could not be asked, is overloaded, or does not know us; otherwise it has refused this request."""
        return self.status in (0, 401, 429) or self.status >= 500


class LinkError(L7ProxyError):
    """An invalid frame on the link or on the agent socket."""


class RequestRefusedError(L7ProxyError):
    """The agent has not done what a worker asked, or nobody knows: the message states why."""
