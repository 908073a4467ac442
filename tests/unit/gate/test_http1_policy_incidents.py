"""Known incidents between parser and rules: the gate and real HTTP rules together, one test per incident."""

from __future__ import annotations

import pytest

from l7proxy.gate.options import HttpOptions
from l7proxy.model.ref import RuleRef
from l7proxy.policy.combine import combine
from l7proxy.policy.http_table import HttpTable
from l7proxy.policy.rules import HeaderMatch, HttpRule
from l7proxy.wire.path import PathRules
from tests.unit.gate.talk import Talk

REF = RuleRef("CiliumNetworkPolicy", "default", "web", "spec.ingress[0]")


def ruled(talk: Talk, *rules: HttpRule) -> Talk:
    table = HttpTable(rules)
    talk.judge = lambda request: combine(None, table.judge(request))
    return talk


def get(path: str = "/a", *fields: bytes, host: str = "h") -> bytes:
    return b"\r\n".join([f"GET {path} HTTP/1.1".encode(), f"Host: {host}".encode(), *fields, b"", b""])


def passes(talk: Talk, message: bytes) -> bool:
    """Whether the message reached the server whole; otherwise none of it did."""
    talk.client(message)
    seen = talk.take()
    assert seen.server in (b"", message)
    assert seen.server or seen.client.startswith(b"HTTP/1.1 403 ")
    return bool(seen.server)


@pytest.mark.parametrize(
    ("host", "passed"),
    [
        ("example.com", True),
        ("EXAMPLE.com", False),
        ("example.com.", False),
        ("example.com:80", False),
        ("exampleXcom", False),
    ],
)
def test_cve_2021_39155_a_host_rule_fails_closed_on_other_spellings(talk: Talk, host: str, passed: bool) -> None:
    assert passes(ruled(talk, HttpRule(REF, host=r"example\.com")), get(host=host)) is passed


BOTH_READINGS = [
    ("/admin;.jpg", r"/.*\.jpg", False),
    ("/public;/../admin", "/public.*", False),
    ("/;public/admin", "/;?public/.*|/[^/]*/admin", True),  # the rule itself contains `;`
    ("/;public/admin", "/[^/]*/admin", False),
    ("/admin%3B.jpg?q", r"/.*\.jpg.*", False),
    ("/api/x;v=1/y;w?a;b", "/api/x[^/]*/y.*", True),
    ("/api/x;v=1", "/api/x", False),
    ("/api/x;v=1", "/api/x;v=[0-9]", True),
    ("/api/x?a;b", "/api/x[?]a;b", True),
    ("/api/x?a;b", r"/api/x\?a.b", True),
]


@pytest.mark.parametrize(("path", "rule", "passed"), BOTH_READINGS)
def test_cve_2026_73511_cve_2026_73553_matrix_parameters_that_may_pass_are_judged_in_both_readings(
    talk: Talk, path: str, rule: str, passed: bool
) -> None:
    talk.options = HttpOptions(paths=PathRules(allow_matrix=True))
    ruled(talk, HttpRule(REF, path=rule))
    talk.client(get(path))
    seen = talk.take()
    assert (seen.server, seen.client[:13]) == ((get(path), b"") if passed else (b"", b"HTTP/1.1 403 "))


@pytest.mark.parametrize("value", [b"good\xff", b"\xffgood", b"\x80", b"g\xc3\xb6od", b"good\xc2\xa0"])
def test_cve_2026_73552_obs_text_matches_no_header_rule(talk: Talk, value: bytes) -> None:
    rule = HttpRule(REF, headers=(HeaderMatch("x-token", "good"),))
    assert not passes(ruled(talk, rule), get("/a", b"X-Token: " + value))


REPEATS = [
    ((b"X-Role: user",), True),
    ((b"X-Role: user", b"X-Role: admin"), False),
    ((b"X-Role: admin", b"X-Role: user"), False),
    ((b"X-Role: user", b"x-role: user"), False),
    ((b"X-Role: user, admin",), False),
    ((b"X-Role: user,",), False),
    ((b"X-Role: ", b"X-Role: user"), False),
]


@pytest.mark.parametrize(("fields", "passed"), REPEATS)
def test_cve_2020_25017_ghsa_2v25_cjjq_5f4w_cve_2026_26308_every_repeat_counts(
    talk: Talk, fields: tuple[bytes, ...], passed: bool
) -> None:
    rule = HttpRule(REF, headers=(HeaderMatch("x-role", "user"),))
    assert passes(ruled(talk, rule), get("/a", *fields)) is passed


@pytest.mark.parametrize(
    ("value", "passed"), [(b"a.b+c*(d)", True), (b"aXb+c*(d)", False), (b"a.bbc", False), (b"a.b+c*d", False)]
)
def test_cve_2026_39350_a_literal_value_is_no_pattern(talk: Talk, value: bytes, passed: bool) -> None:
    rule = HttpRule(REF, headers=(HeaderMatch("x-token", "a.b+c*(d)"),))
    assert passes(ruled(talk, rule), get("/a", b"X-Token: " + value)) is passed


@pytest.mark.parametrize("path", ["/a*b", "/a-._~!$&'()*+,=:@b", "/a%20b", "/a[b]", "/a|b", "/a^b", "/a%C3%A9b"])
def test_cve_2025_46821_every_path_character_meets_the_rules(talk: Talk, path: str) -> None:
    ruled(talk, HttpRule(REF, path="/a[^/]+b"))
    assert not passes(talk, get("/other" + path))
    assert passes(talk, get(path if path.endswith("b") else path + "b"))


def test_ghsa_9f3w_vm54_7gfc_a_segment_is_not_crossed(talk: Talk) -> None:
    ruled(talk, HttpRule(REF, path="/users/[^/]+"))
    assert not passes(talk, get("/users/1/keys"))
    talk.client(get("/users/1%2Fkeys"))
    assert talk.take().server == b""


EVIL = ["/(a+)+", "/(a|aa)+", "/(a|a?)+", "/(.*a){20}", "/([a-z]+)*x", "/(a*)*b"]


@pytest.mark.parametrize("pattern", EVIL)
def test_redos_cve_class_cilium_41314_evil_patterns_take_linear_time(talk: Talk, pattern: str) -> None:
    """A backtracking engine would take exponential time on these."""
    assert not passes(ruled(talk, HttpRule(REF, path=pattern)), get("/" + "a" * 8_000 + "!"))
