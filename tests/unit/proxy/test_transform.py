"""A transform between socket and session: what a transform must do, and that session and gate do not notice it."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from l7proxy.proxy.server.poller import IN, Poller
from l7proxy.proxy.server.session import Session, named
from l7proxy.proxy.server.shares import Share
from l7proxy.proxy.server.socket_stream import HIGH_WATER, SocketStream
from l7proxy.proxy.server.transform import Transform
from tests.unit.proxy.bulk import ANY, BODY, download, files, upload
from tests.unit.proxy.stage import CLIENT, Stage, answer, backend, gets, request, snapshot, stage, web


class Rotated:
    """Each byte becomes another one. With `copies` of 2 each is sent twice: half a pair yields nothing yet."""

    def __init__(self, copies: int = 1) -> None:
        self._copies = copies
        self._output = bytearray()
        self._input = b""
        self.unsent = 0
        self.ended = False
        self.failure: OSError | None = None

    @property
    def unread(self) -> int:
        return len(self._input)

    def receive(self, data: bytes) -> bytes:
        data = self._input + data
        size = len(data) // self._copies * self._copies
        self._input = data[size:]
        first, last = data[: size : self._copies], data[self._copies - 1 : size : self._copies]
        if first != last:
            self.failure = OSError("a byte and its copy differ")
            first = first[: next(at for at, pair in enumerate(zip(first, last, strict=True)) if pair[0] != pair[1])]
        return _rotated(first)

    def receive_eof(self) -> None:
        if self._input:
            raise OSError("the end of the stream is missing")

    def send(self, data: bytes) -> None:
        for byte in _rotated(data):
            self._output += bytes([byte]) * self._copies

    def finish(self) -> None: ...

    def output(self) -> bytes:
        output, self._output = bytes(self._output), bytearray()
        return output


def _rotated(data: bytes) -> bytes:
    return codecs.encode(data.decode("latin-1"), "rot13").encode("latin-1")


class Tls:
    """TLS by the standard library."""

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server, server_hostname=None if server else NAME)
        self._pending = bytearray()
        self._ready = self._finishing = self.ended = False
        self.failure: OSError | None = None
        self._go_on()

    @property
    def unsent(self) -> int:
        return len(self._pending)

    @property
    def unread(self) -> int:
        return self._in.pending

    def receive(self, data: bytes) -> bytes:
        self._in.write(data)
        plain = bytearray()
        try:
            self._go_on()
            while self._ready and not self.ended:
                piece = self._tls.read(1 << 16)
                self.ended = not piece
                plain += piece
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except OSError as error:
            self.failure = error
        return bytes(plain)

    def receive_eof(self) -> None:
        if not self.ended:
            raise ssl.SSLEOFError("closed without close_notify")

    def send(self, data: bytes) -> None:
        self._pending += data
        self._go_on()

    def finish(self) -> None:
        self._finishing = True
        self._go_on()

    def output(self) -> bytes:
        return self._out.read()

    def _go_on(self) -> None:
        """The handshake, then the plain bytes that waited for it, then close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self._ready:
                self._tls.do_handshake()
                self._ready = True
            if self._pending:
                self._tls.write(self._pending)
                self._pending.clear()
            if self._finishing:
                self._finishing = False
                self._tls.unwrap()


NAME = "server.test"


@pytest.fixture(scope="session")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of the server, and of clients that verify its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not installed")
    certificate, key = (tmp_path_factory.mktemp("tls") / name for name in ("cert.pem", "key.pem"))
    _make_certificate(certificate, key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=str(certificate))


def _make_certificate(certificate: Path, key: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)


Pair = tuple[Transform, Transform]
KINDS = ("identity", "doubling", "tls")


@pytest.fixture
def make(request: pytest.FixtureRequest, kind: str) -> Callable[[], Pair]:
    """Both ends of a connection."""
    if kind != "tls":
        copies = KINDS.index(kind) + 1
        return lambda: (Rotated(copies), Rotated(copies))
    server, client = request.getfixturevalue("contexts")
    return lambda: (Tls(client, server=False), Tls(server, server=True))


# ---- the contract ----


