"""Parses TLS fields and custom listeners of a toPorts item: reads the server names, checks the other fields."""

from __future__ import annotations

import re
from typing import Final

from l7proxy.model.verdict import Direction
from l7proxy.policy.l7 import KINDS
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, quoted
from l7proxy.policy.rules import ServerNames

FIELDS: Final = ("terminatingTLS", "originatingTLS", "serverNames", "listener")
MAX_NAME: Final = 255
_LABEL: Final = re.compile(r"\*\*|(?!.*\*\*)[-a-zA-Z0-9_*]+")
_ENVOY: Final = "CiliumEnvoyConfig"
_ENVOYS: Final = (_ENVOY, "CiliumClusterwideEnvoyConfig")


def read(
    cell: Field, found: dict[str, Field], document: Document, direction: Direction, *, l7: bool
) -> tuple[ServerNames | None, list[Field]]:
    """The server names of a toPorts item, and those of its fields that cannot be enforced."""
    names = _server_names(cell, found, l7=l7) if "serverNames" in found else None
    for name in ("terminatingTLS", "originatingTLS"):
        if name in found:
            _context(found[name])
    if "listener" in found:
        _listener(found["listener"], document, direction, l7=l7)
    enforced = ("serverNames",) if KINDS[ServerNames].enforced and not l7 else ()
    return names, [found[name] for name in FIELDS if name in found and name not in enforced]


def _server_names(cell: Field, found: dict[str, Field], *, l7: bool) -> ServerNames:
    """SNI patterns: `*` matches within one label, `**` as a whole label matches several, `*` alone any name."""
    names = found["serverNames"].items()
    if not names:
        found["serverNames"].fail("must have at least one name or be removed")
    if l7 and "terminatingTLS" not in found:
        cell.fail("ServerNames are not allowed with L7 rules without TLS termination")
    for name in names:
        text = name.text()
        if not text:
            name.fail("empty server name is not allowed")
        if len(text) > MAX_NAME:
            name.fail(f"{quoted(text)} has more than {MAX_NAME} characters")
        for label in text.split("."):
            if not _LABEL.fullmatch(label):
                name.fail(f"{quoted(text)} is not a server name: labels of letters, digits, '-', '_' and '*', or '**'")
    return ServerNames(tuple(name.text() for name in names))


def _context(field: Field) -> None:
    found = field.mapping(("secret", "trustedCA", "certificate", "privateKey"), required=("secret",))
    secret = found["secret"].mapping(("namespace", "name"))
    for each in (*secret.values(), *(found[name] for name in found if name != "secret")):
        each.text()
    if "name" not in secret or not secret["name"].text():
        found["secret"].fail("Secret name missing")


def _listener(field: Field, document: Document, direction: Direction, *, l7: bool) -> None:
    found = field.mapping(("envoyConfig", "name", "priority"))
    name = found["name"].text() if "name" in found else ""
    if not name:
        field.fail("name is required")
    shown = quoted(name)[1:-1]
    if direction is Direction.INGRESS:
        field.fail(f"Listener is not allowed on ingress ({shown})")
    if l7:
        field.fail(f"Listener is not allowed with L7 rules ({shown})")
    if "priority" in found:
        found["priority"].number(1, 100)
    if "envoyConfig" not in found:
        field.fail("envoyConfig is required")
    config = found["envoyConfig"].mapping(("kind", "name"))
    kind = config["kind"].text() if "kind" in config else ""
    if kind not in ("", *_ENVOYS):
        config["kind"].fail(f"must be {' or '.join(_ENVOYS)}, not {quoted(kind)}")
    if "name" not in config or not config["name"].text():
        found["envoyConfig"].fail("name is required")
    if kind == _ENVOY and not document.namespace:
        config["kind"].fail(f'Listener "{shown}" in CCNP can not use Kind {_ENVOY}')
