"""The decision of one direction, and the text form of policies and ports in its reason."""

from __future__ import annotations

from dataclasses import dataclass

from l7proxy.model.http import Rewrite
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import DropReason, Protocol, Verdict


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and the rule behind it.

    `ref` is the rule that allowed or denied; when no rule matched, the policy that denies by default or, for a
    request, the rule that came nearest; None when no policy applies. `also` are other rules with the same result.
    `reason` is for people and set on every denial, also audited ones. `match_type` is that of the deciding entry,
    0 if none. `log` are the texts that the policies of the deciding rules add to the flow log. `rewrite` are the
    changes that the allowing rules make to a request.
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


def rule_name(ref: RuleRef) -> str:
    """`policy NAMESPACE/NAME PATH (FILE:LINE)`."""
    place = f" ({ref.file}:{ref.line})" if ref.file else ""
    return f"{policy_name(ref)} {ref.rule}{place}"


def port_name(protocol: int, number: int) -> str:
    """`80/TCP`, `8/ICMPv4` (the type; `3.4/ICMPv4` with a code), `protocol 89` (without a name in policies)."""
    if protocol in (Protocol.ICMP, Protocol.ICMPV6):
        kind, code = divmod(number, 256)
        family = "ICMPv4" if protocol == Protocol.ICMP else "ICMPv6"
        return f"{kind}.{code}/{family}" if code else f"{kind}/{family}"
    try:
        return f"{number}/{Protocol(protocol).name}"
    except ValueError:
        return f"protocol {protocol}"
