"""Deadlines, with a clock set by the test."""

from __future__ import annotations

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from l7proxy.proxy.server.timer_wheel import RESOLUTION, Timer, TimerWheel


class Thing:
    def __init__(self, timers: TimerWheel) -> None:
        self.timers = timers
        self.fired: list[float] = []
        self.timer = Timer(self.expired)

    def expired(self) -> None:
        self.fired.append(self.timers.now)


def test_a_deadline_fires_once_and_not_early() -> None:
    timers = TimerWheel(100.0)
    thing = Thing(timers)
    timers.arm(thing.timer, 5)
    timers.advance(104.99)
    assert not thing.fired
    timers.advance(105 + RESOLUTION)
    timers.advance(200)
    assert thing.fired == [105 + RESOLUTION]
    assert len(timers) == 0


def test_arming_again_replaces_the_deadline_in_both_directions() -> None:
    timers = TimerWheel(0.0)
    later, sooner = Thing(timers), Thing(timers)
    timers.arm(later.timer, 1)
    timers.arm(later.timer, 10)
    timers.arm(sooner.timer, 10)
    timers.arm(sooner.timer, 1)
    assert len(timers) == 2
    timers.advance(2)
    assert (later.fired, sooner.fired) == ([], [2])
    timers.advance(11)
    assert (later.fired, sooner.fired) == ([11], [2])


def test_a_disarmed_thing_leaves_nothing_behind() -> None:
    timers = TimerWheel(0.0)
    thing = Thing(timers)
    timers.arm(thing.timer, 3600)
    timers.disarm(thing.timer)
    timers.disarm(thing.timer)
    assert len(timers) == 0
    timers.advance(4000)
    assert not thing.fired


def test_a_retired_timer_lets_its_owner_go() -> None:
    timers = TimerWheel(0.0)
    thing = Thing(timers)
    timers.arm(thing.timer, 1)
    timers.retire(thing.timer)
    timers.advance(4000)
    assert len(timers) == 0 and not thing.fired
    gone = weakref.ref(thing)
    gc.disable()
    try:
        del thing
        assert gone() is None
    finally:
        gc.enable()


def test_no_timer_fires_while_they_are_held_and_none_is_lost() -> None:
    timers = TimerWheel(0.0)
    things = [Thing(timers) for _ in range(6)]
    for number, thing in enumerate(things):
        timers.arm(thing.timer, 1 + number // 2)
    timers.held = lambda: any(thing.fired for thing in things)  # from the first one on
    for now in (1.5, 2, 10):
        timers.advance(now)
        assert sum(len(thing.fired) for thing in things) == 1
    timers.arm(things[5].timer, 2)
    timers.held = lambda: False
    timers.advance(10)
    assert [len(thing.fired) for thing in things] == [1, 1, 1, 1, 1, 0]
    timers.advance(13)
    assert things[5].fired == [13]


def test_a_thing_may_arm_and_disarm_others_when_it_fires() -> None:
    timers = TimerWheel(0.0)

    class Bossy(Thing):
        def expired(self) -> None:
            super().expired()
            self.timers.disarm(other.timer)
            self.timers.arm(self.timer, 1)

    boss, other = Bossy(timers), Thing(timers)
    timers.arm(boss.timer, 1)
    timers.arm(other.timer, 1)
    timers.advance(1.5)
    timers.advance(3)
    assert boss.fired == [1.5, 3]
    assert not other.fired


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 50), st.floats(0, 5)), max_size=60))
def test_as_a_plain_list_of_deadlines_would(steps: list[tuple[int, float, float]]) -> None:
    """Every timer fires at the first advance that is a slot past its newest deadline, never before it."""
    timers = TimerWheel(0.0)
    things = [Thing(timers) for _ in range(3)]
    due: dict[Thing, float] = {}
    now = 0.0
    for which, seconds, passing in steps:
        if which < 3:
            timers.arm(things[which].timer, seconds)
            due[things[which]] = now + seconds
        before = {thing: len(thing.fired) for thing in things}
        now += passing
        timers.advance(now)
        for thing in things:
            fired = len(thing.fired) > before[thing]
            if fired:
                assert due.pop(thing) <= now
            elif thing in due:
                assert now < due[thing] + 2 * RESOLUTION
    assert len(timers) == len(due)
