"""One direction's answer to one question, and how it names what it speaks of."""

from __future__ import annotations

from dataclasses import dataclass

from l7proxy.model.http import Rewrite
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import DropReason, Protocol, Verdict


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and who is answerable for it.

    `ref` is the rule that allowed or denied; when nothing allowed, the policy that refuses by default or, for a
    request, the rule that came nearest. None when no policy governs. `also` are others that said the same.
    `reason` is for humans and set on every denial, audited ones included. `match_type` is that of the entry that
    decided, 0 if none did. `log` are the words that the deciding rules' policies want in the flow log. `rewrite` is
    what the rules that let a request pass want changed in it.
    """

    verdict: Verdict
    ref: RuleRef | None = None
    reason: str = ""
    drop_reason: DropReason = DropReason.UNKNOWN
    also: tuple[RuleRef, ...] = ()
    match_type: int = 0
    log: tuple[str, ...] = ()
    rewrite: Rewrite | None = None

    @property
    def allowed(self) -> bool:
        return self.verdict is not Verdict.DROPPED


def policy_name(ref: RuleRef) -> str:
    return f"policy {ref.namespace}/{ref.name}" if ref.namespace else f"policy {ref.name}"


def port_name(protocol: int, number: int) -> str:
    """`80/TCP`, `8/ICMPv4` (the type; `3.4/ICMPv4` with a code), `protocol 89` (one that policies do not name)."""
    if protocol in (Protocol.ICMP, Protocol.ICMPV6):
        kind, code = divmod(number, 256)
        family = "ICMPv4" if protocol == Protocol.ICMP else "ICMPv6"
        return f"{kind}.{code}/{family}" if code else f"{kind}/{family}"
    try:
        return f"{number}/{Protocol(protocol).name}"
    except ValueError:
        return f"protocol {protocol}"
