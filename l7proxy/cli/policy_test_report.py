"""Prints the results of policy tests: as text, as TAP (version 13), or as JUnit XML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from l7proxy.cli.terminal import paint, plain

if TYPE_CHECKING:
    from l7proxy.simulate.policy_tests import Result


class Report(StrEnum):
    """Values of `-o`."""

    TABLE = "table"
    TAP = "tap"
    JUNIT = "junit"


def lines(results: Mapping[str, list[Result]], report: Report) -> Iterator[str]:
    """The lines of the report; `results` by file."""
    match report:
        case Report.TAP:
            return _tap([one for found in results.values() for one in found])
        case Report.JUNIT:
            return iter((_junit(results),))
        case Report.TABLE:
            return _table([one for found in results.values() for one in found])


def _table(results: Iterable[Result]) -> Iterator[str]:
    colour = paint()
    results = list(results)
    for one in results:
        word = colour("FAIL", "red") if one.failure else colour("ok", "green")
        yield f"{word}  {plain(one.case.name)}"
        if one.failure:
            yield f"      {plain(_place(one))}: {plain(one.failure)}"
            yield from (f"      | {plain(step)}" for step in one.steps)
    failed = sum(bool(one.failure) for one in results)
    yield f"{len(results)} cases, {failed} failed" if failed else f"{len(results)} cases, all passed"


def _tap(results: list[Result]) -> Iterator[str]:
    yield "TAP version 13"
    yield f"1..{len(results)}"
    for number, one in enumerate(results, 1):
        name = plain(one.case.name).replace("#", "\\#")
        yield f"{'not ok' if one.failure else 'ok'} {number} - {name}"
        if one.failure:
            yield f"# {plain(_place(one))}: {plain(one.failure)}"
            yield from (f"#   {plain(step)}" for step in one.steps)


def _junit(results: Mapping[str, list[Result]]) -> str:
    root = ElementTree.Element("testsuites")
    for file, found in results.items():
        failed = sum(bool(one.failure) for one in found)
        suite = ElementTree.SubElement(root, "testsuite", name=file, tests=str(len(found)), failures=str(failed))
        for one in found:
            attributes = {"classname": file, "name": plain(one.case.name), "line": str(one.case.line)}
            case = ElementTree.SubElement(suite, "testcase", attributes)
            if one.failure:
                failure = ElementTree.SubElement(case, "failure", message=plain(one.failure))
                failure.text = "\n".join(plain(step) for step in one.steps)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _place(result: Result) -> str:
    return f"{result.case.file}:{result.case.line}"
