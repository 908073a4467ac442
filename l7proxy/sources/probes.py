"""Reads what the kubelet asks of a pod's containers: probes, and lifecycle hooks, which it sends in the same way.

A request is known by its path only if every server reads that path as it is written, and a worker judges it so: see
`_PLAIN`. Of all others, and of too many, only the port is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from l7proxy.model.endpoint import Probe
from l7proxy.sources.fields import Fields

PROBES: Final = ("livenessProbe", "readinessProbe", "startupProbe")
HOOKS: Final = ("postStart", "preStop")
MAX_PATHS: Final = 32
"""Per pod: paths become patterns in workers, and a pod's author must not use up their memory."""
_PLAIN: Final = re.compile(
    r"(?=.{1,256}$)(?:/(?!\.{1,2}(?:[/?]|$))[\w.~!$&'()*+,=:@-]+)*/?(?:\?[\w.~!$&'()*+,=:@/?-]*)?", re.A
)
"""Segments without escapes, parameters, `.`, `..` and empty ones; a query without escapes."""


def probes(containers: list[Fields]) -> tuple[Probe, ...]:
    """Sorted and without duplicates. A port that is also asked without a path is listed without one only."""
    found = {one for container in containers for one in _of_container(container)}
    if not found:
        return ()
    if sum(bool(one.path) for one in found) > MAX_PATHS:
        found = {Probe(one.port) for one in found}
    whole = {one.port for one in found if not one.path}
    return _shared(tuple(sorted(one for one in found if not one.path or one.port not in whole)))


@lru_cache(maxsize=16_384)
def _shared(found: tuple[Probe, ...]) -> tuple[Probe, ...]:
    """The same object for equal values: the pods of one workload have equal probes."""
    return found


def _of_container(container: Fields) -> Iterator[Probe]:
    handlers = [container.inside(name) for name in PROBES if name in container.value]
    if "lifecycle" in container.value:
        lifecycle = container.inside("lifecycle")
        handlers += [lifecycle.inside(name) for name in HOOKS if name in lifecycle.value]
    for handler in handlers:
        for kind in ("httpGet", "tcpSocket", "grpc"):
            if handler.value.get(kind) is not None:
                yield from _of_handler(handler.inside(kind), container, http=kind == "httpGet")


def _of_handler(handler: Fields, container: Fields, *, http: bool) -> Iterator[Probe]:
    if handler.text("host", ""):
        return  # it is not sent to the pod
    port = _port(handler, container)
    if port is None:
        return  # neither does the kubelet find it
    path = handler.text("path", "/") if http and handler.text("scheme", "HTTP") == "HTTP" else ""
    yield Probe(port, path if path.startswith("/") and _PLAIN.fullmatch(path) else "")


def _port(handler: Fields, container: Fields) -> int | None:
    """A number, or the name of a port of this container."""
    named = handler.value.get("port")
    if not isinstance(named, str):
        return handler.port("port")
    for port in container.each("ports"):
        if port.text("name", "") == named:
            return port.port("containerPort")
    return int(named) if named.isdecimal() and 1 <= int(named) <= 65535 else None
