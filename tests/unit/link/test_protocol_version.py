"""Agent and workers of different versions may meet during an upgrade: a changed message needs a new version."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec

from l7proxy.link.messages import PROTOCOL_VERSION, FromAgent, FromWorker

VERSION, DIGEST = 7, "5197154ad8df7be7"


def without_texts(schema: Any) -> Any:
    """The schema without what docstrings say."""
    if isinstance(schema, dict):
        return {
            key: without_texts(value)
            for key, value in schema.items()
            if not (key == "description" and isinstance(value, str))
        }
    return [without_texts(one) for one in schema] if isinstance(schema, list | tuple) else schema


def digest(*messages: Any) -> str:
    """Of all fields of the messages: names, order, types, defaults and bounds."""
    found = without_texts(msgspec.json.schema_components(messages))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def test_messages_change_only_with_the_version() -> None:
    assert (PROTOCOL_VERSION, digest(FromWorker, FromAgent)) == (VERSION, DIGEST), (
        "a message has changed: raise PROTOCOL_VERSION, and put the new version and digest here"
    )


def test_the_digest_sees_each_change_of_a_field() -> None:
    class Old(msgspec.Struct, tag="one"):
        a: int
        b: str = ""

    def variant(tag: str, *fields: Any) -> str:
        return digest(msgspec.defstruct("Old", fields, tag=tag))

    same = variant("one", ("a", int), ("b", str, ""))
    assert same == digest(Old)
    others = [
        variant("two", ("a", int), ("b", str, "")),
        variant("one", ("b", str, ""), ("a", int, 0)),
        variant("one", ("a", int), ("b", str, "x")),
        variant("one", ("a", int), ("b", int, 0)),
        variant("one", ("a", int)),
    ]
    assert len({same, *others}) == len(others) + 1
