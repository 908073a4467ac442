"""Host rules: the authority as sent, by case and with its port; every spelling is evaluated as sent.

CVE-2021-39155 was a Host compared by case where servers ignore it: another spelling evaded a denial. Our rules only
allow, so another spelling can only be refused more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from l7proxy.errors import PeerError
from l7proxy.model.http import Request
from l7proxy.model.verdict import Verdict
from l7proxy.policy.decide import HttpTable
from l7proxy.wire import http1_fast, http1_strict
from l7proxy.wire.head import RequestHead

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

ROWS = [
    ("11.44 a port counts", "example\\.com", "example.com:8080", False),
    ("11.44 so does the default one", "example\\.com", "example.com:80", False),
    ("11.44 a rule may have it", "example\\.com:8080", "example.com:8080", True),
    ("11.44 or any", "example\\.com(:[0-9]+)?", "example.com:8080", True),
    ("39155 case counts", "example\\.com", "EXAMPLE.com", False),
    ("39155 unless the rule says otherwise", "(?i)example\\.com", "EXAMPLE.com", True),
    ("39155 a trailing dot counts", "example\\.com", "example.com.", False),
    ("39155 a trailing dot before a port", "example\\.com", "example.com.:80", False),
    ("an IPv6 literal", "\\[fd00::1\\]", "[fd00::1]", True),
    ("an IPv6 literal with a port", "\\[fd00::1\\]:8080", "[fd00::1]:8080", True),
    ("an IPv6 literal spelled out is another", "\\[fd00::1\\]", "[fd00:0::1]", False),
    ("an IPv6 literal as a pattern is a class", "[fd00::1]", "[fd00::1]", False),
    ("a longer name", "example\\.com", "example.com.evil.net", False),
    ("a name before it", "example\\.com", "evil-example.com", False),
]


def heads(raw: bytes) -> list[RequestHead]:
    """By the fast reader, if it accepts it, and the strict one."""
    found = [head for head in (http1_fast.request(raw), http1_strict.request(raw)) if isinstance(head, RequestHead)]
    assert found
    return found


def allowed(table: HttpTable, head: RequestHead) -> bool:
    return table.judge(Request(head.method, head.path, head.host, head.headers)).verdict is not Verdict.DROPPED


def table(bench: Bench, host: str) -> HttpTable:
    http = f"rules: {{http: [{{host: '{host}'}}]}}"
    land = bench.enforce(f"ingress: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], {http}}}]}}]")
    (found,) = land.port("a").tables
    assert isinstance(found, HttpTable)
    return found


@pytest.mark.parametrize(("rule", "host", "passes"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
@pytest.mark.parametrize("form", ["origin", "absolute", "absolute, HTTP/1.0"])
def test_a_host(rule: str, host: str, passes: bool, form: str, bench: Bench) -> None:
    """For every form of the target: in the absolute form it contains the authority (RFC 9112 3.2.2)."""
    target = "/x" if form == "origin" else f"http://{host}/x"
    host_line = f"Host: {host}\r\n" if "1.0" not in form else ""
    raw = f"GET {target} HTTP/1.{0 if '1.0' in form else 1}\r\n{host_line}\r\n".encode()
    for head in heads(raw):
        assert allowed(table(bench, rule), head) is passes


REFUSED = [
    ("userinfo", "Host: example.com@evil.net"),
    ("userinfo in front", "Host: user:pass@example.com"),
    ("two of them", "Host: example.com\r\nHost: evil.net"),
    ("a list", "Host: example.com, evil.net"),
    ("a path", "Host: example.com/evil"),
    ("an escape", "Host: example%2ecom"),
    ("a blank", "Host: example.com evil"),
    ("an open bracket", "Host: [fd00::1"),
    ("a zone", "Host: [fe80::1%25eth0]"),
    ("a port that is none", "Host: example.com:80x"),
    ("bytes past ASCII", "Host: ex\xe4mple.com"),
]


@pytest.mark.parametrize("lines", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_an_authority_that_can_be_read_two_ways_is_not_judged(lines: str) -> None:
    raw = f"GET /x HTTP/1.1\r\n{lines}\r\n\r\n".encode("latin-1")
    assert not isinstance(http1_fast.request(raw), RequestHead)
    with pytest.raises(PeerError):
        http1_strict.request(raw)


@pytest.mark.parametrize("host", ["evil.net", "EXAMPLE.com", "example.com:80", "example.com."])
def test_an_absolute_target_and_host_must_not_differ(host: str) -> None:
    raw = f"GET http://example.com/x HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    assert not isinstance(http1_fast.request(raw), RequestHead)
    with pytest.raises(PeerError, match="Host differ"):
        http1_strict.request(raw)
