"""The kinds of L7 rules, each with what the rest of the code must know of it.

An enforced kind has a table, which decides, and a gate in `gate.detect.GATES`, which reads the protocol. The rules of
any other kind are reported by the language readers, and `compile` denies what they cover.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from typing import Protocol as Interface

from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action, DropReason, Protocol, Verdict
from l7proxy.policy.decision import Decision
from l7proxy.policy.http_table import HttpTables
from l7proxy.policy.rules import DnsRules, HttpRules, Rule, ServerNames

DENIED: Final = "is not supported yet: traffic that its rule covers is denied"


class Table(Interface):
    """The rules of one kind for one flow. `judge` denies what no rule matches, and what is of another kind."""

    @property
    def refs(self) -> Iterable[RuleRef]: ...

    def make_ready(self) -> object: ...

    def judge(self, asked: object) -> Decision: ...


class Refusing:
    """The table of rules that nothing enforces: denies everything."""

    refs = ()

    def __init__(self, parts: Sequence[object], tables: HttpTables) -> None:
        pass

    def make_ready(self) -> None:
        pass

    def judge(self, asked: object) -> Decision:
        return Decision(Verdict.DROPPED, reason="its L7 rules cannot be enforced", drop_reason=DropReason.POLICY_DENIED)


@dataclass(frozen=True, slots=True)
class Kind:
    """`key` names the kind in JSON and in `GATES`, `name` in messages. `protocol`: the IP protocol that carries it.

    `table` makes one table of the rules of several entries; `HttpTables` are those of the policy snapshot. `enforced`:
    there is a gate for it; else `unenforced` tells the author of a policy what happens instead.
    """

    key: str
    name: str
    protocol: int = Protocol.TCP
    enforced: bool = False
    table: Callable[[Sequence[Any], HttpTables], Table] = Refusing
    unenforced: str = DENIED


def _http(parts: Sequence[HttpRules], tables: HttpTables) -> Table:
    return tables.of(*(part.rules for part in parts))


KINDS: Final[dict[type, Kind]] = {
    HttpRules: Kind("http", "HTTP", enforced=True, table=_http),
    DnsRules: Kind("dns", "DNS", Protocol.UDP, unenforced="is not supported yet: no queries are allowed"),
    ServerNames: Kind("server_names", "server name"),
}
UNKNOWN: Final = Kind("", "unknown")


def kind_of(rules: object) -> Kind:
    return KINDS.get(type(rules), UNKNOWN)


def enforceable(rule: Rule) -> Rule:
    """The rule, or one that denies what it covers if nothing enforces its L7 rules."""
    if rule.l7 is None or rule.action is not Action.ALLOW or kind_of(rule.l7).enforced:
        return rule
    return replace(rule, action=Action.DENY, refusal=rule.refusal or f"{kind_of(rule.l7).name} rules: {DENIED}")
