"""The printed lines are exactly Hubble's."""

from __future__ import annotations

import io
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from l7proxy.cli import printer
from l7proxy.cli.printer import Style
from l7proxy.cli.terminal import Paint
from l7proxy.flows.flow import IP, Endpoint, Flow, Http, Layer4, Layer7, NodeStatus, Ports, Response, from_json

DATA = Path(__file__).parents[2] / "data/flows"
SAMPLES = (DATA / "hubble_samples.jsonl").read_text().splitlines()
PRINTED = (DATA / "hubble_samples.txt").read_text().splitlines()
NAMED = (DATA / "hubble_names.txt").read_text().splitlines()
PLAIN = Style(Paint(on=False))
REASONS = Style(Paint(on=False), reasons=True)
FULL = Style(Paint(on=False), node_name=True, policy_names=True, reasons=True)


@pytest.mark.parametrize(("sample", "line"), list(zip(SAMPLES, PRINTED, strict=True)), ids=range(1, len(SAMPLES) + 1))
def test_sample_prints_as_hubble_prints_it(sample: str, line: str) -> None:
    assert "".join(printed("compact", PLAIN, from_json(sample))) == f"{line}\n"


@pytest.mark.parametrize(("number", "line"), [(3, NAMED[0]), (8, NAMED[1])])
def test_with_policy_and_node_names(number: int, line: str) -> None:
    assert printer.compact(from_json(SAMPLES[number - 1]), FULL) == line


def test_the_smallest_object_that_prints_a_full_line() -> None:
    smallest = (DATA / "hubble_smallest.jsonl").read_text()
    assert printer.compact(from_json(smallest), PLAIN) == (DATA / "hubble_smallest.txt").read_text().rstrip("\n")


@pytest.mark.parametrize(
    ("without", "line"),
    [
        ("time", "N/A: default/client:50000 (ID:1234) -> default/backend:80 (ID:5678) http-request DROPPED (S)"),
        (
            "verdict",
            ": default/client:50000 (ID:1234) -> default/backend:80 (ID:5678) http-request VERDICT_UNKNOWN (S)",
        ),
        ("IP", ":  (ID:1234) ->  (ID:5678) http-request DROPPED (S)"),
        ("l4", ": default/client (ID:1234) -> default/backend (ID:5678) http-request DROPPED (S)"),
        ("source", ": 10.0.0.10:50000 (unknown) -> default/backend:80 (ID:5678) http-request DROPPED (S)"),
        ("l7", ": default/client:50000 (ID:1234) -> default/backend:80 (ID:5678) UNKNOWN DROPPED (S)"),
        ("is_reply", ": default/client:50000 (ID:1234) <> default/backend:80 (ID:5678) http-request DROPPED (S)"),
        ("Summary", ": default/client:50000 (ID:1234) -> default/backend:80 (ID:5678) http-request DROPPED ()"),
    ],
)
def test_what_a_missing_field_does_to_the_line(without: str, line: str) -> None:
    found = json.loads((DATA / "hubble_smallest.jsonl").read_text())
    found["flow"]["Summary"] = "S"
    del found["flow"][without]
    printed = printer.compact(from_json(json.dumps(found)), PLAIN)
    assert printed == (line if without == "time" else f"Nov 23 20:00:00.000{line}")


def denied(reason: str = "no rule matched", **fields: Any) -> Flow:
    return Flow(
        time="2025-11-03T20:00:00Z",
        verdict="DROPPED",
        ip=IP(source="fd00::1", destination="fd00::2"),
        l4=Layer4(tcp=Ports(source_port=50000, destination_port=80)),
        source=Endpoint(identity=1),
        destination=Endpoint(identity=9),
        l7=Layer7(type="REQUEST", http=Http()),
        is_reply=False,
        policy_log=(reason,),
        **({"summary": "HTTP/1.1 GET http://backend/admin"} | fields),
    )


def test_a_denial_is_followed_by_its_reason() -> None:
    assert printer.compact(denied().response(), REASONS) == (
        "Nov  3 20:00:00.000: [fd00::1]:50000 (host) -> [fd00::2]:80 (world-ipv4) http-request DROPPED "
        "(HTTP/1.1 GET http://backend/admin) reason: no rule matched"
    )


def test_what_a_pod_said_cannot_steer_the_terminal() -> None:
    nasty = "\x1b[2J\r\n\x9b31m\u202e\u2028x\x07"
    flow = denied(nasty, summary=nasty, traffic_direction=nasty, node_name=nasty)
    for form in (printer.compact, printer.block):
        text = form(flow.response(), FULL)
        assert text is not None
        assert all(char.isprintable() for line in text.split("\n") for char in line)
    assert "^[[2J\\r\\n\\x9b31m\\u202e\\u2028x\\x07" in (printer.compact(flow.response(), PLAIN) or "")


def test_colours_are_the_only_difference_that_colours_make() -> None:
    coloured = printer.compact(denied().response(), Style(Paint(on=True), reasons=True))
    assert coloured is not None and "\x1b[31mDROPPED\x1b[0m" in coloured
    for code in ("31", "33", "35", "36", "2", "0"):
        coloured = coloured.replace(f"\x1b[{code}m", "")
    assert coloured == printer.compact(denied().response(), REASONS)


def test_numeric_shows_addresses() -> None:
    line = printer.compact(from_json(SAMPLES[8]), Style(Paint(on=False), numeric=True))
    assert line is not None and "10.0.0.10:50000 (ID:1234) -> 10.0.0.20:80 (ID:5678)" in line


