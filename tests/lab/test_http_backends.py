"""The corpus through the real worker to two independent servers: they see exactly what was evaluated.

Every message of tests/corpus/http goes whole, byte by byte and pipelined through TPROXY to nginx (IPv4) and to aiohttp
(IPv6). What the worker recorded as forwarded is what the server logged: as many requests, in the same order, with
the same method, path, authority and body. No server ever sees a whole request of an invalid or ambiguous message.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import h11
import pytest

from l7proxy.errors import PeerError
from l7proxy.flows.records import HttpRequest, HttpResponse, Malformed, Record
from l7proxy.gate.access_log import LONGEST
from l7proxy.model.verdict import Verdict
from l7proxy.policy.rules import HttpRule
from l7proxy.wire import http1_strict
from l7proxy.wire.head import RequestHead
from tests.lab.conftest import need
from tests.lab.front import Front, front
from tests.lab.test_worker_packets import REF, SERVER, Net, net  # noqa: F401 -- a fixture
from tests.lab.witnesses import Seen, Witness, llhttp, nginx
from tests.unit.wire import corpus
from tests.unit.wire.corpus import Valid

pytestmark = pytest.mark.lab

BYTEWISE: Final = 600
"""This many bytes of a message go one by one, and this many at its end; those between go in one piece."""

ANY = HttpRule(REF)
NO_POSTS = HttpRule(REF, method="[^P].*")

REFUSED_BY: Final = {
    "nginx": {
        "get-host-empty",
        "method-lower-case",
        "method-with-every-token-character",
        "options-asterisk",
        "options-asterisk-http10",
        "trace",
        "trace-with-body",
    },
    "aiohttp": {"method-lower-case", "method-long", "method-with-every-token-character"},
}
"""Valid messages that this server answers with an error: it logs no request, and the client gets its answer."""


@dataclass
class Stage:
    front: Front
    witness: Witness

    async def say(self, pieces: Iterator[bytes], methods: list[str]) -> list[int]:
        """One connection: sends all `pieces`, then returns the statuses, one per method or fewer if it ends early."""
        with contextlib.closing(await self.front.dial()) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
                heard = tasks.create_task(_statuses(sock, methods), name="hear")
                with contextlib.suppress(OSError):  # refused before all was sent
                    for piece in pieces:
                        await loop.sock_sendall(sock, piece)
            return heard.result()

    async def records(self, count: int) -> list[Record]:
        """The records since the last call: waits for `count` final ones, or until a timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while sum(isinstance(each, HttpResponse | Malformed) for each in self.front.records) < count:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        found = list(self.front.records)
        self.front.records.clear()
        return found


async def _statuses(sock: socket.socket, methods: list[str]) -> list[int]:
    """Final statuses, read by h11; an end or a reset ends the list."""
    loop = asyncio.get_running_loop()
    found: list[int] = []
    data = b""
    for method in methods:
        connection = h11.Connection(h11.CLIENT)
        connection.send(h11.Request(method=method, target="/", headers=[("host", "h")]))
        if data:
            connection.receive_data(data)
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                try:
                    more = await loop.sock_recv(sock, 65536)
                except OSError:
                    return found
                if not more and connection.their_state is not h11.SEND_BODY:
                    return found
                connection.receive_data(more)
            elif isinstance(event, h11.Response):
                found.append(event.status_code)
            elif isinstance(event, h11.ConnectionClosed):
                return found
        data = connection.trailing_data[0]
    return found


@contextlib.asynccontextmanager
async def stage(net: Net, which: str, place: Path) -> AsyncIterator[Stage]:  # noqa: F811
    if which == "nginx":
        need("nginx")
    server, family = (nginx, 4) if which == "nginx" else (llhttp, 6)
    async with server(net.server, SERVER[family], place) as witness, front(net, place, ANY, family=family) as before:
        yield Stage(before, witness)


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def bytewise(data: bytes) -> Iterator[bytes]:
    begin = min(len(data), BYTEWISE)
    end = max(begin, len(data) - BYTEWISE)
    yield from (data[at : at + 1] for at in range(begin))
    if end > begin:
        yield data[begin:end]
    yield from (data[at : at + 1] for at in range(end, len(data)))


BEHIND: Final = b"GET /behind HTTP/1.1\r\nHost: h\r\n\r\n"
SPLITS: Final = {"whole": whole, "bytewise": bytewise}


def told(case: Valid) -> Seen:
    """What a server should see of a valid message: head by the strict reader, body by h11."""
    head = http1_strict.request(case.data)
    assert isinstance(head, RequestHead)
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(case.data.removeprefix(b"\r\n"))
    body = b""
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Data):
            body += bytes(event.data)
    return Seen(head.method.decode(), head.path.decode(), head.host.decode(), body)


def forwarded(records: list[Record]) -> list[tuple[str, str]]:
    """(method, url) of what the worker let through."""
    return [
        (each.method, each.url)
        for each in records
        if isinstance(each, HttpRequest) and each.policy_verdict.verdict is Verdict.FORWARDED
    ]


def as_recorded(seen: Seen) -> tuple[str, str]:
    url = f"http://{seen.host}{'' if seen.target == '*' else seen.target}"
    return seen.method, url if len(url) <= LONGEST else f"{url[: LONGEST - 1]}…"


def statuses(records: list[Record]) -> list[int]:
    return [each.status for each in records if isinstance(each, HttpResponse | Malformed)]


def unlike(wanted: list[Seen], seen: list[Seen]) -> list[tuple[Seen, Seen]]:
    """The differences. An HTTP/1.0 message may have its host in the target only: then a server logs none."""
    pairs = zip(wanted, seen, strict=True)
    return [(one, other) for one, other in pairs if other not in (one, replace(one, host=""))]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("which", ["nginx", "aiohttp"])
