"""The corpus through both readers, in every split."""

from __future__ import annotations

from pathlib import Path

import h11
import pytest

from l7proxy.errors import PeerError
from l7proxy.wire import http1_fast, http1_strict, upgrades
from l7proxy.wire.body import body
from l7proxy.wire.head import Miss, RequestHead
from l7proxy.wire.lines import field
from tests.unit.wire import corpus
from tests.unit.wire.corpus import Valid


def test_every_file_is_expected() -> None:
    assert {each.name for each in corpus.valid()} == {path.stem for path in corpus.files("valid")}
    assert sum(len(corpus.files(each)) for each in ("valid", "invalid", "ambiguous", "responses")) >= 480


@pytest.mark.parametrize("case", corpus.valid(), ids=str)
def test_valid_requests_are_read(case: Valid) -> None:
    head = http1_strict.request(case.data)
    assert isinstance(head, RequestHead)
    assert (head.method, head.host, head.path, head.framing) == (case.method, case.host, case.path, case.framing)
    rest = case.data[head.size :]
    reader = body(head.framing)
    assert rest == b"" if reader is None else reader.feed(rest) == len(rest) and reader.done


@pytest.mark.parametrize("case", corpus.valid(), ids=str)
def test_valid_requests_change_in_their_path_and_coding_only(case: Valid) -> None:
    head = http1_strict.request(case.data)
    assert isinstance(head, RequestHead)
    sent = corpus.forwarded(case.data[: head.size]).removeprefix(b"\r\n")
    if upgrades.offers_carrier([field(each) for each in sent[:-4].split(b"\r\n")[1:]]):
        sent = upgrades.without_carriers(sent)
    line, _, rest = head.raw.partition(b"\r\n")
    assert rest == sent.partition(b"\r\n")[2][: len(rest)]
    again = http1_strict.request(head.raw)
    assert isinstance(again, RequestHead)
    assert (again.path, again.raw, again.host) == (head.path, head.raw, head.host)
    assert line == sent.partition(b"\r\n")[0] or head.target != head.path


@pytest.mark.parametrize("path", corpus.files("invalid") + corpus.files("ambiguous"), ids=lambda path: path.stem)
def test_other_requests_are_refused_with_their_status(path: Path) -> None:
    data = path.read_bytes()
    with pytest.raises(PeerError) as refusal:
        head = http1_strict.request(data)
        assert isinstance(head, RequestHead), "an invalid file may not end too early"
        reader = body(head.framing)
        assert reader is not None
        reader.feed(data[head.size :])
    assert refusal.value.status == corpus.status(path)
    assert str(refusal.value)


@pytest.mark.parametrize("directory", ["valid", "invalid", "ambiguous"])
def test_fast_gives_what_strict_gives_or_nothing(directory: str) -> None:
    heads = 0
    for path in corpus.files(directory):
        data = path.read_bytes()
        fast = http1_fast.request(data)
        if isinstance(fast, RequestHead):
            heads += 1
            assert fast == http1_strict.request(data), path.name
    assert heads


@pytest.mark.parametrize("case", corpus.valid(), ids=str)
def test_a_head_cut_anywhere_needs_more(case: Valid) -> None:
    head = http1_strict.request(case.data)
    assert isinstance(head, RequestHead)
    for cut in range(0, head.size, 1 + head.size // 200):
        assert http1_fast.request(case.data[:cut]) is Miss.NEED_MORE
        assert http1_strict.request(case.data[:cut]) is Miss.NEED_MORE


BEHIND = b"GET /behind HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.mark.parametrize("case", corpus.valid(), ids=str)
def test_pipelined_messages_are_cut_where_h11_cuts_them(case: Valid) -> None:
    data = case.data + BEHIND
    head = http1_strict.request(data)
    assert isinstance(head, RequestHead)
    assert head == http1_strict.request(case.data)
    assert http1_fast.request(data) in (head, Miss.ODD)
    reader = body(head.framing)
    end = head.size + (reader.feed(data[head.size :]) if reader else 0)
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data.removeprefix(b"\r\n"))
    while not isinstance(connection.next_event(), h11.EndOfMessage):
        pass
    assert data[end:] == BEHIND == connection.trailing_data[0]
