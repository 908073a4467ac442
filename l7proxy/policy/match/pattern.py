r"""Checks RE2 patterns, and matches many of them against one text for the cost of one.

Patterns match whole strings, case-sensitively, in RE2's UTF-8 mode (as in Envoy): `.` and classes stand for one
Unicode character, so `/café/.` works, and bytes that are not UTF-8 for RE2 (it accepts encoded surrogates) match
only `\C`. All our HTTP rules allow, so a pattern that matches nothing fails closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

import re2

MAX_PATTERN: Final = 8192
"""Bytes of one pattern. Real patterns are below 1 KiB; longer ones are mistakes or attacks on the node's memory."""
PATTERN_MEMORY: Final = 1 << 20
"""RE2's memory budget for one pattern: about 10 000 instructions. Also bounds the CPU time of `(x{1000}){1000}`."""
SET_MEMORY: Final = (8 << 20, 32 << 20, 64 << 20, 128 << 20)
"""RE2's memory budgets for one set with its state cache, which a client can fill by sending many different paths. A set
gets the first one that is large enough: thousands of patterns need more, and one by one would take milliseconds."""
MAX_PROGRAM: Final = 1 << 19
"""RE2 instructions in all patterns that apply to one endpoint, and so in those of one document. An instruction of a set
takes about 80 bytes in each worker, so this is 40 MiB, and 0.25 s to compile. An ordinary path has 20 to 100
instructions: ten thousand paths fit."""
MAX_PROGRAM_OF_NODE: Final = 1 << 20
"""The same for all endpoints of a node together: 80 MiB in each worker."""

METACHARACTERS: Final = frozenset("\\^$.|?*+()[]{}")
_SHOWN: Final = 200
"""Characters of a pattern that a message quotes."""
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
"""RE2's error texts → those of Go's regexp, which users of Cilium know; the other texts are equal."""


_TOO_LARGE: Final = "pattern too large"
"""Start of RE2's error for a pattern that exceeds the budget while compiling, which takes up to 0.1 s."""


class PatternError(ValueError):
    """RE2 cannot use this pattern; the text says why. `costly`: RE2 compiled it up to its budget first."""

    def __init__(self, what: str, *, costly: bool = False) -> None:
        super().__init__(what)
        self.costly = costly


def is_literal(pattern: str) -> bool:
    """True when the pattern can only match itself."""
    return METACHARACTERS.isdisjoint(pattern)


def check(pattern: str) -> int:
    """The size of RE2's program for `pattern`. PatternError unless RE2 can use it within our limits.

    0 for a literal, which is not compiled.
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
    """Matches many patterns against one text. `find` returns the indices of those that match the whole text.

    Literals are looked up in a dict. The rest is one RE2 Set, whose cost does not grow with their number; if it exceeds
    its budget, they are tried one by one. A pattern that RE2 cannot use matches nothing, and is listed in `broken`.
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
        """The set within the next larger budgets, or None. A set that failed to compile cannot be reused."""
        for memory in SET_MEMORY[1:]:
            roomy: Any = re2.Set.FullMatchSet(_options(memory))
            if all(_add(roomy, self.patterns[index].encode()) for index in self._set_index) and _compiled(roomy):
                return roomy
        return None

    @property
    def one_by_one(self) -> bool:
        """True when the set fits no budget, so that the cost of a lookup grows with the number of patterns."""
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
    """The set, compiled; None when it exceeds its budget."""
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
    options.log_errors = False  # otherwise RE2 writes to stderr
    return options


def _as_go_says_it(error: Exception) -> str:
    """The error text of Go's regexp. RE2's errors about our limits do not quote a piece of the pattern."""
    what, _, piece = _text(error).partition(": ")
    if not piece and what not in _IN_GO:
        return f"error parsing regexp: {what}"
    shown = piece if len(piece) <= _SHOWN else piece[:_SHOWN] + "…"
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in shown)
    return f"error parsing regexp: {_IN_GO.get(what, what)}: `{shown}`"


def _text(error: Exception) -> str:
    reason = error.args[0] if error.args else ""
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
