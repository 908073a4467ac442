r"""RE2 patterns: which ones are usable, and many of them against one text for the price of one.

Patterns match whole strings, case-sensitively, in RE2's UTF-8 mode (as Envoy does it): `.` and classes stand for one
Unicode character, so `/café/.` means what it says, and bytes that RE2 cannot read as UTF-8 (it lets encoded surrogates
pass) match nothing but `\C`. All our HTTP rules allow, so matching nothing is the closed answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import re2

MAX_PATTERN: Final = 8192
"""Bytes of one pattern. Real ones are below 1 KiB; a longer one is a mistake or an attack on the node's memory."""
PATTERN_MEMORY: Final = 1 << 20
"""RE2's budget for one pattern: some 10 000 instructions. Bounds what `(x{1000}){1000}` may cost in time, too."""
SET_MEMORY: Final = (8 << 20, 32 << 20, 64 << 20, 128 << 20)
"""RE2's budgets for one set, its state cache included: what a client can make us hold by sending ever new paths. A set
gets the first that it fits: thousands of patterns, which one by one would cost milliseconds, need more."""
MAX_PROGRAM: Final = 1 << 19
"""RE2 instructions in all patterns that one endpoint may be judged by, and so in those of one document. An instruction
of a set takes some 80 bytes of each worker, so this is 40 MiB, and a quarter of a second to compile. An ordinary path
makes 20 to 100: ten thousand of them fit."""
MAX_PROGRAM_OF_NODE: Final = 1 << 20
"""The same of all endpoints of a node together: 80 MiB of each worker."""

METACHARACTERS: Final = frozenset("\\^$.|?*+()[]{}")
_SHOWN: Final = 200
"""Characters of a pattern that a message repeats."""
_IN_GO: Final[Mapping[str, str]] = {
    "missing ]": "missing closing ]",
    "missing )": "missing closing )",
    "trailing \\": "trailing backslash at end of expression",
    "no argument for repetition operator": "missing argument to repetition operator",
    "invalid repetition size": "invalid repeat count",
    "bad repetition operator": "invalid nested repetition operator",
    "invalid perl operator": "invalid or unsupported Perl syntax",
    "invalid named capture group": "invalid named capture",
}
"""RE2's words → those of Go's regexp, which users of Cilium know; the other words are the same."""


_TOO_LARGE: Final = "pattern too large"
"""So RE2 begins what it says of a pattern that it has compiled up to its budget: in up to 0.1 s."""


class PatternError(ValueError):
    """RE2 cannot use this pattern; the text says why. `costly`: it was compiled in vain."""

    def __init__(self, what: str, *, costly: bool = False) -> None:
        super().__init__(what)
        self.costly = costly


def is_literal(pattern: str) -> bool:
    """True when the pattern can only match itself."""
    return METACHARACTERS.isdisjoint(pattern)


def check(pattern: str) -> int:
    """The size of the program RE2 makes of `pattern`; PatternError unless RE2 can use it within our limits.

    0 for a literal: no program is made of it.
    """
    try:
        size = len(pattern.encode())
    except UnicodeEncodeError as error:
        raise PatternError("is not valid Unicode") from error
    if size > MAX_PATTERN:
        raise PatternError(f"the regular expression has {size} bytes, the limit is {MAX_PATTERN}")
    if is_literal(pattern):
        return 0
    try:
        return int(re2.compile(pattern, _options(PATTERN_MEMORY)).programsize)
    except re2.error as error:
        raise PatternError(_as_go_says_it(error), costly=_text(error).startswith(_TOO_LARGE)) from error


class PatternSet:
    """Many patterns against one text. `find` gives the indices, in the order given, of those that match all of it.

    Literals are looked up in a dict. The rest is one RE2 Set, whose cost does not grow with their number; should it not
    fit its budget, they are tried one by one. A pattern that RE2 cannot use matches nothing (`broken` has it).
    """

    __slots__ = ("_literals", "_set", "_set_index", "_singles", "broken", "patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self.broken: list[str] = []
        self._literals: dict[bytes, list[int]] = {}
        self._singles: list[tuple[int, Any]] = []
        self._set: Any = None
        self._set_index: tuple[int, ...] = ()
        self._sort_out()

    def _sort_out(self) -> None:
        probe: Any = re2.Set.FullMatchSet(_options(SET_MEMORY[0]))
        real: list[int] = []
        for index, pattern in enumerate(self.patterns):
            text = pattern.encode("utf-8", "surrogatepass")
            if is_literal(pattern):
                self._literals.setdefault(text, []).append(index)
            elif len(text) <= MAX_PATTERN and _add(probe, text):
                real.append(index)
            else:
                self.broken.append(pattern)
        if not real:
            return
        self._set_index = tuple(real)
        self._set = _compiled(probe) or self._roomier()
        if self._set is None:
            self._try_one_by_one()

    def _roomier(self) -> Any:
        """The set within the next budgets, or None. RE2 has used up one that did not compile."""
        for memory in SET_MEMORY[1:]:
            roomy: Any = re2.Set.FullMatchSet(_options(memory))
            if all(_add(roomy, self.patterns[index].encode()) for index in self._set_index) and _compiled(roomy):
                return roomy
        return None

    @property
    def one_by_one(self) -> bool:
        """True when no budget had room for a set, so that a lookup costs the more the more patterns there are."""
        return bool(self._singles)

    def _try_one_by_one(self) -> None:
        for index in self._set_index:
            try:
                self._singles.append((index, re2.compile(self.patterns[index], _options(PATTERN_MEMORY))))
            except re2.error:
                self.broken.append(self.patterns[index])

    def find(self, text: bytes) -> list[int]:
        """Indices of the patterns that match the whole of `text`, in no particular order."""
        found = list(self._literals.get(text, ()))
        if self._set is not None:
            found += [self._set_index[place] for place in self._set.Match(text) or ()]
        elif self._singles:
            found += [index for index, single in self._singles if single.fullmatch(text) is not None]
        return found


def _compiled(patterns: Any) -> Any:
    """The same set, ready, or None when it needs more than its budget."""
    try:
        patterns.Compile()
    except re2.error:
        return None
    return patterns


def _add(patterns: Any, text: bytes) -> bool:
    try:
        patterns.Add(text)
    except re2.error:
        return False
    return True


@lru_cache(maxsize=4)
def _options(memory: int) -> Any:
    options = re2.Options()
    options.max_mem = memory
    options.log_errors = False  # else RE2 writes to our stderr
    return options


def _as_go_says_it(error: Exception) -> str:
    """As Go's regexp would have refused the pattern; what is only our limit RE2 says without a piece of it."""
    what, _, piece = _text(error).partition(": ")
    if not piece and what not in _IN_GO:
        return f"error parsing regexp: {what}"
    shown = piece if len(piece) <= _SHOWN else piece[:_SHOWN] + "…"
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in shown)
    return f"error parsing regexp: {_IN_GO.get(what, what)}: `{shown}`"


def _text(error: Exception) -> str:
    reason = error.args[0] if error.args else ""
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
