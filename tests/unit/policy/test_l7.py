"""The kinds of L7 rules: each has a name and a reader; it is enforced by a table and a gate, or refused by name.

A kind of this test's own passes from rules to its gate without a change of any other code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import msgspec
import pytest

from l7proxy.gate.actions import Action as GateAction
from l7proxy.gate.actions import Close, Connect, Gate, ToServer
from l7proxy.gate.clock import Clock
from l7proxy.gate.detect import GATES, Judge, gate_for
from l7proxy.gate.options import HttpOptions
from l7proxy.gate.tcp import TcpGate
from l7proxy.model.endpoint import Endpoint
from l7proxy.model.http import Request
from l7proxy.model.identity import Identity
from l7proxy.model.ids import EndpointId, IdentityId
from l7proxy.model.labels import EVERYTHING, LabelSet
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, Direction, Protocol, Verdict
from l7proxy.policy import decide, lang
from l7proxy.policy.combine import evaluate_l4, evaluate_l7
from l7proxy.policy.compile import compile_policies
from l7proxy.policy.decide import PortPolicy
from l7proxy.policy.decision import Decision
from l7proxy.policy.http_table import HttpTables
from l7proxy.policy.l7 import KINDS, UNKNOWN, Kind, kind_of
from l7proxy.policy.rules import DnsRule, DnsRules, HttpRule, HttpRules, L7Rules, PortMatch, Rule, ServerNames
from l7proxy.policy.tables import Entry

REF = RuleRef("CiliumNetworkPolicy", "default", "p", "spec.ingress[0]")
PEER, PORT = 300, 7
CONN = Conn("10.0.0.1", 40000, "10.0.0.2", PORT, PEER, 301)
EXAMPLES: dict[type, L7Rules] = {
    HttpRules: HttpRules((HttpRule(REF, method="GET", number=1),)),
    DnsRules: DnsRules((DnsRule("example.com"), DnsRule(pattern="*.example.com"))),
    ServerNames: ServerNames(("example.com",)),
}
WRITTEN: dict[type, dict[str, Any]] = {
    HttpRules: {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}},
    DnsRules: {
        "ports": [{"port": "53", "protocol": "UDP"}],
        "rules": {"dns": [{"matchName": "example.com"}, {"matchPattern": "*.example.com"}]},
    },
    ServerNames: {"ports": [{"port": "443", "protocol": "TCP"}], "serverNames": ["example.com"]},
}


def test_the_registry_has_each_member_of_the_union_and_nothing_else() -> None:
    assert set(KINDS) == set(get_args(L7Rules)) == set(EXAMPLES)
    keys, names = [kind.key for kind in KINDS.values()], [kind.name for kind in KINDS.values()]
    assert all(keys) and all(names) and len(set(keys)) == len(set(names)) == len(KINDS)


def test_each_enforced_kind_has_a_gate_and_no_other() -> None:
    assert set(GATES) == {kind.key for kind in KINDS.values() if kind.enforced}


@pytest.mark.parametrize("rules", EXAMPLES.values(), ids=lambda rules: kind_of(rules).key)
def test_entries_of_each_kind_pass_the_link_under_its_key(rules: L7Rules) -> None:
    entry = Entry(Action.REDIRECT, REF, protocol=6, l7=rules)
    sent = msgspec.msgpack.encode(entry)
    assert msgspec.msgpack.decode(sent, type=Entry) == entry
    assert msgspec.msgpack.decode(sent)["l7"]["kind"] == kind_of(rules).key


def read(cell: dict[str, Any]) -> lang.Read:
    metadata = {"name": "p", "namespace": "default"}
    spec = {"endpointSelector": {}, "egress": [{"toPorts": [cell]}]}
    return lang.read({"apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": metadata, "spec": spec})


@pytest.mark.parametrize("rules", EXAMPLES, ids=lambda rules: KINDS[rules].key)
def test_each_kind_is_read_and_is_enforced_or_refused_by_name(rules: type) -> None:
    found = read(WRITTEN[rules])
    (rule,) = found.rules
    assert type(rule.l7) is rules
    if rules is not HttpRules:
        assert rule.l7 == EXAMPLES[rules]
    if KINDS[rules].enforced:
        assert not found.unenforced and compiled(rule).steps
    else:
        (error,) = found.unenforced
        assert error.unsupported
        assert str(error).endswith(KINDS[rules].unenforced)
        assert not compiled(rule).l4.allowed


class Words(msgspec.Struct, frozen=True, tag_field="kind", tag="words"):
    """Rules of a line protocol: the lines that are allowed."""

    words: tuple[bytes, ...]


@dataclass(frozen=True)
class WordTable:
    parts: Sequence[Words]
    tables: HttpTables
    refs = (REF,)

    def make_ready(self) -> None:
        pass

    def judge(self, asked: object) -> Decision:
        if any(asked in part.words for part in self.parts):
            return Decision(Verdict.FORWARDED, REF)
        return Decision(Verdict.DROPPED, REF, "this word is not allowed")


class WordGate(TcpGate):
    """Passes what the policy allows, and closes on the first other word."""

    def __init__(self, judge: Judge, conn: Conn, clock: Clock, options: HttpOptions, direction: Direction) -> None:
        super().__init__()
        self._judge = judge

    def from_client(self, data: bytes) -> list[GateAction]:
        allowed = self._judge(data).verdict is Verdict.FORWARDED
        return [ToServer(data)] if allowed else [Close()]


WORDS = Kind("words", "word", Protocol.SCTP, enforced=True, table=WordTable)


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> Kind:
    monkeypatch.setitem(KINDS, Words, WORDS)
    monkeypatch.setitem(GATES, WORDS.key, WordGate)
    return WORDS


def allowing(l7: object, *, action: Action = Action.ALLOW) -> Rule:
    ports = (PortMatch(frozenset({Protocol.TCP.value, Protocol.SCTP.value}), PORT, PORT),)
    return Rule(REF, EVERYTHING, Direction.INGRESS, action, ports=ports, l7=l7)  # type: ignore[arg-type]


def compiled(*rules: Rule) -> PortPolicy:
    """Of a pod with these rules, for one peer and the port that they name."""
    pod = Endpoint(EndpointId(5), "default", "pod", IdentityId(301), LabelSet.of({}), ("10.0.0.2",))
    peer = Identity(IdentityId(PEER), LabelSet.of({}))
    policies = compile_policies([replace(rule, subject=EVERYTHING) for rule in rules], [pod], {PEER: peer})
    (rule, *_) = rules
    (match,) = rule.ports or ()
    return decide.port(policies[5].direction(rule.direction), PEER, min(match.protocols), match.first)


def gate(policy: PortPolicy) -> Gate:
    clock = Clock(lambda: 0, lambda: 0)
    return gate_for(policy.kind, partial(evaluate_l7, None, policy), CONN, clock, HttpOptions())


def test_another_kind_reaches_its_gate(words: Kind) -> None:
    policy = compiled(allowing(Words((b"one",))), allowing(Words((b"two",))))
    assert policy.kind is words and policy.redirects
    assert evaluate_l4(None, policy).verdict is Verdict.REDIRECTED
    made = gate(policy)
    assert isinstance(made, WordGate) and made.started() == [Connect()]
    assert made.from_client(b"one") == [ToServer(b"one")]
    assert made.from_client(b"two") == [ToServer(b"two")]
    assert made.from_client(b"three") == [Close()]


def test_the_same_rules_without_an_entry_in_the_registry_deny_what_they_cover() -> None:
    policy = compiled(allowing(Words((b"one",))))
    assert policy.kind is None and policy.l4.verdict is Verdict.DROPPED
    assert f"{UNKNOWN.name} rules" in policy.l4.reason


def test_a_kind_without_a_gate_denies_what_another_rule_allows(words: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, Words, Kind("words", "word"))
    policy = compiled(allowing(Words((b"one",))), allowing(None))
    assert policy.l4.verdict is Verdict.DROPPED
    assert "word rules: is not supported yet" in policy.l4.reason


def test_one_connection_cannot_be_inspected_for_two_kinds(words: Kind) -> None:
    http, word = allowing(EXAMPLES[HttpRules]), allowing(Words((b"one",)))
    mixed = evaluate_l4(None, compiled(http, word))
    assert mixed.verdict is Verdict.DROPPED
    assert "both HTTP rules and word rules apply" in mixed.reason or "both word rules and HTTP rules" in mixed.reason
    both = evaluate_l4(compiled(http), compiled(word))
    assert both.verdict is Verdict.DROPPED and "both HTTP rules and word rules apply" in both.reason
    assert evaluate_l4(compiled(http), compiled(http)).verdict is Verdict.REDIRECTED


def test_a_question_of_another_kind_is_denied(words: Kind) -> None:
    """A gate may ask once more before it learns that its connection has rules of another kind now."""
    http, word = compiled(allowing(EXAMPLES[HttpRules])), compiled(allowing(Words((b"one",))))
    assert judged(http, Request(b"GET", b"/", b"h", [])) is Verdict.FORWARDED
    assert judged(http, b"one") is Verdict.DROPPED
    assert judged(word, b"one") is Verdict.FORWARDED
    assert judged(word, Request(b"GET", b"/", b"h", [])) is Verdict.DROPPED


def judged(policy: PortPolicy, asked: object) -> Verdict:
    found: PolicyVerdict = evaluate_l7(None, policy, asked)
    return found.verdict
