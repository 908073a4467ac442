"""Selectors of Kubernetes (a mapping) and of Calico (a tree, written as text), and what they match."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

KEYS = ("app", "tier")
VALUES = ("a", "b", "c", "x")


def kubernetes(dice: Random) -> dict[str, Any]:
    """A LabelSelector."""
    found: dict[str, Any] = {}
    if dice.random() < 0.5:
        found["matchLabels"] = {dice.choice(KEYS): dice.choice(VALUES)}
    if dice.random() < 0.3:
        operator = dice.choice(("In", "NotIn", "Exists", "DoesNotExist"))
        term: dict[str, Any] = {"key": dice.choice(KEYS), "operator": operator}
        if operator in ("In", "NotIn"):
            term["values"] = dice.sample(VALUES, dice.randint(1, 2))
        found["matchExpressions"] = [term]
    return found


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions") or []:
        value = labels.get(term["key"])
        holds = {
            "In": value is not None and value in term.get("values", ()),
            "NotIn": value is None or value not in term.get("values", ()),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[term["operator"]]:
            return False
    return True


Tree = tuple[Any, ...]


def calico(dice: Random, keys: tuple[str, ...] = KEYS, values: tuple[str, ...] = VALUES, depth: int = 2) -> Tree:
    kind = dice.choice(("==", "!=", "has", "in", "not in", "contains", "all") + (("&&", "||", "!") if depth else ()))
    if kind in ("&&", "||"):
        return kind, calico(dice, keys, values, depth - 1), calico(dice, keys, values, depth - 1)
    if kind == "!":
        return kind, calico(dice, keys, values, depth - 1)
    if kind == "all":
        return (kind,)
    if kind == "has":
        return kind, dice.choice(keys)
    if kind in ("in", "not in"):
        return kind, dice.choice(keys), tuple(dice.sample(values, dice.randint(0, 2)))
    return kind, dice.choice(keys), dice.choice(values)


def text(tree: Tree) -> str:
    match tree:
        case ("&&" | "||") as kind, left, right:
            return f"({text(left)} {kind} {text(right)})"
        case "!", inner:
            return f"!({text(inner)})"
        case ("all",):
            return "all()"
        case "has", key:
            return f"has({key})"
        case ("in" | "not in") as kind, key, values:
            return f"{key} {kind} {{{', '.join(repr(value) for value in values)}}}"
        case kind, key, value:
            return f"{key} {kind} '{value}'"
    raise AssertionError(tree)


def holds(tree: Tree, labels: Mapping[str, str]) -> bool:
    match tree:
        case "&&", left, right:
            return holds(left, labels) and holds(right, labels)
        case "||", left, right:
            return holds(left, labels) or holds(right, labels)
        case "!", inner:
            return not holds(inner, labels)
        case ("all",):
            return True
        case "has", key:
            return key in labels
        case "==", key, value:
            return bool(labels.get(key) == value)
        case "!=", key, value:
            return bool(labels.get(key) != value)
        case "in", key, values:
            return labels.get(key) in values
        case "not in", key, values:
            return labels.get(key) not in values
        case "contains", key, value:
            return key in labels and value in labels[key]
    raise AssertionError(tree)
