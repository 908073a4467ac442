"""The state of parsing one document: the names of its rules, notes and faults, and its cost.

Tenants write documents that every node parses, so the cost of each document is limited.
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
"""Rules and HTTP rules in one document, which take about 3 s to parse and compile. A Kubernetes API object has at most
1.5 MiB (etcd's --max-request-bytes), which is 75 bytes for each."""
IN_VAIN: Final = pattern.MAX_PROGRAM // 20
"""Cost counted for a pattern that RE2 compiled and then rejected; a header value may be one, and is then a literal."""
MAX_SELECTED: Final = 100
"""References by label in one document: each may match thousands of Services or prefixes."""


@dataclass(slots=True)
class Document:
    """`namespace` is "" for a cluster-wide document. One of `faults` is enough to reject it; all are reported together.

    `stopped`: parsing ended early because of too many faults.
    `unenforced` are valid parts that cannot be enforced: they are reported, and the traffic that they cover is denied.
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
        """Count a rule and return its reference; PolicyError when the document has more than MAX_RULES."""
        self.rules += 1
        if self.rules > MAX_RULES:
            raise PolicyError(f"more than {MAX_RULES} rules in one document: split it into several", at=path)
        return self.ref(path)

    def note(self, at: Field, message: str, code: str = "") -> None:
        self.notes.append(Note(at.at, message, code))

    def unenforceable(self, at: Field, why: str) -> str:
        """Record a part that cannot be enforced. Returns the reason, for the denial of what it covers."""
        self.unenforced.append(PolicyError(why, at=at.at, unsupported=True))
        return str(self.unenforced[-1])

    def selects(self, at: Field) -> None:
        """Count a reference by label, which may match many objects; PolicyError when there are too many."""
        self.selected += 1
        if self.selected > MAX_SELECTED:
            at.fail(f"too many references by label in one document, the max is {MAX_SELECTED}")

    def collect(self, read: Callable[[], Iterable[Rule]]) -> list[Rule]:
        """The rules of one part of the document."""
        return self.part(lambda: list(read()), []) if self.rules <= MAX_RULES else []

    def part(self, read: Callable[[], T], otherwise: U) -> T | U:
        """Parse one part of the document. A fault ends only that part and gives `otherwise`."""
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
        """PatternError unless RE2 can use the pattern and all patterns of the document are within MAX_PROGRAM."""
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
