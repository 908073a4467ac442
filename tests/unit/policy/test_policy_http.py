"""HTTP rules against requests: what each field matches, the reason of a denial, and what odd bytes cannot do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from l7proxy.model.http import Request
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import DropReason, Verdict
from l7proxy.policy.http_table import REMEMBERED, HttpTable
from l7proxy.policy.rules import HeaderMatch, HttpRule

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench


def http(*items: str) -> str:
    listed = ", ".join(items)
    return f"ingress: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{listed}]}}}}]}}]"


PATHS = [
    ("4.1.1 the whole path", "/foo", "/foo", "allow"),
    ("4.1.1 not a longer one (11.40)", "/foo", "/foobar", "deny"),
    ("4.1.1 not with a slash more", "/foo", "/foo/", "deny"),
    ("4.1.1 not with a query", "/foo", "/foo?x=1", "deny"),
    ("4.1.1 not as a part", "/foo", "/a/foo", "deny"),
    ("4.1.1 a pattern may take the query in", "/foo.*", "/foo?x=1", "allow"),
    ("4.1.1 by case", "/foo", "/Foo", "deny"),
    ("4.1.1 an anchor at the end is harmless", "/public$", "/public", "allow"),
    ("4.1.1 an anchor at the start is harmless", "^/public", "/public", "allow"),
    ("4.1.1 anchors do not loosen", "/public$", "/public/x", "deny"),
    ("4.1.1 alternatives are each the whole path", "/a|/b", "/b", "allow"),
    ("4.1.1 alternatives do not match a part", "/a|/b", "/b/c", "deny"),
    ("4.1.1 alternatives do not match a part, the first neither", "/a|/b", "/a/c", "deny"),
    ("4.1.3 only the root", "/", "/", "allow"),
    ("4.1.3 the root is not all", "/", "/x", "deny"),
    ("a dot is one character", "/v.", "/v1", "allow"),
    ("a dot is not a line's end", "/v.", "/v\n", "deny"),
    ("what asks for every path", ".*", "/any/../%2e?q", "allow"),
    ("what looks like a quantifier but is quoted", r"/a\+b", "/a+b", "allow"),
    ("what looks like a quantifier", "/a+b", "/aaab", "allow"),
    ("a flag inside the pattern", "(?i)/foo", "/FOO", "allow"),
]


@pytest.mark.parametrize(("pattern", "path", "expected"), [row[1:] for row in PATHS], ids=[row[0] for row in PATHS])
def test_a_path(pattern: str, path: str, expected: str, bench: Bench) -> None:
    quoted = pattern.replace("'", "''")
    assert bench.enforce(http(f"{{path: '{quoted}'}}")).http("a", f"GET {path}") == expected


METHODS = [
    ("4.1.2 GET is GET", "GET", "GET", "allow"),
    ("4.1.2 GET is nothing else", "GET", "POST", "deny"),
    ("4.1.2 one of two", "GET|POST", "POST", "allow"),
    ("4.1.2 get never matches", "get", "GET", "deny"),
    ("4.1.2 a prefix is not enough", "GET", "GETX", "deny"),
    ("4.1.2 the empty string is not set", "''", "BREW", "allow"),
]


@pytest.mark.parametrize(
    ("pattern", "method", "expected"), [row[1:] for row in METHODS], ids=[row[0] for row in METHODS]
)
def test_a_method(pattern: str, method: str, expected: str, bench: Bench) -> None:
    assert bench.enforce(http(f"{{method: {pattern}}}")).http("a", f"{method} /") == expected


HOSTS = [
    ("4.1.3 the host as sent", "example.com", "example.com", "allow"),
    ("4.1.3 a port counts (11.44)", "example.com", "example.com:8080", "deny"),
    ("4.1.3 case counts", "example.com", "Example.com", "deny"),
    ("4.1.3 a pattern for the port", "example\\.com(:[0-9]+)?", "example.com:8080", "allow"),
    ("4.1.3 a dot in a pattern is any character", "example.com", "exampleXcom", "allow"),
    ("4.1.3 the empty string is not set", "", "anything", "allow"),
]


@pytest.mark.parametrize(("pattern", "host", "expected"), [row[1:] for row in HOSTS], ids=[row[0] for row in HOSTS])
def test_a_host(pattern: str, host: str, expected: str, bench: Bench) -> None:
    assert bench.enforce(http(f"{{host: '{pattern}'}}")).http("a", "GET /", host=host) == expected


HEADERS = [
    ("4.1.4 the value as written", "X-Token: abc", ["X-Token: abc"], "allow"),
    ("4.1.4 another value", "X-Token: abc", ["X-Token: abcd"], "deny"),
    ("4.1.4 a value by case", "X-Token: abc", ["X-Token: ABC"], "deny"),
    ("4.1.4 no such header", "X-Token: abc", [], "deny"),
    ("4.1.4 the name in any case", "x-TOKEN: abc", ["X-Token: abc"], "allow"),
    ("4.1.4 without a colon", "X-Token abc", ["X-Token: abc"], "allow"),
    ("4.1.4 the value begins after the first blank", "X-Token: a b", ["X-Token: a b"], "allow"),
    ("4.1.4 presence", "X-Token", ["X-Token: whatever"], "allow"),
    ("4.1.4 presence of an empty one", "X-Token", ["X-Token: "], "allow"),
    ("4.1.4 absence", "X-Token", ["X-Other: x"], "deny"),
    ("4.1.4 a colon and no blank never match", "X-Token:abc", ["X-Token: abc"], "deny"),
    ("4.1.4 a colon at the end never matches", "X-Token:", ["X-Token: abc"], "deny"),
    ("4.1.4 two blanks never match", "X-Token:  abc", ["X-Token: abc"], "deny"),
    ("4.1.4 an empty value", "X-Token: ", ["X-Token: "], "allow"),
    ("4.1.4 an empty value is not any", "X-Token: ", ["X-Token: a"], "deny"),
    ("4.1.4 repeats are joined by a comma", "X-Token: a,b", ["X-Token: a", "X-Token: b"], "allow"),
    ("4.1.4 repeats in the other order", "X-Token: a,b", ["X-Token: b", "X-Token: a"], "deny"),
    ("one good value among repeats is not enough", "X-Token: a", ["X-Token: a", "X-Token: b"], "deny"),
    ("one good value among repeats, last, is not enough", "X-Token: a", ["X-Token: b", "X-Token: a"], "deny"),
    ("a value that is a pattern: any token", "X-Token: .*", ["X-Token: s3cret"], "allow"),
    ("a value that is a pattern: but one there must be", "X-Token: .*", [], "deny"),
    ("a value that is a pattern: also literally", "X-Token: .*", ["X-Token: .*"], "allow"),
    ("a value that is a pattern: the whole string", "X-Id: [0-9]+", ["X-Id: 12x"], "deny"),
    ("a value that is a pattern: repeats as one string", "X-Id: [0-9]+", ["X-Id: 1", "X-Id: 2"], "deny"),
    ("a dot alone makes no pattern", "X-Version: 1.2", ["X-Version: 1x2"], "deny"),
    ("a hyphen alone makes no pattern", "X-Id: a-b", ["X-Id: a-b"], "allow"),
    ("a value that only looks like a pattern is literal", "X-Token: (a", ["X-Token: (a"], "allow"),
]


@pytest.mark.parametrize(("rule", "sent", "expected"), [row[1:] for row in HEADERS], ids=[row[0] for row in HEADERS])
def test_a_header(rule: str, sent: list[str], expected: str, bench: Bench) -> None:
    assert bench.enforce(http(f"{{headers: ['{rule}']}}")).http("a", "GET /", *sent) == expected


def test_all_that_an_item_says_must_hold(bench: Bench) -> None:
    land = bench.enforce(http("{method: GET, path: /a, host: h, headers: ['X-A: 1', 'X-B']}"))
    good = ("GET /a", "X-A: 1", "X-B: 2")
    assert land.http("a", *good, host="h") == "allow"
    assert land.http("a", *good, host="g") == "deny"
    assert land.http("a", "GET /b", *good[1:], host="h") == "deny"
    assert land.http("a", "PUT /a", *good[1:], host="h") == "deny"
    assert land.http("a", *good[:2], host="h") == "deny"
    assert land.http("a", good[0], "X-A: 2", good[2], host="h") == "deny"


def test_4_1_items_are_alternatives(bench: Bench) -> None:
    land = bench.enforce(http("{method: GET, path: '/.*'}", "{path: /health}"))
    assert [land.http("a", line) for line in ("GET /x", "PUT /health", "PUT /x")] == ["allow", "allow", "deny"]


# Odd bytes (CVE-2026-73552: a pattern on a header with obs-text failed open).


def ask(rule: HttpRule, method: bytes = b"GET", path: bytes = b"/", *headers: tuple[bytes, bytes]) -> Verdict:
    return HttpTable((rule,)).judge(Request(method, path, b"h", list(headers))).verdict


REF = RuleRef("CiliumNetworkPolicy", "default", "p", "spec.ingress[0].toPorts[0].rules.http[0]")


@pytest.mark.parametrize(
    "value", [b"\xff", b"\x80", b"abc\xe9", b"\xc3", b"\xc0\xaf", b"\xf8\x88\x80\x80\x80", b"a\x00\xffb"]
)
@pytest.mark.parametrize("pattern", [".*", "[^x]*", "(?s).*", "abc.", "\\PL*", "[[:^ascii:]]+"])
def test_bytes_that_are_no_text_match_no_pattern(pattern: str, value: bytes) -> None:
    rule = HttpRule(REF, headers=(HeaderMatch("x-token", pattern, pattern),))
    assert ask(rule, b"GET", b"/", (b"x-token", value)) is Verdict.DROPPED
    assert ask(HttpRule(REF, path=pattern), b"GET", value) is Verdict.DROPPED
    assert ask(HttpRule(REF, method=pattern), value) is Verdict.DROPPED
    assert ask(HttpRule(REF, host=pattern), b"GET", b"/") is not None


def test_text_beyond_ascii_matches_by_character() -> None:
    assert ask(HttpRule(REF, path="/caf.")) is Verdict.DROPPED
    assert ask(HttpRule(REF, path="/caf."), b"GET", "/café".encode()) is Verdict.FORWARDED
    assert ask(HttpRule(REF, path="/caf[éè]"), b"GET", "/café".encode()) is Verdict.FORWARDED
    assert ask(HttpRule(REF, path="/café"), b"GET", "/café".encode()) is Verdict.FORWARDED
    assert ask(HttpRule(REF, path="/café"), b"GET", "/café".encode("latin-1")) is Verdict.DROPPED
    assert ask(HttpRule(REF, path="/caf\\C"), b"GET", b"/caf\xe9") is Verdict.FORWARDED  # \C matches one byte


def test_obs_text_counts_as_present_and_as_itself_only() -> None:
    odd = (b"x-token", b"\xe9")
    assert ask(HttpRule(REF, headers=(HeaderMatch("x-token"),)), b"GET", b"/", odd) is Verdict.FORWARDED
    assert ask(HttpRule(REF, headers=(HeaderMatch("x-token", "é"),)), b"GET", b"/", odd) is Verdict.DROPPED


# A rule that the worker cannot use must never allow.


@pytest.mark.parametrize("broken", ["(", "a" * 9000 + ".", "\\pL{1000}("])
def test_a_pattern_that_cannot_be_used_matches_nothing(broken: str) -> None:
    other = HttpRule(REF, path="/ok")
    table = HttpTable((HttpRule(REF, method=broken), HttpRule(REF, path=broken), HttpRule(REF, host=broken), other))
    for path in (b"/", b"(", b"/ok", broken.encode("utf-8", "replace")):
        expected = Verdict.FORWARDED if path == b"/ok" else Verdict.DROPPED
        assert table.judge(Request(b"GET", path, b"h", [])).verdict is expected
    assert set(table.problems) == {broken}


def test_patterns_too_big_for_one_set_are_tried_one_by_one() -> None:
    rules = tuple(HttpRule(REF, path=f"/{place}/[a-z]{{1000}}.{{900}}", number=place) for place in range(60))
    table = HttpTable((*rules, HttpRule(REF, path="/ok.*", number=99)))
    assert table.judge(Request(b"GET", b"/okay", b"h", [])).verdict is Verdict.FORWARDED
    assert table.judge(Request(b"GET", b"/59/" + b"a" * 1900, b"h", [])).verdict is Verdict.FORWARDED
    assert table.judge(Request(b"GET", b"/60/" + b"a" * 1900, b"h", [])).verdict is Verdict.DROPPED


# The reason of a denial.

REASONS = [
    ("method differs", "{method: GET, path: /a}", "PUT /a", [], "path /a matched, method does not match GET"),
    ("path differs", "{method: GET, path: /a}", "GET /b", [], "method GET matched, path does not match /a"),
    ("both differ", "{method: GET, path: /a}", "PUT /b", [], "method does not match GET, path does not match /a"),
    ("host differs", "{host: x}", "GET /", [], "host does not match x"),
    ("header missing", "{headers: ['X-Api-Key: s3cret']}", "GET /", [], "header X-Api-Key missing"),
    (
        "header differs, its value not told",
        "{headers: ['X-Api-Key: s3cret']}",
        "GET /",
        ["X-Api-Key: no"],
        "header X-Api-Key differs",
    ),
    ("one of two headers", "{headers: ['A: 1', 'B: 2']}", "GET /", ["A: 1"], "header A matched, header B missing"),
    ("no control characters", '{path: "/a\\n\\u001bb"}', "GET /", [], "path does not match /a\\x0a\\x1bb"),
    ("long patterns are cut", "{path: '/" + "a" * 100 + "'}", "GET /", [], "path does not match /" + "a" * 79 + "…"),
]


@pytest.mark.parametrize(
    ("rule", "line", "headers", "reason"), [row[1:] for row in REASONS], ids=[row[0] for row in REASONS]
)
def test_a_denial_says_what_came_of_the_nearest_rule(
    rule: str, line: str, headers: list[str], reason: str, bench: Bench
) -> None:
    decision = bench.enforce(http(rule)).port("a").judge(bench.request(line, *headers))
    assert decision.reason == f"no rule matched; nearest: policy default/p0 rule 1, {reason}"
    assert decision.drop_reason is DropReason.POLICY_DENIED


NEAREST = [
    ("most clauses satisfied", "POST /api/data", [], 2, "method POST matched, header X-Token missing"),
    (
        "a satisfied header is a clause",
        "PUT /zzz",
        ["X-Token: 1"],
        2,
        "header X-Token matched, method does not match POST, path does not match /api/data",
    ),
    ("fewest not satisfied among equals", "GET /zzz", [], 1, "method GET matched, path does not match /api/.*"),
    ("first written among equals", "PUT /zzz", [], 3, "path does not match /health"),
]


@pytest.mark.parametrize(
    ("line", "headers", "number", "reason"), [row[1:] for row in NEAREST], ids=[row[0] for row in NEAREST]
)
def test_the_nearest_rule(line: str, headers: list[str], number: int, reason: str, bench: Bench) -> None:
    rules = (
        "{method: GET, path: '/api/.*'}",
        "{method: POST, path: /api/data, headers: ['X-Token: .*']}",
        "{path: /health}",
        "{path: /live}",
    )
    decision = bench.enforce(http(*rules)).port("a").judge(bench.request(line, *headers))
    assert decision.reason == f"no rule matched; nearest: policy default/p0 rule {number}, {reason}"
    assert decision.ref is not None
    assert decision.ref.rule == f"spec.ingress[0].toPorts[0].rules.http[{number - 1}]"


def test_a_denial_never_quotes_the_request(bench: Bench) -> None:
    decision = (
        bench.enforce(http("{path: /a, headers: ['X-Token: t']}"))
        .port("a")
        .judge(bench.request("GET /b?password=hunter2", "X-Token: hunter3"))
    )
    assert "hunter" not in decision.reason


def test_an_allowed_request_names_its_rule(bench: Bench) -> None:
    decision = bench.enforce(http("{path: /a}", "{path: /b}")).port("a").judge(bench.request("GET /b"))
    assert decision.ref is not None
    assert (decision.verdict, decision.ref.rule) == (Verdict.FORWARDED, "spec.ingress[0].toPorts[0].rules.http[1]")


# Cached answers.


def test_answers_do_not_depend_on_what_was_asked_before(bench: Bench) -> None:
    table = bench.enforce(http("{path: '/[0-9]+', headers: ['X-A: 1']}", "{path: '/[0-9]*5'}")).port("a").tables[0]
    for _ in range(2):
        for number in range(REMEMBERED + 100):
            path = f"/{number}"
            five = path.endswith("5")
            plain, with_header = bench.request(f"GET {path}"), bench.request(f"GET {path}", "X-A: 1")
            assert table.judge(plain).allowed is five
            assert table.judge(with_header).allowed


def test_long_paths_are_judged_the_same_each_time(bench: Bench) -> None:
    table = bench.enforce(http("{path: '/a*'}")).port("a").tables[0]
    for length in (500, 511, 512, 5000):
        for _ in range(2):
            assert table.judge(bench.request("GET /" + "a" * length)).allowed
            assert not table.judge(bench.request("GET /" + "a" * length + "b")).allowed


def test_one_identity_s_answers_are_not_another_s(bench: Bench) -> None:
    items = ", ".join(
        f"{{fromEndpoints: [{{matchLabels: {{app: {who}}}}}], "
        f"toPorts: [{{ports: [{{port: '80', protocol: TCP}}], rules: {{http: [{{path: /{who}}}]}}}}]}}"
        for who in ("a", "b")
    )
    land = bench.enforce(f"ingress: [{items}]")
    for _ in range(2):
        assert [land.http(who, "GET /a") for who in ("a", "b")] == ["allow", "deny"]
        assert [land.http(who, "GET /b") for who in ("a", "b")] == ["deny", "allow"]
