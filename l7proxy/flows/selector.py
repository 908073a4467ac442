"""Parses Kubernetes label selectors over labels with or without a source: `app=web`, `k8s:app in (a,b)`, `!canary`."""

from __future__ import annotations

import re
from typing import Final

from l7proxy.errors import ConfigError
from l7proxy.model.labels import ANY, Operator, Requirement, Selector

LONGEST: Final = 4096
"""Characters. Selectors come from a socket. The pattern below gives nothing back (`++`), so its time is linear."""

_TERM: Final = re.compile(
    r"\s*+(?:(?P<absent>!)\s*+(?P<gone>[^\s,=!()]++)"
    r"|(?P<key>[^\s,=!()]++)(?:\s*+(?P<op>==|!=|=)\s*+(?P<value>[^\s,=!()]*+)"
    r"|\s++(?P<set>in|notin)\s*+\((?P<values>[^()]*+)\))?)\s*+(?:,|\Z)"
)


def selector(text: str, *, what: str = "label") -> Selector:
    """Parse a selector over labels with sources: `app=web`, `k8s:app in (a,b)`, `!reserved:world`."""
    if len(text) > LONGEST:
        raise ConfigError(f"invalid {what.replace('_', ' ')} filter: longer than {LONGEST} characters")
    requirements = []
    at = 0
    while at < len(text):
        found = _TERM.match(text, at)
        if found is None:
            side = what.replace("_", " ")
            raise ConfigError(
                f"invalid {side} filter: invalid selector at {text[at:]!r} (as in: app=web, tier in (a,b), !canary)"
            )
        requirements.append(_requirement(found))
        at = found.end()
    return Selector(tuple(requirements))


def _requirement(found: re.Match[str]) -> Requirement:
    if found["absent"]:
        return Requirement(*_source_of(found["gone"]), Operator.DOES_NOT_EXIST)
    source, key = _source_of(found["key"])
    if found["set"]:
        values = tuple(value.strip() for value in found["values"].split(","))
        return Requirement(source, key, Operator.IN if found["set"] == "in" else Operator.NOT_IN, values)
    if found["op"]:
        operator = Operator.NOT_IN if found["op"] == "!=" else Operator.IN
        return Requirement(source, key, operator, (found["value"],))
    return Requirement(source, key, Operator.EXISTS)


def _source_of(key: str) -> tuple[str, str]:
    source, colon, rest = key.partition(":")
    return (source, rest) if colon else (ANY, key)