async def test_corpus_valid_messages_are_seen_as_they_were_judged(
    net: Net,  # noqa: F811
    tmp_path: Path,
    which: str,
    split: str,
) -> None:
    cases = corpus.valid()
    async with stage(net, which, tmp_path) as on:
        answers = [(await on.say(SPLITS[split](case.data), [case.method.decode()])) for case in cases]
        records = await on.records(len(cases))
        seen = await on.witness.seen(len(cases) - len(REFUSED_BY[which]))
    taken = [case for case in cases if case.name not in REFUSED_BY[which]]
    assert [case.name for case, status in zip(cases, answers, strict=True) if status != [200]] == [
        case.name for case in cases if case.name in REFUSED_BY[which]
    ]
    assert statuses(records) == [status for (status,) in answers]
    assert forwarded(records) == [as_recorded(told(case)) for case in cases]
    assert unlike([told(case) for case in taken], seen) == []


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("which", ["nginx", "aiohttp"])
async def test_corpus_of_smuggling_nothing_invalid_or_ambiguous_is_seen_whole(
    net: Net,  # noqa: F811
    tmp_path: Path,
    which: str,
    split: str,
) -> None:
    """Each is followed by an allowed request: no bytes behind a fault may be read as a request."""
    paths = corpus.files("invalid") + corpus.files("ambiguous")
    async with stage(net, which, tmp_path) as on:
        answers = [await on.say(SPLITS[split](path.read_bytes() + BEHIND), ["GET", "GET"]) for path in paths]
        records = await on.records(len(paths))
        seen = await on.witness.seen(0)
    assert seen == []
    assert statuses(records) == [corpus.status(path) for path in paths]
    told = zip(paths, answers, strict=True)
    assert [path.name for path, answer in told if answer != [corpus.status(path)]] == []


@pytest.mark.parametrize("which", ["nginx", "aiohttp"])
async def test_corpus_pipelined_allowed_and_denied_in_any_order(net: Net, tmp_path: Path, which: str) -> None:  # noqa: F811
    """Many connections at once, each a random sequence of messages with a fault at its end; no POST is allowed.
    Every fault ends one sequence, and every message that leaves its connection open is in at least one."""
    lines = rows(random.Random(which), REFUSED_BY[which])
    async with stage(net, which, tmp_path) as on:
        await on.front.publish(NO_POSTS)
        await on.say(iter([BEHIND]), ["GET"])  # makes the worker's first connection the first in the log
        async with asyncio.timeout(60):
            said = [on.say(iter([each.data]), each.methods) for each in lines]
            answers = await asyncio.gather(*said)
        records = await on.records(1 + sum(len(each.statuses) for each in lines))
        seen = await on.witness.seen(1 + sum(each.statuses.count(200) for each in lines))
    assert answers == [each.statuses for each in lines]
    assert Counter(map(as_recorded, seen)) == Counter(forwarded(records))
    assert Counter(statuses(records)) == Counter(status for each in lines for status in each.statuses) + Counter([200])
    assert not any(each.method.startswith("P") for each in seen)


ENDS: Final = re.compile(rb"\r\n(?:expect|upgrade|connection|proxy-connection):", re.IGNORECASE)
"""After such a message a server may close (llhttp reads Proxy-Connection as Connection)."""


@dataclass
class Line:
    """What one client pipelines, and the expected responses."""

    data: bytes
    methods: list[str]
    statuses: list[int]


def rows(dice: random.Random, without: set[str]) -> list[Line]:
    """The corpus, split over the clients."""
    faults = corpus.files("invalid") + corpus.files("ambiguous")
    cases = [case for case in corpus.valid() if case.name not in without and stays_open(case)]
    dealt = [case for _ in range(4) for case in dice.sample(cases, len(cases))]
    return [line(dealt[at :: len(faults)], fault) for at, fault in enumerate(dice.sample(faults, len(faults)))]


def stays_open(case: Valid) -> bool:
    head = http1_strict.request(case.data)
    assert isinstance(head, RequestHead)
    return head.minor == 1 and not ENDS.search(case.data)


def line(cases: list[Valid], fault: Path) -> Line:
    made = Line(b"", [], [])
    for case in cases:
        made.data += case.data
        made.methods.append(case.method.decode())
        made.statuses.append(403 if case.method.startswith(b"P") else 200)
    made.data += fault.read_bytes() + BEHIND
    made.methods += ["GET", "GET"]
    made.statuses.append(403 if is_read(fault.read_bytes()) else corpus.status(fault))
    return made


def is_read(data: bytes) -> bool:
    """The head is valid: the fault is in the body, and all such messages are POSTs."""
    with contextlib.suppress(PeerError):
        return isinstance(http1_strict.request(data), RequestHead)
    return False


async def test_smuggling_trafficserver_7348_host_never_chooses_the_destination(net: Net, tmp_path: Path) -> None:  # noqa: F811
    """Host and absolute targets are client input: evaluated, forwarded, never used as an address."""
    lies = [
        b"GET /a HTTP/1.1\r\nHost: 10.9.1.2\r\n\r\n",
        b"GET http://example.com/a HTTP/1.1\r\nHost: example.com\r\n\r\n",
    ]
    async with stage(net, "nginx", tmp_path) as on:
        assert [await on.say(whole(lie), ["GET"]) for lie in lies] == [[200], [200]]
        records = await on.records(2)
        seen = await on.witness.seen(2)
    assert [each.host for each in seen] == ["10.9.1.2", "example.com"]
    assert {record.conn.destination for record in records} == {SERVER[4]}