def printed(output: str, style: Style, *responses: Response) -> tuple[str, str]:
    """On standard output and on standard error."""
    out, errors = io.StringIO(), io.StringIO()
    prints = printer.Printer(output, style, out, errors)
    for response in responses:
        prints.print(response)
    return out.getvalue(), errors.getvalue()


def test_blocks_are_set_apart_and_reasons_have_a_line() -> None:
    first, second = printed("dict", REASONS, denied().response(), denied().response())[0].split("------------\n")
    assert first.splitlines()[0] == "  TIMESTAMP: Nov  3 20:00:00.000"
    assert first.splitlines()[-1] == "     REASON: no rule matched"
    assert second == first


COMPACT = re.compile(
    r"(?P<time>.{19}): (?P<left>\S+) \(\S+\) (?P<arrow>->|<-|<>) (?P<right>\S+) \(\S+\) "
    r"(?P<type>.+) (?P<verdict>[A-Z]+) \((?P<summary>.*)\)"
)
LOST = ["Nov 23 20:00:00.090", "HUBBLE_RING_BUFFER", "-", "EVENTS LOST", "-"]
LOST += ["CPU(0) - 42 (first: Nov 23 20:00:00.080, last: Nov 23 20:00:00.090)"]


def cells(line: str) -> list[str]:
    """The cells of Hubble's table for a compact line; compact output swaps the ends of replies."""
    match = COMPACT.fullmatch(line)
    assert match is not None, line
    ends = [match["left"], match["right"]]
    return [
        match["time"],
        *(reversed(ends) if match["arrow"] == "<-" else ends),
        *match.group("type", "verdict", "summary"),
    ]


CELLS = [*map(cells, PRINTED[:-2]), LOST]
KEYS = ["  TIMESTAMP: ", "     SOURCE: ", "DESTINATION: ", "       TYPE: ", "    VERDICT: ", "    SUMMARY: "]


def test_the_table_has_hubbles_cells() -> None:
    headers, *rows = printer.table(map(from_json, SAMPLES), PLAIN)
    assert headers.split() == ["TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"]
    begins = [headers.index(word) for word in headers.split()]
    for row, wanted in zip(rows, CELLS, strict=True):
        assert [row[begin:end].rstrip() for begin, end in zip(begins, [*begins[1:], None], strict=True)] == wanted
    widest = [max(map(len, column)) for column in zip(headers.split(), *CELLS, strict=True)]
    assert [after - before for before, after in pairwise(begins)] == [width + 3 for width in widest[:-1]]


def test_the_blocks_have_hubbles_lines() -> None:
    for sample, wanted in zip(SAMPLES, CELLS, strict=False):
        rows = [key + cell for key, cell in zip(KEYS, wanted, strict=True)]
        if wanted is LOST:
            del rows[2]
        assert printer.block(from_json(sample), PLAIN) == "\n".join(rows)


ONE = Flow(
    time="1970-01-01T00:20:34.567Z",
    verdict="DROPPED",
    node_name="k8s1",
    ip=IP(source="1.1.1.1", destination="2.2.2.2"),
    l4=Layer4(tcp=Ports(source_port=31793, destination_port=8080)),
    source=Endpoint(identity=4),
    destination=Endpoint(identity=12345),
    summary="TCP Flags: SYN",
).response()


def test_a_table_is_spaced_as_hubbles() -> None:
    assert list(printer.table([ONE], PLAIN)) == [
        "TIMESTAMP             SOURCE          DESTINATION    TYPE      VERDICT   SUMMARY",
        "Jan  1 00:20:34.567   1.1.1.1:31793   2.2.2.2:8080   UNKNOWN   DROPPED   TCP Flags: SYN",
    ]
    assert list(printer.table([ONE], FULL)) == [
        "TIMESTAMP             NODE   SOURCE          DESTINATION    TYPE      VERDICT   SUMMARY",
        "Jan  1 00:20:34.567   k8s1   1.1.1.1:31793   2.2.2.2:8080   UNKNOWN   DROPPED   TCP Flags: SYN",
    ]


def test_a_table_without_flows_is_empty() -> None:
    assert list(printer.table([Response()], PLAIN)) == []


def test_a_nodes_state_is_a_block_of_its_own() -> None:
    nodes = tuple(f"cluster/node-{number}" for number in range(9))
    failed = Response(node_status=NodeStatus(state_change="NODE_ERROR", node_names=nodes, message="no route"))
    connected = Response(node_status=NodeStatus(state_change="NODE_CONNECTED"))
    assert printed("dict", PLAIN, connected, failed) == (
        "",
        "  TIMESTAMP: N/A\n      STATE: NODE_ERROR\n"
        '      NODES: cluster/node-0, cluster/node-1, cluster/node-2 (and 6 more)\n    MESSAGE: "no route"\n',
    )


def test_nodes_that_come_and_go_are_told_with_debug() -> None:
    connected = Response(node_status=NodeStatus(state_change="NODE_CONNECTED", node_names=("a",)), node_name="relay")
    assert printed("compact", PLAIN, connected) == ("", "")
    assert printed("compact", Style(Paint(on=False), debug=True), connected) == (
        "",
        "N/A [relay]: Receiving flows from 1 nodes: a\n",
    )


def test_an_answer_without_anything_prints_nothing() -> None:
    assert printer.compact(Response(), PLAIN) is None


@pytest.mark.parametrize("identity", [-1, 11, 16777217])
def test_identities_without_a_name_are_numbers(identity: int) -> None:
    flow = Flow(source=Endpoint(identity=identity))
    assert f"(ID:{identity})" in (printer.compact(flow.response(), PLAIN) or "")
