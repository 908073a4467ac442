"""One document being read: what its rules are named after, what is noted on the way, and how much it may cost.

A tenant writes documents for every node to read; none may keep the others' waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from l7proxy.errors import PolicyError
from l7proxy.model.ref import RuleRef
from l7proxy.policy.lang.fields import MAX_FAULTS, Field, Locate, Note
from l7proxy.policy.lang.options import DEFAULT, Options
from l7proxy.policy.match import pattern
from l7proxy.policy.rules import Rule

T = TypeVar("T")
U = TypeVar("U")
MAX_RULES: Final = 20_000
"""Rules and HTTP rules in one document, which take some 3 s to read and to compile. An object of Kubernetes' API is at
most 1.5 MiB (etcd's --max-request-bytes), so these are 75 bytes each."""
IN_VAIN: Final = pattern.MAX_PROGRAM // 20
"""What a pattern counts that RE2 compiled in vain: a header's value may be such a one, and is then just a literal."""
MAX_SELECTED: Final = 100
"""References by label in one document: each may mean thousands of Services or prefixes."""


@dataclass(slots=True)
class Document:
    """`namespace` is "" for a cluster-wide document. One of `faults` is enough to refuse it; all are told at once.

    `stopped`: there were so many that the rest was not read.
    `unenforced` are parts of it that we cannot enforce: valid, told, and refusing what they cover.
    """

    kind: str
    namespace: str
    name: str
    locate: Locate | None = None
    notes: list[Note] = field(default_factory=list)
    faults: list[PolicyError] = field(default_factory=list)
    stopped: bool = False
    unenforced: list[PolicyError] = field(default_factory=list)
    options: Options = DEFAULT
    program: int = 0
    selected: int = 0
    rules: int = 0

    def ref(self, path: str) -> RuleRef:
        file, line = self.locate(path) if self.locate else ("", 0)
        return RuleRef(self.kind, self.namespace, self.name, path, file, line)

    def counted_ref(self, path: str) -> RuleRef:
        """The reference of one more rule; PolicyError when the document has more than its share of them."""
        self.rules += 1
        if self.rules > MAX_RULES:
            raise PolicyError(f"more than {MAX_RULES} rules in one document: split it into several", at=path)
        return self.ref(path)

    def note(self, at: Field, message: str, code: str = "") -> None:
        self.notes.append(Note(at.at, message, code))

    def unenforceable(self, at: Field, why: str) -> str:
        """Why a part of the document refuses what it covers."""
        self.unenforced.append(PolicyError(why, at=at.at, unsupported=True))
        return str(self.unenforced[-1])

    def selects(self, at: Field) -> None:
        """A reference by label, to objects of which there may be many."""
        self.selected += 1
        if self.selected > MAX_SELECTED:
            at.fail(f"too many references by label in one document, the max is {MAX_SELECTED}")

    def collect(self, read: Callable[[], Iterable[Rule]]) -> list[Rule]:
        """The rules of one part of the document."""
        return self.part(lambda: list(read()), []) if self.rules <= MAX_RULES else []

    def part(self, read: Callable[[], T], otherwise: U) -> T | U:
        """What is read of one part of the document. A fault ends that part; the next one is read all the same."""
        if len(self.faults) < MAX_FAULTS:
            try:
                return read()
            except PolicyError as fault:
                if len(self.faults) < MAX_FAULTS:
                    self.faults.append(fault)
                    return otherwise
        self.stopped = True
        return otherwise

    def check_pattern(self, text: str) -> None:
        """PatternError unless RE2 can use the pattern and the document has not spent all it may on patterns."""
        if self.program <= pattern.MAX_PROGRAM:
            try:
                self.program += pattern.check(text)
            except pattern.PatternError as error:
                self.program += IN_VAIN * error.costly
                raise
        if self.program > pattern.MAX_PROGRAM:
            raise pattern.PatternError(
                f"the regular expressions of this document are too large: up to this one they need {self.program} RE2 "
                f"instructions, the limit is {pattern.MAX_PROGRAM}"
            )
