"""Names of rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BUILT_IN: Final = "built-in"
"""The kind of rules that are not written in any document."""


@dataclass(frozen=True, slots=True)
class RuleRef:
    """Where a rule is written; part of every verdict and flow that the rule decides.

    `rule` is the path of the field in the document (`spec.ingress[0].toPorts[0].rules.http[1]`). `file` and `line`
    are set when the document comes from a file.
    """

    kind: str
    namespace: str
    name: str
    rule: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        name = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {name} {self.rule}".rstrip()
