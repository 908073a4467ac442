"""Law, over any sizes, windows, limits and orders: what two well-behaved ends send to each other arrives whole, though
some of their streams are stalled.

h2 is both ends. They read at random times, and stalled streams only after all others. Requests above the server's
stream limit may be refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from h2.connection import H2Connection
from h2.settings import SettingCodes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l7proxy.wire.http2_frames import Code
from tests.unit.gate.http2_talk import OK, Conversation, End, line


@dataclass
class Sending:
    """A body being sent by one end."""

    end: H2Connection
    stream: int
    left: int

    def step(self) -> None:
        """Sends one frame, if the window is open."""
        if self.left < 0:
            return
        room = min(self.end.local_flow_control_window(self.stream), self.end.max_outbound_frame_size, self.left)
        if room <= 0 < self.left:
            return
        self.left -= max(room, 0)
        self.end.send_data(self.stream, b"b" * room, end_stream=not self.left)
        self.left = self.left or -1


def done(http2: Conversation, stream: int) -> bool:
    """Whole at both ends, or refused."""
    here, there = http2.client.of(stream), http2.server.of(stream)
    return here.reset == Code.REFUSED_STREAM or (here.ended and there.ended)


@dataclass
class Reading:
    """What one end has received, and what its application has read: not from stalled streams."""

    end: End
    kept: Counter[int] = field(default_factory=Counter)

    def step(self, asleep: set[int]) -> None:
        for event in self.end.unacknowledged:
            if size := event.flow_controlled_length:
                self.end.h2.increment_flow_control_window(size)
                self.kept[event.stream_id] += size
        self.end.unacknowledged.clear()
        for stream in self.kept.keys() - asleep:
            size = self.kept.pop(stream)
            if not self.end.of(stream).ended:
                self.end.h2.increment_flow_control_window(size, stream)


SIZES = st.sampled_from([0, 1000, 70_000, 300_000, 300_000])
WINDOWS = st.sampled_from([5000, 65_535, 300_000])
BODIES = st.one_of(
    st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=8),
    st.sampled_from([[(300_000, 0)] * 6, [(0, 300_000)] * 6]),  # more than the windows allow, all in one direction
)
READS = st.lists(st.sampled_from(["client", "server", "both", ""]), max_size=12)
PLACES = st.one_of(  # waiting and stalled streams share the window
    st.tuples(st.integers(1, 4), st.just(set[int]())),
    st.tuples(st.integers(2, 4), st.sets(st.integers(0, 5), max_size=1)),
    st.tuples(st.just(10), st.sets(st.integers(0, 5), max_size=3)),
    st.tuples(st.just(10), st.just({0, 1, 2})),
)


@settings(max_examples=40, deadline=None)
@example([(300_000, 0)] * 6, 65_535, 65_535, (1, set()), False, [])
@example([(300_000, 0)] * 6, 5000, 5000, (10, {0, 1, 2}), False, [])
@example([(0, 300_000)] * 6, 5000, 5000, (10, {0, 1, 2}), False, [])
@given(BODIES, WINDOWS, WINDOWS, PLACES, st.booleans(), READS)
def test_all_arrives(
    bodies: list[tuple[int, int]],
    up: int,
    down: int,
    places: tuple[int, set[int]],
    late: bool,
    reads: list[str],
) -> None:
    takes, sleepers = places
    http2 = Conversation(lambda data: [data], takes=takes, window=up)
    http2.client.acknowledges = http2.server.acknowledges = False
    http2.client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: down})
    http2.reachable = not late
    streams = {2 * place + 1: sizes for place, sizes in enumerate(bodies)}
    asleep = {2 * place + 1 for place in sleepers}
    for stream in streams:
        http2.client.h2.send_headers(stream, line("/a", "POST"))
    sending = [Sending(http2.client.h2, stream, size) for stream, (size, _) in streams.items()]
    readers = {"client": Reading(http2.client), "server": Reading(http2.server)}
    answered: set[int] = set()
    for turn in range(2000):
        http2.run()
        http2.reachable = http2.reachable or turn > 20
        for one in reversed(sending):  # waiting streams first
            if http2.client.of(one.stream).reset is None:
                one.step()
        for stream, message in list(http2.server.messages.items()):
            if message.fields and stream not in answered:
                answered.add(stream)
                http2.server.h2.send_headers(stream, OK)
                sending.append(Sending(http2.server.h2, stream, streams[stream][1]))
        reader = reads.pop() if reads else "both"
        for name in readers if reader == "both" else {reader} & readers.keys():
            readers[name].step(asleep)
        if all(done(http2, stream) for stream in streams.keys() - asleep):
            asleep = set()
        if all(done(http2, stream) for stream in streams):
            break
    for stream, (size, answer) in streams.items():
        assert done(http2, stream), f"stream {stream} stands still"
        if http2.client.of(stream).reset is None:
            assert len(http2.server.of(stream).data) == size
            assert len(http2.client.of(stream).data) == answer
    assert not http2.end()
    assert http2.pairs()
