"""What a pod of the lab runs: containers, and built-in echo servers. Read from the Pod's manifest.

Fields that the lab would have to implement but does not (init containers, values from elsewhere) are refused by name;
those that only matter in a real cluster (images, resources, probes, volumes) are ignored.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Final

from l7proxy.sources.fields import Fields

SERVE_ANNOTATION: Final = "lab.l7proxy.io/serve"
SERVED: Final = ("http", "https", "h2c", "grpc", "tcp", "udp", "ws")
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Listener:
    """One built-in echo server."""

    kind: str
    port: int


@dataclass(frozen=True, slots=True)
class Container:
    """`argv` is empty when the image would define the command: then the container idles."""

    name: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    directory: str = ""


def containers(spec: Fields) -> tuple[Container, ...]:
    """The containers of a Pod's spec. SourceError names the field that the lab cannot honour."""
    if any(spec.each("initContainers")):
        raise spec.wrong("initContainers", "init containers are not supported by the lab yet")
    found = tuple(map(_container, spec.each("containers")))
    if len({one.name for one in found}) != len(found):
        raise spec.wrong("containers", "duplicate container name")
    return found


def _container(item: Fields) -> Container:
    name, command, arguments = item.text("name", ""), item.texts("command"), item.texts("args")
    if not _LABEL.fullmatch(name):
        raise item.wrong("name", f"{name!r} is not a valid name (lower case letters, digits and '-')")
    environment = tuple(map(_variable, item.each("env")))
    argv = (*command, *arguments) if command else ()  # without command the image's entry point is meant
    return Container(name, argv, environment, item.text("workingDir", ""))


def _variable(entry: Fields) -> tuple[str, str]:
    if "valueFrom" in entry.value:
        raise entry.wrong("valueFrom", "the lab supports only entries with name and a string value")
    return entry.text("name"), entry.text("value", "")


def listeners(metadata: Fields) -> tuple[Listener, ...]:
    """The echo servers that the annotation of a Pod asks for."""
    text = metadata.labels("annotations").get(SERVE_ANNOTATION, "")
    try:
        return tuple(parse_listener(item.strip()) for item in text.split(",") if item.strip())
    except ValueError as error:
        raise metadata.wrong(f"annotations[{SERVE_ANNOTATION}]", str(error)) from error


def parse_listener(text: str) -> Listener:
    """`http:8080` → Listener. ValueError names what is accepted."""
    kind, _, port = text.partition(":")
    if kind not in SERVED or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{shlex.quote(text)} must be KIND:PORT with KIND one of {', '.join(SERVED)}")
    return Listener(kind, int(port))
