"""The splits in which every conversation runs."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.unit.gate.http2_talk import Conversation
from tests.unit.gate.talk import Split, Talk


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def bytewise(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


def at_random(seed: int, longest: int) -> Split:
    dice = random.Random(seed)

    def pieces(data: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            step = dice.randint(1, longest)
            yield data[at : at + step]
            at += step

    return pieces


SPLITS = {"whole": whole, "bytewise": bytewise, "short": at_random(1, 7), "long": at_random(2, 60)}


@pytest.fixture(params=SPLITS)
def talk(request: pytest.FixtureRequest) -> Talk:
    return Talk(SPLITS[request.param])


@pytest.fixture(params=SPLITS)
def http2(request: pytest.FixtureRequest) -> Conversation:
    return Conversation(SPLITS[request.param])
