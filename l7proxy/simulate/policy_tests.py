"""`policy test`: runs unit tests of policies, written in YAML, offline with the code that enforces policies.

A test file:

    manifests: [manifests/]            # files or directories, relative to this file
    cases:
    - name: the shop may read          # optional
      from: shop/frontend              # WHO and PORT/PROTO as in `policy trace`
      to: svc:shop/backend
      port: 80/TCP
      http: GET /api/items             # optional, with headers: ["X-Token: a"]
      expect: allow                    # allow | deny | redirect | audit
      because: shop/l7-policy          # optional: the policy (or a part of the reason) that must cause the verdict

`allow` is FORWARDED, or REDIRECTED if no request is given; `redirect` is REDIRECTED only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from l7proxy.errors import ConfigError, SourceError
from l7proxy.setting_definitions import Settings
from l7proxy.settings import derived
from l7proxy.simulate import trace
from l7proxy.simulate.cluster import Cluster
from l7proxy.sources.fields import Fields
from l7proxy.sources.files.scan import load
from l7proxy.sources.files.yaml_lines import MAX_BYTES, Document, read
from l7proxy.wire.path import PathRules

EXPECTED: Final[Mapping[str, frozenset[str]]] = {
    "allow": frozenset(("FORWARDED", "REDIRECTED")),
    "deny": frozenset(("DROPPED",)),
    "redirect": frozenset(("REDIRECTED",)),
    "audit": frozenset(("AUDIT",)),
}
"""Value of `expect` → the verdicts that satisfy it."""
BOOK_KEYS: Final = ("manifests", "cases")
CASE_KEYS: Final = ("name", "from", "to", "port", "http", "headers", "expect", "because")


@dataclass(frozen=True, slots=True)
class Case:
    """One test case, with its location."""

    name: str
    question: trace.Question
    expect: str
    because: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class PolicyTestFile:
    """One test file."""

    file: str
    manifests: tuple[Path, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a case. `failure`: "" if it is as expected. `steps`: how the verdict was reached."""

    case: Case
    failure: str
    steps: tuple[str, ...] = field(default=())


def open_test_file(path: Path) -> PolicyTestFile:
    """SourceError names file, line and field of an error in it. `-` is standard input."""
    try:
        parts = read(_bytes(path))
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror}", file=str(path)) from error
    except SourceError as error:
        raise SourceError(error.message, file=str(path), line=error.line) from error
    for part in parts:
        if not isinstance(part, Document):
            raise SourceError(part.error.message, file=str(path), line=part.error.line or part.line)
    if len(parts) != 1 or not isinstance(parts[0], Document) or not isinstance(parts[0].value, dict):
        raise SourceError("must be a mapping with `manifests` and `cases`", file=str(path))
    return _book(path, parts[0])


def _bytes(path: Path) -> bytes:
    """At most one byte more than the limit, so that `read` detects a larger file."""
    if str(path) == "-":
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _book(path: Path, document: Document) -> PolicyTestFile:
    lines = document.lines()
    try:
        top = _known(Fields(document.value), BOOK_KEYS)
        manifests = tuple(path.parent / each for each in top.texts("manifests"))
        if not manifests:
            raise top.wrong("manifests", "is required: the manifests to test")
        cases = tuple(_case(each, str(path), lines.get(each.path, 0)) for each in top.each("cases"))
        if not cases:
            raise top.wrong("cases", "is required: at least one case")
    except SourceError as error:
        line = lines.get(error.field) or lines.get(error.field.rpartition(".")[0]) or document.line
        raise SourceError(error.message, file=str(path), line=line, field=error.field) from error
    return PolicyTestFile(str(path), manifests, cases)


def _known(fields: Fields, keys: Sequence[str]) -> Fields:
    for key in fields.value:
        if key not in keys:
            raise fields.wrong(str(key), f"unknown field, must be one of {', '.join(keys)}")
    return fields


def _case(fields: Fields, file: str, line: int) -> Case:
    _known(fields, CASE_KEYS)
    expect = fields.text("expect")
    if expect not in EXPECTED:
        raise fields.wrong("expect", f"{expect!r} is not supported, must be one of {', '.join(EXPECTED)}")
    question = trace.Question(
        fields.text("from"),
        fields.text("to"),
        _port(fields),
        fields.text("http", ""),
        tuple(fields.texts("headers")),
    )
    asked = f" {question.http}" if question.http else ""
    name = fields.text("name", "") or f"{question.source} -> {question.destination} {question.port}{asked}: {expect}"
    return Case(name, question, expect, fields.text("because", ""), file, line)


def _port(fields: Fields) -> str:
    value: Any = fields.value.get("port")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else fields.text("port")


def run(book: PolicyTestFile, settings: Settings) -> Iterator[Result]:
    """Run the cases one by one. SourceError if a manifest cannot be used: a test of the rest would prove nothing.

    `settings`: those of the agents that will enforce the policies.
    """
    changes, problems = load(book.manifests, derived.policy_options(settings))
    cluster = Cluster.of(changes, settings)
    if problems:
        raise problems[0]
    for problem in cluster.everywhere.problems:
        raise SourceError(problem.message, file=problem.file, line=problem.line, field=problem.field)
    yield from (_run(cluster, case, derived.http_options(settings).paths) for case in book.cases)


def _run(cluster: Cluster, case: Case, paths: PathRules) -> Result:
    try:
        outcome = trace.answer(cluster, case.question, paths)
    except ConfigError as error:
        return Result(case, f"cannot be evaluated: {error}")
    return Result(case, _failure(case, outcome), outcome.steps)


def _failure(case: Case, outcome: trace.Outcome) -> str:
    verdict, reason = outcome.policy_verdict.verdict.name, outcome.policy_verdict.reason
    because = f": {reason}" if reason else ""
    if verdict not in EXPECTED[case.expect]:
        by = f" by {outcome.ref}" if outcome.ref is not None else ""
        return f"expected {case.expect}, got {verdict}{by}{because}"
    behind = f"{outcome.ref or ''} {reason}"
    if case.because and case.because not in behind:
        found = behind.strip() or "not selected by any policy"
        return f"{verdict} as expected, but its reason does not contain {case.because!r}: {found}"
    return ""
