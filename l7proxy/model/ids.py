"""Distinct types for numeric identifiers, so that a type checker catches a swap."""

from __future__ import annotations

from typing import NewType

IdentityId = NewType("IdentityId", int)
"""The number of a label set, as in Cilium: 1 host, 2 world, 6 remote-node, 256 and up pods."""

EndpointId = NewType("EndpointId", int)
"""The number of a local pod, 1 to 65535, the same for a pod on every run."""
