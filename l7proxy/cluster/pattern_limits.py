"""Limits the memory that patterns of policies use in workers, per endpoint and per node.

Each document has its own limit, but any number of documents may select one pod. Documents that exceed a limit are
refused, and deny what their HTTP rules cover. The choice does not depend on the order of arrival: documents are
admitted by size, those of the namespace with the smallest total first, so that no namespace starves the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from l7proxy.cluster.policy_status import PolicyPhase, PolicyStatus
from l7proxy.model.labels import LabelSet
from l7proxy.model.ref import RuleRef
from l7proxy.model.verdict import Action
from l7proxy.policy.match.pattern import MAX_PROGRAM, MAX_PROGRAM_OF_NODE
from l7proxy.policy.rules import Rule

Name = tuple[str, str, str]
"""Kind, namespace and name of a policy."""


def too_large(
    policies: Iterable[PolicyStatus], endpoints: Iterable[LabelSet], *, of_node: bool = True
) -> dict[Name, str]:
    """The policies whose patterns exceed a limit, with the reason. `endpoints`: labels of the endpoints.

    `of_node` False: the endpoints are on several nodes, so only the limit per endpoint applies.
    """
    asking = [policy for policy in policies if policy.program]
    if sum(policy.program for policy in asking) <= MAX_PROGRAM:
        return {}
    kinds, held, total = frozenset(endpoints), Counter[LabelSet](), 0
    found: dict[Name, str] = {}
    for policy in _in_order(asking):
        selected = _selected(policy, kinds)
        most = max((held[labels] for labels in selected), default=0)
        if most + policy.program > MAX_PROGRAM:
            found[_name(policy)] = _reason(policy, f"other policies of one endpoint use {most}", MAX_PROGRAM)
        elif selected and of_node and total + policy.program > MAX_PROGRAM_OF_NODE:
            found[_name(policy)] = _reason(policy, f"the endpoints of this node use {total}", MAX_PROGRAM_OF_NODE)
        elif selected:
            total += policy.program
            held.update(dict.fromkeys(selected, policy.program))
    return found


def refusing(policies: Sequence[PolicyStatus], refused: Mapping[Name, str]) -> tuple[PolicyStatus, ...]:
    """The same policies; refused ones get the reason, and rules that deny in place of their HTTP rules."""
    return tuple(
        replace(
            policy,
            state=PolicyPhase.PARTLY,
            reason="; ".join(part for part in (policy.reason, refused[_name(policy)]) if part),
            rules=without_http(policy.rules, refused),
        )
        if _name(policy) in refused
        else policy
        for policy in policies
    )


def without_http(rules: Iterable[Rule], refused: Mapping[Name, str]) -> tuple[Rule, ...]:
    """The rules, with DENY in place of the HTTP rules of refused policies."""
    return tuple(
        replace(rule, action=Action.DENY, l7=None, refusal=refused[_of(rule.ref)])
        if rule.http and _of(rule.ref) in refused
        else rule
        for rule in rules
    )


def _in_order(policies: Sequence[PolicyStatus]) -> list[PolicyStatus]:
    of_namespace = Counter[str]()
    for policy in policies:
        of_namespace[policy.namespace] += policy.program
    return sorted(policies, key=lambda one: (of_namespace[one.namespace], one.program, _name(one)))


def _selected(policy: PolicyStatus, kinds: Iterable[LabelSet]) -> list[LabelSet]:
    subjects = {rule.subject for rule in policy.rules if rule.http}
    return [labels for labels in kinds if any(subject.matches(labels) for subject in subjects)]


def _reason(policy: PolicyStatus, already: str, limit: int) -> str:
    return (
        f"its regular expressions need {policy.program} RE2 instructions, and {already} of the limit of {limit}; "
        "connections that its HTTP rules cover are refused"
    )


def _name(policy: PolicyStatus) -> Name:
    return policy.kind, policy.namespace, policy.name


def _of(ref: RuleRef) -> Name:
    return ref.kind, ref.namespace, ref.name
