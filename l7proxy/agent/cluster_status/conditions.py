"""The words of status: what a policy's conditions and Events say. Pure.

`Valid` is Cilium's type: whether the policy can be read. `l7proxy.io/Enforced` says whether all of it is enforced on
all nodes, and if not, why. It is False in audit mode, too: nothing is refused then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from l7proxy.agent.cluster_status.ledger import Tally
from l7proxy.agent.cluster_status.summary import one_line
from l7proxy.cluster.policy_status import PolicyPhase, PolicyStatus

VALID: Final = "Valid"
ENFORCED: Final = "l7proxy.io/Enforced"
LONGEST: Final = 1000
"""Characters of a message: Events have a limit of 1024 bytes for theirs, and status is for people."""
WITH_STATUS: Final = frozenset(("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"))
"""Kinds that have conditions in their status; the others get Events."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One item of `status.conditions`, without its time. `status`: True or False, as text. `reason`: CamelCase."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Both conditions of one version of a policy. `settled`: nothing about it is expected to change by itself."""

    generation: int
    valid: Condition
    enforced: Condition
    settled: bool

    @property
    def worst(self) -> Condition:
        """The one to tell where there is room for one only."""
        return self.enforced if self.valid.status == "True" else self.valid

    @property
    def conditions(self) -> tuple[Condition, Condition]:
        return self.valid, self.enforced


def verdict(policy: PolicyStatus, tally: Tally, fault: str = "", *, audit: bool = False) -> Verdict:
    """`fault`: why the newest version of the policy cannot be used, when an earlier one stays in force. `audit`: its
    namespace is in audit mode."""
    policy = replace(policy, audit=policy.audit or audit)
    if fault and policy.state is not PolicyPhase.INVALID:
        stays = f"generation {policy.generation} stays in force {_place(policy, tally)[0]}"
        invalid = _condition(VALID, False, "Invalid", fault)
        enforced = _condition(
            ENFORCED, False, "OlderVersion", f"{stays}{_in_audit(policy)}; the newest version is invalid: {fault}"
        )
        return Verdict(policy.generation, invalid, enforced, settled=True)
    if policy.state is PolicyPhase.INVALID:
        invalid = _condition(VALID, False, "Invalid", policy.reason)
        enforced = _condition(ENFORCED, False, "Invalid", _refusal(policy))
        return Verdict(policy.generation, invalid, enforced, settled=True)
    valid = _condition(VALID, True, "Valid", "the policy was read without a fault")
    if policy.state is PolicyPhase.REFUSED:
        enforced = _condition(ENFORCED, False, "NotSupported", _refusal(policy))
        return Verdict(policy.generation, valid, enforced, settled=True)
    if policy.state is PolicyPhase.STAGED:
        enforced = _condition(ENFORCED, False, "Staged", "a staged policy is for preview and never enforced")
        return Verdict(policy.generation, valid, enforced, settled=True)
    return Verdict(policy.generation, valid, _enforced(policy, tally), settled=_everywhere(policy, tally))


def _everywhere(policy: PolicyStatus, tally: Tally) -> bool:
    return 0 < tally.nodes == tally.enforcing and (not has_http(policy) or tally.l7 == tally.nodes)


def _enforced(policy: PolicyStatus, tally: Tally) -> Condition:
    """The condition of a policy that is accepted, at least in part."""
    counted, reason = _place(policy, tally)
    message = f"enforced {counted} at generation {policy.generation}"
    if has_http(policy) and tally.enforcing:
        live = "L7 live" if tally.l7 == tally.enforcing else f"L7 live on {tally.l7} of {tally.enforcing}"
        message += f", {live}"
    if policy.state is PolicyPhase.PARTLY:
        reason, message = "PartlyEnforced", f"partly {message}{_in_audit(policy)}: {policy.reason}"
    elif policy.audit:
        reason, message = "Audit", f"{message}{_in_audit(policy)}"
        message += f"; {policy.reason}" if policy.reason else ""
    lacking = [*_lacking("not on", tally.missing, tally.nodes - tally.enforcing)]
    if has_http(policy):
        lacking += _lacking("L7 not live on", tally.l7_missing, tally.enforcing - tally.l7)
    return _condition(ENFORCED, reason == "Enforced", reason, "; ".join((message, *lacking)))


def _in_audit(policy: PolicyStatus) -> str:
    return ", in audit mode (what it would refuse passes and is reported)" if policy.audit else ""


def _refusal(policy: PolicyStatus) -> str:
    """What becomes of the traffic that a policy selects which cannot be enforced."""
    return f"{policy.reason}; what it covers " + ("passes and is reported: audit mode" if policy.audit else "is denied")


def _place(policy: PolicyStatus, tally: Tally) -> tuple[str, str]:
    """(on how many nodes, the reason of the condition)."""
    where = f"on {tally.enforcing} of {tally.nodes} node{'' if tally.nodes == 1 else 's'}"
    if tally.enforcing < tally.nodes or not tally.nodes:
        return where, "NotOnAllNodes"
    return where, "Enforced" if _everywhere(policy, tally) else "L7NotLive"


def _lacking(words: str, named: Iterable[tuple[str, str]], count: int) -> Iterable[str]:
    shown = [f"{node} ({why})" for node, why in named]
    if shown:
        more = f" and {count - len(shown)} more" if count > len(shown) else ""
        yield f"{words} {', '.join(shown)}{more}"


def has_http(policy: PolicyStatus) -> bool:
    return any(rule.l7 is not None for rule in policy.rules)


def _condition(of: str, holds: bool, reason: str, message: str) -> Condition:
    return Condition(of, "True" if holds else "False", reason, one_line(message, LONGEST))
