"""Law: whenever the fast reader returns a head, the strict reader returns the same one.

Hypothesis looks for counter-examples here; the long run is `python -m tests.unit.wire.test_differential RUNS [SEED]`.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.errors import PeerError
from l7proxy.wire import http1_fast, http1_strict, trace_id
from l7proxy.wire.head import CHUNKED, Miss, RequestHead, ResponseHead
from l7proxy.wire.path import PathRules
from tests.unit.wire import mutants

RULES = (
    PathRules(),
    PathRules(allow_matrix=True),
    PathRules(redirect_escaped_slashes=False),
    PathRules(allow_connect=True),
)
METHODS = (b"GET", b"HEAD", b"POST", b"CONNECT")
REQUEST = (
    b"GET /a/b?x=1 HTTP/1.1\r\nHost: a.b:80\r\nConnection: close\r\n"
    b"b3: 80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1\r\nContent-Length: 12\r\n\r\n"
)
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive\r\nServer: x\r\n\r\nhello"


def same_request(data: bytes, rules: PathRules) -> str:
    """Asserts the law on one input; returns which reader gave a result."""
    fast = http1_fast.request(data, rules)
    if isinstance(fast, RequestHead):
        assert http1_strict.request(data, rules) == fast, data
        assert fast.traced or not trace_id.of_head(fast.raw), data
        return "fast"
    try:
        strict = http1_strict.request(data, rules)
    except PeerError:
        return "refused"
    if fast is Miss.ODD:
        assert isinstance(strict, RequestHead), data  # odd means complete: strict must finish with it
    return "strict" if isinstance(strict, RequestHead) else "more"


def same_response(data: bytes, method: bytes) -> str:
    fast = http1_fast.response(data, method)
    if isinstance(fast, ResponseHead):
        assert http1_strict.response(data, method) == fast, data
        return "fast"
    try:
        strict = http1_strict.response(data, method)
    except PeerError:
        return "refused"
    if fast is Miss.ODD:
        assert isinstance(strict, ResponseHead), data
    return "strict" if isinstance(strict, ResponseHead) else "more"


@st.composite
def mutant(draw: st.DrawFn, *, answer: bool = False) -> bytes:
    make = mutants.response if answer else mutants.request
    return make(lambda below: draw(st.integers(0, below - 1)))


@settings(max_examples=600, deadline=None)
@given(mutant(), st.sampled_from(RULES))
def test_requests(data: bytes, rules: PathRules) -> None:
    same_request(data, rules)


@settings(max_examples=600, deadline=None)
@given(mutant(), st.sampled_from(RULES))
def test_what_is_forwarded_is_read_as_it_was_judged(data: bytes, rules: PathRules) -> None:
    """Also where the head was rewritten: its path normalised, its upgrades removed."""
    with contextlib.suppress(PeerError):
        head = http1_strict.request(data, rules)
        if isinstance(head, RequestHead):
            again = http1_strict.request(head.raw, rules)
            assert isinstance(again, RequestHead)
            assert replace(again, target=head.target, size=head.size) == head


@settings(max_examples=500, deadline=None)
@given(mutant(answer=True), st.sampled_from(METHODS))
def test_responses(data: bytes, method: bytes) -> None:
    same_response(data, method)


@settings(max_examples=500, deadline=None)
@given(mutant(answer=True), st.sampled_from(METHODS))
def test_what_a_client_gets_is_read_as_it_was_judged_and_as_long_as_it_came(data: bytes, method: bytes) -> None:
    with contextlib.suppress(PeerError):
        head = http1_strict.response(data, method)
        if isinstance(head, ResponseHead):
            assert len(head.raw) == data.index(b"\r\n\r\n") + 4
            assert b"chunked" in head.raw or head.framing != CHUNKED
            assert http1_strict.response(head.raw, method) == head


def test_connection_may_stand_anywhere_but_once() -> None:
    keeps, ends = b"Connection: keep-alive\r\n", b"Connection: close\r\n"
    for early, late, outcome in (
        (ends, b"", "fast"),
        (b"", ends, "fast"),
        (keeps, b"", "fast"),
        (b"", keeps, "fast"),
        (keeps, ends, "strict"),
        (ends, keeps, "strict"),
        (b"", keeps + ends, "strict"),
    ):
        asked = b"GET / HTTP/1.1\r\n" + early + b"Host: a\r\nAccept: */*\r\n" + late + b"\r\n"
        assert same_request(asked, PathRules()) == outcome, asked
        told = b"HTTP/1.1 200 OK\r\n" + early + b"Content-Length: 0\r\nServer: a\r\n" + late + b"\r\n"
        assert same_response(told, b"GET") == outcome, told


def one_byte_off(data: bytes) -> Iterator[bytes]:
    """Any byte in the place of each, or before it; or none."""
    for place in range(len(data)):
        yield data[:place] + data[place + 1 :]
        for byte in range(256):
            yield data[:place] + bytes([byte]) + data[place + 1 :]
            yield data[:place] + bytes([byte]) + data[place:]


def test_a_usual_head_with_any_byte_in_any_place() -> None:
    requests = Counter(same_request(data, RULES[0]) for data in one_byte_off(REQUEST))
    responses = Counter(same_response(data, b"GET") for data in one_byte_off(RESPONSE))
    assert min(requests["fast"], requests["refused"], responses["fast"], responses["refused"]) > 1000


def test_the_fuzzer_reaches_every_outcome() -> None:
    """A fuzzer whose inputs are all refused, or all plain, proves nothing."""
    seen = long_run(4000, seed=1)
    for kind in ("request", "response"):
        for outcome in ("fast", "strict", "refused", "more"):
            assert seen[f"{kind} {outcome}"] > 20, seen


def long_run(runs: int, seed: int) -> Counter[str]:
    """`runs` random mutants, cheap to make; inputs that the fast reader refuses do not run h11."""
    dice = random.Random(seed)
    seen: Counter[str] = Counter()
    for run in range(runs):
        pick = dice.randrange
        if run % 3:
            seen["request " + same_request(mutants.request(pick), RULES[run // 3 % len(RULES)])] += 1
        else:
            seen["response " + same_response(mutants.response(pick), METHODS[run // 3 % len(METHODS)])] += 1
    return seen


if __name__ == "__main__":
    print(long_run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
