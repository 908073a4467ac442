"""The log on standard error: one line for each record, whatever is in it, and no waiting for its reader."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from l7proxy import log_output
from l7proxy.log_output import JsonFormatter, LineHandler, TextFormatter

FORGED = "first\nERROR forged: second\x1b[2K\r\x85end"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """16 pages, reading without waiting."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 16)
    os.set_blocking(reading, False)
    yield reading, writing
    for descriptor in (reading, writing):
        with suppress(OSError):
            os.close(descriptor)


@pytest.fixture
def logger(pipe: tuple[int, int]) -> Iterator[Callable[[logging.Formatter], logging.Logger]]:
    found = logging.Logger("l7proxy.test")
    handler = LineHandler(pipe[1])

    def formatted(form: logging.Formatter) -> logging.Logger:
        handler.setFormatter(form)
        found.addHandler(handler)
        return found

    with closing(handler):
        yield formatted


def lines(pipe: tuple[int, int]) -> list[dict[str, Any]]:
    data = os.read(pipe[0], 1 << 16)
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def test_json_is_one_line_for_each_record(pipe: tuple[int, int], logger: Any) -> None:
    log, before = logger(JsonFormatter("node-1")), datetime.now(UTC)
    log.warning("%s", FORGED)
    try:
        raise ValueError("a\nb")
    except ValueError:
        log.exception("broken")
    log.info("a path: %s", os.fsdecode(b"/x/\xff"))
    first, second, third = lines(pipe)
    at = first.pop("time")
    assert at.endswith("Z")
    assert abs((datetime.fromisoformat(at) - before).total_seconds()) < 60
    assert first == {"level": "warning", "logger": "l7proxy.test", "node": "node-1", "message": FORGED}
    assert (second["level"], second["message"]) == ("error", "broken")
    assert second["exception"].splitlines()[0] == "Traceback (most recent call last):"
    assert second["exception"].endswith("ValueError: a\nb")
    assert third["message"] == "a path: /x/\udcff"


def test_text_cannot_be_forged_by_what_is_logged(pipe: tuple[int, int], logger: Any) -> None:
    logger(TextFormatter()).warning("%s", FORGED)
    (line,) = os.read(pipe[0], 4096).decode().splitlines()
    assert line.endswith(r"WARNING l7proxy.test: first\nERROR forged: second\x1b[2K\r\x85end")


def test_a_reader_that_stands_still_costs_lines_which_are_counted(pipe: tuple[int, int], logger: Any) -> None:
    """The test ends at all only if no call waits."""
    log = logger(JsonFormatter("n"))
    for number in range(1000):
        log.info("%d %s", number, "x" * 90)
    handler = log.handlers[0]
    lost = handler.lost
    assert 500 < lost < 1000
    read = os.read(pipe[0], 1 << 16)
    log.info("after")
    read += os.read(pipe[0], 1 << 16)
    *kept, notice, last = [json.loads(line) for line in read.splitlines()]
    assert [int(one["message"].split()[0]) for one in kept] == list(range(1000 - lost)), "whole, and in order"
    assert (notice["level"], notice["message"]) == ("warning", f"{lost} lines of the log were lost: nobody read them")
    assert last["message"] == "after"
    assert handler.lost == 0


def test_a_line_longer_than_the_pipe_stays_whole(pipe: tuple[int, int], logger: Any) -> None:
    log = logger(JsonFormatter("n"))
    log.info("y" * 100_000)
    read = os.read(pipe[0], 1 << 16)
    for _ in range(10):
        log.info("next")
        read += os.read(pipe[0], 1 << 16)
    messages = [json.loads(line)["message"] for line in read.splitlines()]
    assert messages[0] == "y" * 100_000
    assert messages[-1] == "next"


def test_a_reader_that_is_gone_is_no_error(pipe: tuple[int, int], logger: Any, capfd: Any) -> None:
    log = logger(TextFormatter())
    os.close(pipe[0])
    log.warning("nobody")
    os.close(pipe[1])
    log.warning("nothing")
    assert capfd.readouterr() == ("", "")
    assert log.handlers[0].lost == 2


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_process_that_ends_with_an_error_says_it_in_its_format(form: str) -> None:
    code = (
        "import sys; from l7proxy import errors, log_output, process\n"
        f"log_output.start('info', {form!r}, 'n')\n"
        "def fail(): raise errors.ConfigError('wrong')\n"
        "sys.exit(process.exit_code(fail, errors.ConfigError))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    if form == "text":
        assert done.stderr == "error: wrong\n"
    else:
        (line,) = done.stderr.splitlines()
        assert (json.loads(line)["level"], json.loads(line)["message"]) == ("error", "wrong")


@pytest.mark.parametrize("where", ["1 / 0", "threading.Thread(target=lambda: 1 / 0).start()"])
def test_an_uncaught_exception_is_a_line_of_json(where: str) -> None:
    code = f"import threading; from l7proxy import log_output; log_output.start('info', 'json', 'n'); {where}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    found = json.loads(line)
    assert (found["level"], found["message"]) == ("critical", "uncaught exception")
    assert "ZeroDivisionError" in found["exception"]


def test_the_level_is_the_least_that_is_logged(capfd: Any) -> None:
    before = logging.getLogger().handlers[:]
    try:
        log_output.start("warning")
        logging.getLogger("l7proxy").info("no")
        logging.getLogger("l7proxy").warning("yes")
    finally:
        logging.basicConfig(handlers=before, force=True, level=logging.WARNING)
    assert capfd.readouterr().err.endswith("WARNING l7proxy: yes\n")
