"""`headerMatches`: the results for absent, right and wrong headers, secrets, and headers that cannot be written."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from l7proxy.errors import PolicyError
from l7proxy.model.http import EditKind, Request, edited
from l7proxy.model.ref import RuleRef
from l7proxy.model.secret import Sealed
from l7proxy.model.verdict import Verdict
from l7proxy.policy import lang
from l7proxy.policy.combine import evaluate_l7
from l7proxy.policy.decide import HttpTable, PortPolicy
from l7proxy.policy.decision import Decision
from l7proxy.policy.headers import FRAMING, HeaderRule, Mismatch, SecretName
from l7proxy.policy.rules import HeaderMatch, HttpRule

if TYPE_CHECKING:
    from tests.unit.policy.conftest import Bench

REF = RuleRef("CiliumNetworkPolicy", "default", "p", "spec.ingress[0].toPorts[0].rules.http[0]")
NAME = b"x-token"
Pairs = tuple[tuple[bytes, bytes], ...]


def request(*headers: tuple[bytes, bytes], path: bytes = b"/") -> Request:
    return Request(b"GET", path, b"h", [(b"host", b"h"), *headers])


def judge(asked: Request, *rules: HeaderRule | HttpRule) -> Decision:
    whole = [rule if isinstance(rule, HttpRule) else HttpRule(REF, header_matches=(rule,)) for rule in rules]
    return HttpTable(tuple(replace(rule, number=place) for place, rule in enumerate(whole, 1))).judge(asked)


def forwarded(decision: Decision, asked: Request) -> Pairs:
    """The headers that go to the server, without Host."""
    assert decision.allowed, decision.reason
    edits = decision.rewrite.edits if decision.rewrite is not None else ()
    return tuple(edited(asked.headers, edits)[1:])


RIGHT, WRONG = (NAME, b"right"), (NAME, b"wrong")
# (id, mismatch, wanted, sent, forwarded or None for a refusal, missing, rejected)
TABLE: list[tuple[str, Mismatch, str | None, Pairs, Pairs | None, Pairs, Pairs]] = [
    ("presence, absent: refused", Mismatch.FAIL, None, (), None, (), ()),
    ("presence, there", Mismatch.FAIL, None, (WRONG,), (WRONG,), (), ()),
    ("presence, there and empty", Mismatch.FAIL, None, ((NAME, b""),), ((NAME, b""),), (), ()),
    ("FAIL, absent: refused", Mismatch.FAIL, "right", (), None, (), ()),
    ("FAIL, right", Mismatch.FAIL, "right", (RIGHT,), (RIGHT,), (), ()),
    ("FAIL, wrong: refused", Mismatch.FAIL, "right", (WRONG,), None, (), ()),
    ("LOG, absent", Mismatch.LOG, "right", (), (), (RIGHT,), ()),
    ("LOG, right", Mismatch.LOG, "right", (RIGHT,), (RIGHT,), (), ()),
    ("LOG, wrong", Mismatch.LOG, "right", (WRONG,), (WRONG,), (RIGHT,), ()),
    ("ADD, absent", Mismatch.ADD, "right", (), (RIGHT,), (RIGHT,), ()),
    ("ADD, right", Mismatch.ADD, "right", (RIGHT,), (RIGHT,), (), ()),
    ("ADD, wrong: appended", Mismatch.ADD, "right", (WRONG,), (WRONG, RIGHT), (RIGHT,), ()),
    ("DELETE, absent", Mismatch.DELETE, "right", (), (), (), ()),
    ("DELETE, right: kept", Mismatch.DELETE, "right", (RIGHT,), (RIGHT,), (), ()),
    ("DELETE, wrong: removed", Mismatch.DELETE, "right", (WRONG,), (), (), (WRONG,)),
    ("REPLACE, absent: set", Mismatch.REPLACE, "right", (), (RIGHT,), (RIGHT,), ()),
    ("REPLACE, right", Mismatch.REPLACE, "right", (RIGHT,), (RIGHT,), (), ()),
    ("11.46 REPLACE, wrong: set, not refused", Mismatch.REPLACE, "right", (WRONG,), (RIGHT,), (RIGHT,), (WRONG,)),
    ("repeats are one value", Mismatch.FAIL, "a,b", ((NAME, b"a"), (NAME, b"b")), ((NAME, b"a"), (NAME, b"b")), (), ()),
    ("one right among repeats is wrong", Mismatch.FAIL, "right", (RIGHT, WRONG), None, (), ()),
    ("REPLACE takes all repeats away", Mismatch.REPLACE, "right", (RIGHT, WRONG), (RIGHT,), (RIGHT,), (RIGHT, WRONG)),
    ("DELETE takes all repeats away", Mismatch.DELETE, "right", (WRONG, RIGHT), (), (), (WRONG, RIGHT)),
    ("values by case", Mismatch.FAIL, "right", ((NAME, b"Right"),), None, (), ()),
    ("obs-text is compared byte by byte", Mismatch.FAIL, "é", ((NAME, "é".encode()),), ((NAME, "é".encode()),), (), ()),
    ("obs-text that is not UTF-8 is wrong", Mismatch.FAIL, "é", ((NAME, b"\xe9"),), None, (), ()),
    ("no pattern: literal only", Mismatch.FAIL, ".*", ((NAME, b"x"),), None, (), ()),
    ("presence, ADD: an empty one", Mismatch.ADD, None, (), ((NAME, b""),), ((NAME, b""),), ()),
    ("presence, DELETE: no effect", Mismatch.DELETE, None, (WRONG,), (WRONG,), (), ()),
    # CGI, WSGI and PHP read X_Token as X-Token: the other spelling must neither satisfy the rule nor pass
    ("_ for - does not satisfy", Mismatch.FAIL, None, ((b"x_token", b"right"),), None, (), ()),
    ("_ for - beside the right one is wrong", Mismatch.FAIL, "right", (RIGHT, (b"x_token", b"right")), None, (), ()),
    ("_ for - is replaced", Mismatch.REPLACE, "right", ((b"x_token", b"w"),), (RIGHT,), (RIGHT,), ((NAME, b"w"),)),
    ("_ for - is deleted", Mismatch.DELETE, "right", ((b"x_token", b"w"),), (), (), ((NAME, b"w"),)),
    # lighttpd reads other punctuation the same way, and of X-Token and X.Token it takes the last
    (". for - does not satisfy", Mismatch.FAIL, None, ((b"x.token", b"right"),), None, (), ()),
    (". for - beside the right one is wrong", Mismatch.FAIL, "right", (RIGHT, (b"x.token", b"right")), None, (), ()),
    ("! for - is replaced", Mismatch.REPLACE, "right", ((b"x!token", b"w"),), (RIGHT,), (RIGHT,), ((NAME, b"w"),)),
    ("~ for - is deleted", Mismatch.DELETE, "right", ((b"x~token", b"w"),), (), (), ((NAME, b"w"),)),
]


@pytest.mark.parametrize(
    ("mismatch", "wanted", "sent", "expected", "missing", "rejected"),
    [row[1:] for row in TABLE],
    ids=[f"4.2 {row[0]}" for row in TABLE],
)
@pytest.mark.parametrize("sealed", [False, True], ids=["value", "secret"])
def test_a_header(
    mismatch: Mismatch,
    wanted: str | None,
    sent: Pairs,
    expected: Pairs | None,
    missing: Pairs,
    rejected: Pairs,
    sealed: bool,
) -> None:
    rule = HeaderRule("X-Token", wanted, mismatch)
    if sealed and wanted is not None:
        rule = HeaderRule("X-Token", "other", mismatch, SecretName("default", "s"), Sealed(wanted.encode()))
        missing = tuple((name, b"[redacted]") for name, _ in missing)
    asked = request(*sent)
    decision = judge(asked, rule)
    if expected is None:
        assert decision.verdict is Verdict.DROPPED
        assert decision.rewrite is None
        assert "header X-Token" in decision.reason
        return
    assert forwarded(decision, asked) == expected
    told = decision.rewrite
    assert ((told.missing, told.rejected) if told else ((), ())) == (missing, rejected)


@pytest.mark.parametrize("mismatch", Mismatch)
def test_11_47_a_missing_secret_without_value_never_matches(mismatch: Mismatch) -> None:
    rule = HeaderRule("X-Token", None, mismatch, SecretName("default", "gone"))
    for sent in ((), (RIGHT,), ((NAME, b""),)):
        decision = judge(request(*sent), rule)
        assert decision.verdict is Verdict.DROPPED
        assert "header X-Token is compared with a secret that does not exist" in decision.reason


def test_the_value_stands_in_for_a_missing_secret() -> None:
    rule = HeaderRule("X-Token", "right", Mismatch.FAIL, SecretName("default", "gone"))
    assert judge(request(RIGHT), rule).allowed
    assert not judge(request(WRONG), rule).allowed


def test_plain_matchers_hold_first() -> None:
    acting = HeaderRule("X-Token", "right", Mismatch.REPLACE)
    rule = HttpRule(REF, method="GET", path="/a", header_matches=(acting,))
    other = HttpRule(REF, path="/b")
    assert judge(request(path=b"/b"), rule, other).rewrite is None
    assert judge(request(path=b"/a"), rule, other).rewrite is not None
    assert not judge(request(path=b"/c"), rule, other).allowed


def test_the_actions_of_several_rules_accumulate() -> None:
    """When any rule has header matches, the first match does not end the evaluation."""
    asked = request((b"x-old", b"1"))
    decision = judge(
        asked,
        HttpRule(REF, path="/"),
        HeaderRule("X-A", "1", Mismatch.ADD),
        HeaderRule("X-B", "2", Mismatch.REPLACE),
        HeaderRule("X-Old", "0", Mismatch.DELETE),
        HeaderRule("X-Never", "0", Mismatch.FAIL),
    )
    assert forwarded(decision, asked) == ((b"x-a", b"1"), (b"x-b", b"2"))
    assert decision.ref == REF


def test_a_rule_that_fails_has_changed_nothing() -> None:
    asked = request()
    actions = (HeaderRule("X-A", "1", Mismatch.ADD), HeaderRule("X-B", "2", Mismatch.FAIL))
    decision = judge(asked, HttpRule(REF, header_matches=actions), HttpRule(REF, path="/"))
    assert forwarded(decision, asked) == ()


def test_two_rules_that_add_the_same_add_it_once() -> None:
    asked = request((NAME, b"other"))
    twice = [HttpRule(REF, path=path, header_matches=(HeaderRule("X-Token", "v", Mismatch.ADD),)) for path in "/."]
    assert forwarded(judge(asked, *twice), asked) == ((NAME, b"other"), (NAME, b"v"))


REQUIRING = [
    HttpRule(REF, headers=(HeaderMatch("x-token", "right"),)),
    HttpRule(REF, headers=(HeaderMatch("x-token", "r.*", "r.*"),)),
    HttpRule(REF, header_matches=(HeaderRule("X-Token", "right", Mismatch.FAIL),)),
]


@pytest.mark.parametrize("rule", REQUIRING)
def test_what_is_required_must_reach_the_server(rule: HttpRule) -> None:
    """Not a header that the next proxy removes (RFC 9110 7.6.1), nor one with a variant that some servers read."""
    assert judge(request(RIGHT), rule).allowed
    assert judge(request(RIGHT, (b"connection", b"keep-alive")), rule).allowed
    assert not judge(request(RIGHT, (b"connection", b"keep-alive, X-Token")), rule).allowed
    assert not judge(request(RIGHT, (b"connection", b"close"), (b"connection", b" x_token ")), rule).allowed
    for twin in (b"x_token", b"x.token", b"x~token", b"x'token"):
        assert not judge(request(RIGHT, (twin, b"right")), rule).allowed


def test_headers_of_a_connection_are_named_there_rightly() -> None:
    asked = request((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
    assert judge(asked, HttpRule(REF, headers=(HeaderMatch("upgrade", "websocket"),))).allowed
    assert judge(asked, HeaderRule("Upgrade", "websocket", Mismatch.FAIL)).allowed


def test_what_one_rule_deletes_and_another_adds_a_third_deletes_again() -> None:
    actions = (
        HeaderRule("X-Token", "a", Mismatch.DELETE),
        HeaderRule("X-Token", "b", Mismatch.ADD),
        HeaderRule("X-Token", "c", Mismatch.DELETE),
    )
    for asked in (request(), request(WRONG)):
        assert forwarded(judge(asked, *actions), asked) == ()


def test_a_request_is_judged_by_itself_alone() -> None:
    """The rewrite of one request does not affect the next one with the same request line."""
    table = HttpTable((HttpRule(REF, path="/", header_matches=(HeaderRule("X-Token", "v", Mismatch.REPLACE),)),))
    first, second = table.judge(request()), table.judge(request((NAME, b"v")))
    assert first.rewrite is not None
    assert second.rewrite is None


@pytest.mark.parametrize("option", [b"x-token", b"close, X-Token", b"x_token", b"keep-alive ,\tx-Token"])
@pytest.mark.parametrize("mismatch", [Mismatch.ADD, Mismatch.REPLACE])
def test_what_connection_names_cannot_be_written(mismatch: Mismatch, option: bytes) -> None:
    """RFC 9110 7.6.1: the next proxy would remove it, and the server would see a request without the header."""
    rule = HeaderRule("X-Token", "right", mismatch)
    for sent in ((), (RIGHT,)):
        decision = judge(request((b"connection", option), *sent), rule)
        assert not decision.allowed
        assert "is listed in Connection" in decision.reason
    assert judge(request((b"connection", b"close, x-other")), rule).allowed


def test_the_receiver_judges_what_the_sender_makes_of_it() -> None:
    def side(*rules: HttpRule) -> PortPolicy:
        return PortPolicy(Decision(Verdict.REDIRECTED, REF), (HttpTable(rules), Decision(Verdict.DROPPED, REF)))

    egress = side(HttpRule(REF, header_matches=(HeaderRule("X-Token", "right", Mismatch.REPLACE),)))
    needs = HttpRule(REF, header_matches=(HeaderRule("X-Token", "right"), HeaderRule("X-B", "b", Mismatch.ADD)))
    asked = request(WRONG)
    assert evaluate_l7(egress, side(needs), asked).verdict is Verdict.FORWARDED
    assert asked.rewrite is not None
    assert edited(asked.headers, asked.rewrite.edits)[1:] == [RIGHT, (b"x-b", b"b")]
    assert asked.headers[1] == WRONG  # the original request stays unchanged
    alone = request(WRONG)
    assert evaluate_l7(None, side(needs), alone).verdict is Verdict.DROPPED
    assert alone.rewrite is None


def test_a_plain_allow_lets_all_pass_and_header_rules_still_act(bench: Bench) -> None:
    """As in Cilium: rules with header actions run for their effect although any request passes."""
    http = "rules: {http: [{path: /a, headerMatches: [{name: X-Token, value: right, mismatch: REPLACE}]}]}"
    land = bench.enforce(
        f"ingress: [{{toPorts: [{{ports: [{{port: '80', protocol: TCP}}], {http}}}]}}]",
        "ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]",
    )
    port = land.port("a")
    seen = {}
    for path in ("/a", "/b"):
        asked = bench.request(f"GET {path}")
        assert evaluate_l7(None, port, asked).verdict is Verdict.FORWARDED
        seen[path] = asked.rewrite
    assert seen["/b"] is None
    assert seen["/a"] is not None
    assert [edit.kind for edit in seen["/a"].edits] == [EditKind.SET]


def test_a_secret_is_not_shown_by_what_holds_it() -> None:
    rule = HeaderRule("X-Token", None, Mismatch.REPLACE, SecretName("default", "s"), Sealed(b"hunter2"))
    item = HttpRule(REF, header_matches=(rule,))
    decision = judge(request(WRONG), item)
    assert decision.rewrite is not None
    refused = judge(request(WRONG), replace(rule, mismatch=Mismatch.FAIL))
    for shown in (rule, item, decision, refused, decision.rewrite.edits[0]):
        assert "hunter2" not in f"{shown} {shown!r}"
    assert str(rule) == "X-Token: [redacted] (secret default/s), else REPLACE"
    assert str(decision.rewrite.edits[0]) == "header X-Token set: [redacted]"
    assert decision.rewrite.edits[0].value == b"hunter2"


def test_rules_cross_the_link_whole() -> None:
    rule = HttpRule(
        REF, header_matches=(HeaderRule("X-T", "v", Mismatch.ADD, SecretName("a", "b"), Sealed(b"\xc3\xa9")),)
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(rule), type=HttpRule) == rule


# --- documents -------------------------------------------------------------------------------------------------------


def http(match: str) -> str:
    return (
        "ingress: [{toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /, headerMatches: "
        f"[{match}]}}]}}}}]}}]"
    )


AT = "spec.ingress[0].toPorts[0].rules.http[0].headerMatches[0]"
BAD = [
    ("{}", AT, "Header name missing"),
    ("{name: ''}", AT, "Header name missing"),
    ("{value: x}", AT, "Header name missing"),
    ("{name: X-A, mismatch: STRIP}", f"{AT}.mismatch", "Invalid header action: STRIP"),
    ("{name: X-A, mismatch: log}", f"{AT}.mismatch", "Invalid header action: log"),
    ("{name: X-A, secret: {}}", f"{AT}.secret", "Secret name missing"),
    ("{name: X-A, secret: {namespace: default, name: ''}}", f"{AT}.secret", "Secret name missing"),
    ("{name: X-A, secret: {name: ../x}}", f"{AT}.secret.name", "is not a valid Secret name"),
    ("{name: X-A, secret: {name: x, namespace: a/b}}", f"{AT}.secret.namespace", "is not a valid namespace"),
    ("{name: X-A, secret: {name: x, key: y}}", f"{AT}.secret.key", "unknown field"),
    ("{name: 'X A'}", f"{AT}.name", "is not a header name"),
    ('{name: "X-A\\r\\nX-B"}', f"{AT}.name", "is not a header name"),
    ("{name: ':path'}", f"{AT}.name", "is not a header name"),
    ('{name: X-A, value: "a\\r\\nX-B: c"}', f"{AT}.value", "the value contains a line break"),
    ('{name: X-A, value: "a\\nb", mismatch: LOG}', f"{AT}.value", "the value contains a line break"),
    ('{name: X-A, value: "a\\0b"}', f"{AT}.value", "the value contains a line break or a NUL"),
    ('{name: X-A, value: "a\\x01b"}', f"{AT}.value", "the value contains a control character"),
    ("{name: X-A, value: ' a', mismatch: ADD}", AT, "begins or ends with whitespace"),
    ("{name: X-A, value: 1}", f"{AT}.value", "must be a string, not a number"),
    ("{name: X-A, matches: x}", f"{AT}.matches", "unknown field"),
]


@pytest.mark.parametrize(("match", "at", "message"), BAD, ids=[row[0] for row in BAD])
def test_1_6_what_is_wrong_is_told_with_its_field(match: str, at: str, message: str, bench: Bench) -> None:
    with pytest.raises(PolicyError, match=re.escape(message)) as caught:
        lang.parse(bench.cnp(http(match)))
    assert caught.value.at == at
    assert not caught.value.unsupported


@pytest.mark.parametrize("mismatch", ["ADD", "DELETE", "REPLACE"])
@pytest.mark.parametrize("name", sorted({*FRAMING, "Content_Length", "TRANSFER-ENCODING", "Host", "transfer_encoding"}))
def test_headers_that_frame_the_message_are_not_changed(name: str, mismatch: str, bench: Bench) -> None:
    with pytest.raises(PolicyError, match="is used for framing or routing of the request and cannot be changed"):
        lang.parse(bench.cnp(http(f"{{name: {name}, value: '1', mismatch: {mismatch}}}")))
    for harmless in ("LOG", "''"):
        assert lang.parse(bench.cnp(http(f"{{name: {name}, value: '1', mismatch: {harmless}}}")))


def test_where_a_document_is_wrong_its_line_is_told(bench: Bench) -> None:
    lines = {AT: 17}
    fault = lang.faults(bench.cnp(http("{value: x}")))[0]
    assert (fault.at, lines.get(fault.at)) == (AT, 17)


def test_a_secret_is_of_the_policys_own_namespace_unless_it_says_otherwise(bench: Bench) -> None:
    (rule,) = lang.parse(bench.cnp(http("{name: X-A, secret: {name: s}}"), namespace="shop"))
    assert rule.http is not None
    assert rule.http[0].header_matches[0].secret == SecretName("shop", "s")
    (wide,) = lang.parse(bench.ccnp(http("{name: X-A, secret: {name: s}}")))
    assert wide.http is not None
    assert wide.http[0].header_matches[0].secret == SecretName("", "s")


NOTED = [
    ("{name: X-A, value: 'a.*'}", "the value is matched literally: headerMatches does not support regular expressions"),
    ("{name: X-A, value: 'a '}", "leading or trailing whitespace"),
    ("{name: X-A, mismatch: REPLACE}", "REPLACE adds an empty header"),
    ("{name: X-A, mismatch: DELETE}", "DELETE has no effect"),
    ("{name: X-A, secret: {name: s, namespace: vault}}", "refused unless the agent's secrets_namespace is vault"),
]


@pytest.mark.parametrize(("match", "note"), NOTED, ids=[row[0] for row in NOTED])
def test_what_may_surprise_is_noted(match: str, note: str, bench: Bench) -> None:
    assert note in " ".join(each.message for each in lang.notes(bench.cnp(http(match))))


def test_an_ordinary_item_is_not_remarked_upon(bench: Bench) -> None:
    assert not lang.notes(bench.cnp(http("{name: X-A, value: right-1.2, mismatch: REPLACE}")))


# --- incidents of other proxies


@pytest.mark.parametrize("first", [b"right", b"wrong"])
@pytest.mark.parametrize("mismatch", [Mismatch.FAIL, Mismatch.REPLACE])
def test_cve_2020_25017_and_cve_2026_26308_every_repeat_counts(mismatch: Mismatch, first: bytes) -> None:
    """Envoy checked only the first of repeated headers: the right one before (or after) a wrong one let both
    pass. Here both together are the value."""
    second = b"wrong" if first == b"right" else b"right"
    for sent in (((NAME, first), (NAME, second)), ((NAME, first + b", " + second),)):
        asked = request(*sent)
        decision = judge(asked, HeaderRule("X-Token", "right", mismatch))
        if mismatch is Mismatch.FAIL:
            assert not decision.allowed
        else:
            assert forwarded(decision, asked) == (RIGHT,)


@pytest.mark.parametrize("value", [b"\xff", b"right\x80", b"\xc0\xaf", b"r\xefght", "ríght".encode()])
def test_cve_2026_73552_obs_text_never_satisfies(value: bytes) -> None:
    """Envoy's pattern on a header failed open on non-ASCII bytes."""
    asked = request((NAME, value))
    assert not judge(asked, HeaderRule("X-Token", "right")).allowed
    assert forwarded(judge(asked, HeaderRule("X-Token", "right", Mismatch.REPLACE)), asked) == (RIGHT,)
    assert forwarded(judge(asked, HeaderRule("X-Token", "right", Mismatch.DELETE)), asked) == ()


@pytest.mark.parametrize("value", ["a\r\nX-Admin: 1", "a\nX-Admin: 1", "a\rX-Admin: 1", "a\0"])
def test_cve_2023_27493_no_written_value_ends_its_line(value: str, bench: Bench) -> None:
    """Envoy wrote values into headers unchecked. Ours come from policies and Secrets only, and are checked."""
    written = value.replace("\r", "\\r").replace("\n", "\\n").replace("\0", "\\0")
    for mismatch in ("ADD", "REPLACE"):
        with pytest.raises(PolicyError, match="the value contains a line break or a NUL"):
            lang.parse(bench.cnp(http(f'{{name: X-A, value: "{written}", mismatch: {mismatch}}}')))
