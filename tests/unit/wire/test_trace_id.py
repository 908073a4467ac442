"""Which headers name a trace, and which ids count."""

from __future__ import annotations

import pytest

from l7proxy.wire import trace_id

LONG, SHORT, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "a3ce929d0e0e4736", "00f067aa0ba902b7"
PADDED = SHORT.zfill(32)
W3C = f"00-{LONG}-{SPAN}-01"
OTHER = "f" * 32

ROWS: list[tuple[str, list[tuple[str, str]], str]] = [
    ("no header", [], ""),
    ("W3C", [("traceparent", W3C)], LONG),
    ("W3C as Go spells it", [("Traceparent", W3C)], LONG),
    ("a later version, with more", [("traceparent", f"cc-{LONG}-{SPAN}-01-what-else")], LONG),
    ("version 00 with more", [("traceparent", f"{W3C}-x")], ""),
    ("version ff", [("traceparent", f"ff-{LONG}-{SPAN}-01")], ""),
    ("a trace id of zeros", [("traceparent", f"00-{'0' * 32}-{SPAN}-01")], ""),
    ("a parent id of zeros", [("traceparent", f"00-{LONG}-{'0' * 16}-01")], ""),
    ("capitals", [("traceparent", W3C.upper())], ""),
    ("no hexadecimal digits", [("traceparent", W3C.replace("4", "g"))], ""),
    ("too short", [("traceparent", f"00-{LONG[1:]}-{SPAN}-01")], ""),
    ("no flags", [("traceparent", f"00-{LONG}-{SPAN}")], ""),
    ("twice", [("traceparent", W3C), ("traceparent", f"00-{OTHER}-{SPAN}-01")], ""),
    ("B3, one header", [("b3", f"{LONG}-{SPAN}-1-{SPAN}")], LONG),
    ("B3 without sampling", [("B3", f"{LONG}-{SPAN}")], LONG),
    ("B3 of 64 bits", [("b3", f"{SHORT}-{SPAN}-d")], PADDED),
    ("B3, only not sampled", [("b3", "0")], ""),
    ("B3 without span", [("b3", LONG)], ""),
    ("B3 with an unknown state", [("b3", f"{LONG}-{SPAN}-7")], ""),
    ("B3, several headers", [("X-B3-TraceId", LONG), ("X-B3-SpanId", SPAN), ("X-B3-Sampled", "1")], LONG),
    ("B3, several headers, 64 bits", [("x-b3-traceid", SHORT)], PADDED),
    ("B3 of zeros", [("x-b3-traceid", "0" * 16)], ""),
    ("W3C before B3", [("b3", f"{OTHER}-{SPAN}"), ("traceparent", W3C)], LONG),
    ("B3 where W3C is malformed", [("traceparent", "nonsense"), ("b3", f"{OTHER}-{SPAN}")], OTHER),
    ("a name that only contains one", [("x-traceparent", W3C), ("xb3", f"{LONG}-{SPAN}")], ""),
    ("a value that looks like a header", [("x-b", f"b3: {LONG}-{SPAN}")], ""),
    ("letters that are no digits of ASCII", [("x-b3-traceid", "٣" * 32)], ""),
]


@pytest.mark.parametrize(("fields", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_trace_ids(fields: list[tuple[str, str]], expected: str) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in [("Host", "a"), *fields, ("Accept", "*/*")])
    assert trace_id.of_head(f"GET /b3 HTTP/1.1\r\n{lines}\r\n".encode()) == expected
    assert trace_id.of_headers([(name.lower().encode(), value.encode()) for name, value in fields]) == expected


def test_spaces_around_a_value_are_not_part_of_it() -> None:
    assert trace_id.of_head(f"GET / HTTP/1.1\r\ntraceparent:   {W3C} \t\r\nb: c\r\n\r\n".encode()) == LONG


def test_nothing_after_the_head_counts() -> None:
    assert trace_id.of_head(f"GET / HTTP/1.1\r\nA: b\r\n\r\ntraceparent: {W3C}\r\n\r\n".encode()[:27]) == ""
