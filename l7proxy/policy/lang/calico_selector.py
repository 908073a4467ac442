"""Parses Calico's selectors: text → predicate over labels, or a SelectorError that says what was expected where.

    or      = and { "||" and }
    and     = unary { "&&" unary }
    unary   = { "!" } primary
    primary = "(" or ")" | "all()" | "global()" | "has(" LABEL ")" | LABEL operator
    operator = ("==" | "!=" | "contains" | "starts with" | "ends with") STRING | ("in" | "not in") "{" STRINGS "}"

`""` is `all()`. An absent label equals nothing, so `!=` and `not in` are true for it. The caller's `Leaf` maps label
keys to the label sets of identities.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from l7proxy.model.expression import AllOf, AnyOf, Holds, Not, Part
from l7proxy.model.labels import Operator, Requirement, Selects
from l7proxy.policy.lang.fields import quoted

MAX_LENGTH: Final = 1024
MAX_LABEL: Final = 512
MAX_DEPTH: Final = 100
"""Limit of nested parentheses, because the parser is recursive."""


class SelectorError(ValueError):
    """The text is not a valid selector."""


Leaf = Callable[[Requirement | Holds], Selects]
"""A term with its key as written (source "") → its predicate over the labels of identities."""


def parse(text: str, leaf: Leaf) -> Selects:
    """The predicate for a selector."""
    if len(text) > MAX_LENGTH:
        raise SelectorError(f"selector is longer than {MAX_LENGTH} characters")
    tokens = list(_tokens(text))
    if len(tokens) == 1:
        return AllOf()
    reader = _Reader(tokens, leaf)
    found = reader.either()
    reader.end()
    return found


def is_global(text: str) -> bool:
    """Whether the whole text is `global()`: outside all namespaces. Calico allows it only in namespaceSelector."""
    return re.fullmatch(r"[ \t]*global\([ \t]*\)[ \t]*", text) is not None


@dataclass(frozen=True, slots=True)
class _Token:
    """`kind` is the operator or bracket itself, or one of label, string, all, global, has, end."""

    kind: str
    text: str
    place: int


_LABEL: Final = r"[A-Za-z0-9_./-]"
_SIGNS: Final = re.compile(
    rf"""
    [ \t]*(?:
      (?P<call>all|global)\([ \t]*\)
    | (?P<has>has)\([ \t]*(?P<asked>{_LABEL}+)[ \t]*\)
    | (?P<string>"[^"]*"|'[^']*')
    | (?P<sign>\|\||&&|==|!=|!|\(|\)|\{{|\}}|,)
    | (?P<word>{_LABEL}+)
    | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_OPERATOR: Final = re.compile(rf"[ \t]*(?P<name>not[ \t]*in|in|contains|starts[ \t]*with|ends[ \t]*with)(?!{_LABEL})")
_HOLDS: Final = {"contains": Part.ANYWHERE, "startswith": Part.START, "endswith": Part.END}


def _tokens(text: str) -> Iterator[_Token]:
    """Split into tokens. A word after a label is an operator; everywhere else it is a label."""
    place, after_label = 0, False
    while True:
        word = _OPERATOR.match(text, place) if after_label else None
        found = word or _SIGNS.match(text, place)
        if found is None:
            raise SelectorError(_stuck(text, place, after_label=after_label))
        token = _token(found, operator=word is not None)
        if len(token.text) > MAX_LABEL and token.kind in ("label", "has"):
            raise SelectorError(f"label is longer than {MAX_LABEL} characters")
        yield token
        if token.kind == "end":
            return
        place, after_label = found.end(), token.kind == "label"


def _token(found: re.Match[str], *, operator: bool) -> _Token:
    if operator:
        return _Token(re.sub(r"[ \t]", "", found["name"]), found["name"], found.start("name"))
    if found["call"]:
        return _Token(found["call"], found["call"], found.start("call"))
    if found["has"]:
        return _Token("has", found["asked"], found.start("has"))
    if found["string"] is not None:
        return _Token("string", found["string"][1:-1], found.start("string"))
    if found["sign"]:
        return _Token(found["sign"], found["sign"], found.start("sign"))
    if found["word"]:
        return _Token("label", found["word"], found.start("word"))
    return _Token("end", "", found.end())


def _stuck(text: str, place: int, *, after_label: bool) -> str:
    rest = text[place:].lstrip(" \t")
    at = len(text) - len(rest)
    if rest[:1] in ("'", '"'):
        return f"unterminated string at {at}"
    if rest[:1] in ("=", "&", "|"):
        return f"expected {rest[0] * 2} at {at}, not {quoted(rest, 20)}"
    if after_label:
        return f"expected operator after label at {at}, not {quoted(rest, 20)}"
    return f"unexpected characters at {at}: {quoted(rest, 20)}"


class _Reader:
    """A recursive descent parser over the tokens."""

    def __init__(self, tokens: list[_Token], leaf: Leaf) -> None:
        self._tokens = tokens
        self._leaf = leaf
        self._next = 0
        self._depth = 0

    def either(self) -> Selects:
        terms = [self._both()]
        while self._took("||"):
            terms.append(self._both())
        return terms[0] if len(terms) == 1 else AnyOf(tuple(terms))

    def end(self) -> None:
        token = self._tokens[self._next]
        if token.kind != "end":
            raise SelectorError(f"expected && or || or the end at {token.place}, not {quoted(token.text, 20)}")

    def _both(self) -> Selects:
        terms = [self._unary()]
        while self._took("&&"):
            terms.append(self._unary())
        return terms[0] if len(terms) == 1 else AllOf(tuple(terms))

    def _unary(self) -> Selects:
        negated = False
        while self._took("!"):
            negated = not negated
        term = self._primary()
        return Not(term) if negated else term

    def _primary(self) -> Selects:
        token = self._take()
        match token.kind:
            case "(":
                return self._group()
            case "all":
                return AllOf()
            case "global":
                raise SelectorError("global() must stand alone and is allowed only in namespaceSelector")
            case "has":
                return self._leaf(Requirement("", token.text, Operator.EXISTS))
            case "label":
                return self._compared(token)
            case "end":
                raise SelectorError("unexpected end of the selector: expected a label, has(), all() or (")
        raise SelectorError(f"expected a label, has(), all() or ( at {token.place}, not {quoted(token.text, 20)}")

    def _group(self) -> Selects:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise SelectorError(f"parentheses are nested deeper than {MAX_DEPTH}")
        found = self.either()
        self._depth -= 1
        token = self._take()
        if token.kind != ")":
            raise SelectorError(f"expected ) at {token.place}")
        return found

    def _compared(self, label: _Token) -> Selects:
        token = self._take()
        match token.kind:
            case "==":
                return self._leaf(Requirement("", label.text, Operator.IN, (self._string(),)))
            case "!=":
                return self._leaf(Requirement("", label.text, Operator.NOT_IN, (self._string(),)))
            case "contains" | "startswith" | "endswith":
                return self._leaf(Holds("", label.text, _HOLDS[token.kind], self._string()))
            case "in":
                return self._leaf(Requirement("", label.text, Operator.IN, self._set()))
            case "notin":
                return self._leaf(Requirement("", label.text, Operator.NOT_IN, self._set()))
        raise SelectorError(f"expected operator after label {quoted(label.text, 20)} at {token.place}")

    def _set(self) -> tuple[str, ...]:
        if not self._took("{"):
            raise SelectorError(f"expected {{ at {self._tokens[self._next].place}")
        values: set[str] = set()
        while not self._took("}"):
            values.add(self._string())
            if not self._took(","):
                token = self._take()
                if token.kind != "}":
                    raise SelectorError(f"expected }} at {token.place}")
                break
        return tuple(sorted(values))

    def _string(self) -> str:
        token = self._take()
        if token.kind != "string":
            raise SelectorError(f"expected a string in quotes at {token.place}")
        return token.text

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        if token.kind != "end":
            self._next += 1
        return token

    def _took(self, kind: str) -> bool:
        found = self._tokens[self._next].kind == kind
        if found:
            self._next += 1
        return found
