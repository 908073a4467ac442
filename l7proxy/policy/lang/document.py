"""One document being read: what its rules are named after, and what is noted on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from l7proxy.errors import PolicyError
from l7proxy.model.ref import RuleRef
from l7proxy.policy.lang.fields import Field, Locate, Note
from l7proxy.policy.rules import Rule


@dataclass(frozen=True, slots=True)
class Document:
    """`namespace` is "" for a cluster-wide document. One of `faults` is enough to refuse it; all are told at once."""

    kind: str
    namespace: str
    name: str
    locate: Locate | None = None
    notes: list[Note] = field(default_factory=list)
    faults: list[PolicyError] = field(default_factory=list)

    def ref(self, path: str) -> RuleRef:
        file, line = self.locate(path) if self.locate else ("", 0)
        return RuleRef(self.kind, self.namespace, self.name, path, file, line)

    def note(self, at: Field, message: str) -> None:
        self.notes.append(Note(at.at, message))

    def collect(self, read: Callable[[], Iterable[Rule]]) -> list[Rule]:
        """The rules of one part of the document. A fault ends that part; the next one is read all the same."""
        try:
            return list(read())
        except PolicyError as fault:
            self.faults.append(fault)
            return []
