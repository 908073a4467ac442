"""The response corpus through the real worker: a client sees what the server sent, byte for byte, or our 502."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from collections.abc import Iterator
from pathlib import Path

import pytest

from l7proxy.flows.records import HttpResponse
from l7proxy.policy.rules import HttpRule
from tests.lab.front import front, serving
from tests.lab.test_http_backends import SPLITS
from tests.lab.test_worker_packets import REF, Net, net  # noqa: F401 -- a fixture
from tests.unit.wire import corpus

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("split", SPLITS)
async def test_corpus_answers_are_shown_whole_or_not_at_all(net: Net, tmp_path: Path, split: str) -> None:  # noqa: F811
    paths = corpus.files("responses")
    turns: Iterator[Path] = iter(paths)

    async def answer(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in SPLITS[split](next(turns).read_bytes()):
            writer.write(piece)
            await writer.drain()

    shown: list[bytes] = []
    async with serving(net, answer), front(net, tmp_path, HttpRule(REF)) as on:
        for _ in paths:
            reader, writer = await on.client()
            writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            async with asyncio.timeout(10):
                shown.append(await reader.read())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while len(on.records) < 2 * len(paths):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        told = [record.status for record in on.records if isinstance(record, HttpResponse)]
    assert told == [corpus.status(path) for path in paths]
    for path, data in zip(paths, shown, strict=True):
        if corpus.status(path) == 502:
            assert data.startswith(b"HTTP/1.1 502 "), path.name
            assert data.count(b"\r\n\r\n") == 1, path.name
        else:
            assert data == corpus.forwarded(path.read_bytes()), path.name