def relay(ends: Pair, piece: int) -> tuple[bytes, bytes]:
    """Pass output to the other side in pieces until there is none. Returns the plain bytes that each side received."""
    plain = [bytearray(), bytearray()]
    while outputs := [(1 - at, data) for at, end in enumerate(ends) if (data := end.output())]:
        for at, data in outputs:
            for begin in range(0, len(data), piece):
                plain[at] += ends[at].receive(data[begin : begin + piece])
    return bytes(plain[0]), bytes(plain[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_bytes_arrive_as_they_were_sent_however_they_are_split(make: Callable[[], Pair], piece: int) -> None:
    one, other = ends = make()
    size = 100_000 if piece > 1 else 3000
    one.send(b"before anything was received")
    assert relay(ends, piece)[1] == b"before anything was received"
    one.send(BODY[:size])
    other.send(BODY[-size:])
    assert relay(ends, piece) == (BODY[-size:], BODY[:size])
    assert [(end.unsent, end.unread, end.ended) for end in ends] == [(0, 0, False)] * 2


@pytest.mark.parametrize("kind", ["doubling", "tls"])
def test_what_is_incomplete_is_counted_and_its_eof_is_a_failure(make: Callable[[], Pair], kind: str) -> None:
    one, other = ends = make()
    one.send(b"hello")
    assert one.unsent == (5 if kind == "tls" else 0)
    relay(ends, 1 << 20)
    one.send(b"world")
    assert other.receive(one.output()[:-1]) in (b"", b"worl")
    assert other.unread == (kind == "doubling")  # OpenSSL does not say what it keeps of a record
    with pytest.raises(OSError, match=r"missing|close_notify"):
        other.receive_eof()


@pytest.mark.parametrize("kind", ["tls"])
def test_the_end_arrives_after_the_bytes(make: Callable[[], Pair]) -> None:
    one, other = ends = make()
    one.send(b"the last")
    one.finish()
    assert relay(ends, 5)[1] == b"the last"
    assert other.ended
    other.receive_eof()


@pytest.mark.parametrize("kind", ["doubling", "tls"])
def test_what_came_before_wrong_bytes_arrives(make: Callable[[], Pair]) -> None:
    one, other = ends = make()
    relay(ends, 1 << 20)
    one.send(b"good")
    good = one.output()
    one.send(b"bad")
    bad = bytearray(one.output())
    bad[-1] ^= 1
    assert other.failure is None
    assert other.receive(good + bad) == (b"good" if isinstance(other, Tls) else b"goodba")
    assert other.failure


@pytest.mark.parametrize("kind", ["doubling", "tls"])
async def test_a_stream_delivers_what_came_before_wrong_bytes(
    make: Callable[[], Pair], parties: tuple[Party, Party]
) -> None:
    one, other = parties
    ours, theirs = make()
    other.stream.carry(theirs)
    relay((ours, theirs), 1 << 20)
    ours.send(b"good")
    good = ours.output()
    ours.send(b"bad")
    bad = bytearray(ours.output())
    bad[0] ^= 1
    one.stream.write(good + bad)
    await until(lambda: other.told)
    assert (bytes(other.read), other.told) == (b"good", ["lost"])
    assert isinstance(other.error, OSError)


# ---- a stream that carries one ----


class Party:
    """The owner of a stream: what it was told."""

    def __init__(self, poller: Poller) -> None:
        self.read, self.told, self.error = bytearray(), list[str](), None
        self.stream = SocketStream(self, self.read.extend)
        self.stream.share = Share()
        self.poller = poller

    error: Exception | None

    def finished(self, stream: SocketStream) -> None:
        self.told.append("finished")

    def lost(self, stream: SocketStream, error: Exception | None) -> None:
        self.told.append("lost")
        self.error = error

    def congested(self, stream: SocketStream, *, full: bool) -> None:
        self.told.append("full" if full else "room")

    def holding(self) -> None: ...


@pytest.fixture
async def parties() -> AsyncIterator[tuple[Party, Party]]:
    """Both ends of a TCP connection, each a stream."""
    poller = Poller()
    one, other = Party(poller), Party(poller)
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = socket.create_connection(server.getsockname())
        second, _ = server.accept()
    for party, sock in ((one, first), (other, second)):
        sock.setblocking(False)
        party.stream.open(sock, poller)
    yield one, other
    for party in (one, other):
        party.stream.reset()
    await asyncio.sleep(0.01)
    poller.close()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 -- any condition
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("kind", KINDS)
async def test_streams_carry_bytes_and_ends(make: Callable[[], Pair], parties: tuple[Party, Party]) -> None:
    one, other = parties
    for party, transform in zip(parties, make(), strict=True):
        party.stream.carry(transform)
    one.stream.write(BODY[:3_000_000])
    one.stream.finish()
    other.stream.write(BODY[:10])
    with pytest.raises(RuntimeError, match="written to after its end"):
        one.stream.write(b"more")
    await until(lambda: "finished" in other.told)
    assert other.read == BODY[:3_000_000]
    other.stream.write(BODY[10:20])
    other.stream.close()
    await until(lambda: "finished" in one.told)
    assert one.read == BODY[:20]
    assert (one.error, other.error, one.stream.held) == (None, None, 0)


@pytest.mark.parametrize("kind", ["tls"])
async def test_bytes_that_wait_for_the_handshake_count(make: Callable[[], Pair], parties: tuple[Party, Party]) -> None:
    one, other = parties
    ours, theirs = make()
    one.stream.carry(ours)
    one.stream.write(bytes(HIGH_WATER + 1))
    assert one.told == ["full"]
    assert one.stream.held == one.stream.unsent == HIGH_WATER + 1
    one.stream.finish()
    other.stream.carry(theirs)
    await until(lambda: "finished" in other.told)
    assert other.read == bytes(HIGH_WATER + 1)
    assert one.told[:2] == ["full", "room"]


@pytest.mark.parametrize("kind", ["doubling", "tls"])
async def test_bytes_that_are_wrong_end_the_stream(make: Callable[[], Pair], parties: tuple[Party, Party]) -> None:
    one, other = parties
    one.stream.carry(make()[1])
    other.stream.write(b"GET / HTTP/1.1\r\n\r\n")
    await until(lambda: "lost" in one.told)
    assert isinstance(one.error, OSError)
    assert not one.read


@pytest.mark.parametrize("kind", ["doubling", "tls"])
async def test_an_eof_in_the_middle_ends_the_stream(make: Callable[[], Pair], parties: tuple[Party, Party]) -> None:
    one, other = parties
    ours, theirs = make()
    one.stream.carry(ours)
    theirs.send(b"x")
    other.stream.write(theirs.output() or b"\x16")
    await asyncio.sleep(0.01)
    other.stream.write(b"x" if isinstance(theirs, Rotated) else b"\x16")
    other.stream.finish()
    await until(lambda: "lost" in one.told)
    assert "finished" not in one.told


# ---- a session ----


@contextlib.asynccontextmanager
async def tls_clients(on: Stage, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port whose connections become sessions that carry TLS to their client."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)

    class Acceptor:
        share = Share()

        def ready(self, events: int) -> None:
            sock, source = listening.accept()
            sock.setblocking(False)
            session = Session(on.ctx, on.ctx.shares.of(1))
            session.accepted(sock, named(source))
            session._client.carry(Tls(context, server=True))

    on.ctx.poller.watch(listening.fileno(), IN, Acceptor())
    try:
        yield listening.getsockname()[1]
    finally:
        on.ctx.poller.forget(listening.fileno())
        listening.close()


async def connected(port: int, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=NAME, local_addr=(CLIENT, 0), limit=1 << 25
    )


async def test_a_session_serves_a_tls_client_as_it_serves_others(contexts: tuple[ssl.SSLContext, ...]) -> None:
    ours, theirs = contexts
    async with backend(web) as server, stage(server, snapshot(gets())) as on, tls_clients(on, ours) as port:
        reader, writer = await connected(port, theirs)
        writer.write(request() + request("POST") + request(path="/b"))
        assert await answer(reader) == (200, b"GET / HTTP/1.1")
        assert (await answer(reader))[0] == 403
        assert await answer(reader) == (200, b"GET /b HTTP/1.1")
        writer.close()
        await on.settled()
        assert on.kinds() == "qsqsqs"
        assert on.ctx.counts.errors == 0


async def test_bodies_pass_unspliced_and_whole(contexts: tuple[ssl.SSLContext, ...]) -> None:
    ours, theirs = contexts
    async with backend(files) as server, stage(server, snapshot(ANY)) as on, tls_clients(on, ours) as port:
        reader, writer = await connected(port, theirs)
        writer.write(download())
        assert await answer(reader) == (200, BODY)
        assert on.ctx.pipes.used == 0
        writer.write(upload() + BODY)
        assert (await answer(reader))[0] == 200
        writer.write(b"GET /5 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert await answer(reader) == (200, BODY[:5])
        assert await reader.read() == b""
        writer.close()
        await on.settled()
        assert on.kinds() == "qsqsqs"


async def test_a_client_that_leaves_without_close_notify_is_recorded(contexts: tuple[ssl.SSLContext, ...]) -> None:
    ours, theirs = contexts

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with backend(silent) as server, stage(server, snapshot(gets())) as on, tls_clients(on, ours) as port:
        _, writer = await connected(port, theirs)
        writer.write(request())
        await on.until(lambda: on.kinds() == "q")
        writer.transport.abort()
        await on.settled()
        assert on.statuses() == [499]


@pytest.mark.parametrize("seed", range(3))
async def test_garbage_instead_of_tls_reaches_no_gate(contexts: tuple[ssl.SSLContext, ...], seed: int) -> None:
    async with backend(web) as server, stage(server, snapshot(gets())) as on, tls_clients(on, contexts[0]) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(CLIENT, 0))
        writer.write(random.Random(seed).randbytes(1000) if seed else request())
        with contextlib.suppress(ConnectionError):
            assert b"HTTP" not in await reader.read()
        await on.settled()
        assert not on.records
        writer.close()
