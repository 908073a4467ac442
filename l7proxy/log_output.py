"""Writes the log of a process to standard error: text or JSON, one line for each record, never waiting for a reader.

Standard error is as a rule a pipe to a container runtime or to journald. A reader that stands still must not hold up
an event loop: what the pipe does not take at once is dropped, and the next line that fits says how many were.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal

Format = Literal["text", "json"]
_ESCAPED: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0))} | {10: "\\n", 13: "\\r", 9: " "}
"""Control characters, as in names that tenants choose: they could forge lines, or control a terminal."""


def start(level: str, form: Format = "text", node: str = "", *, fd: int = 2) -> None:
    """Log to `fd` from now on, from this level. `node` is a field of JSON lines."""
    handler = LineHandler(fd)
    handler.setFormatter(JsonFormatter(node) if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    if form == "json":
        sys.excepthook = _uncaught
        threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def complain(text: str) -> None:
    """An error that ends the process: `error: …`, or a line of JSON where the log is JSON."""
    if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers):
        logging.getLogger("l7proxy").error("%s", text)
    else:
        print(f"error: {text}", file=sys.stderr)


class TextFormatter(logging.Formatter):
    """`2026-12-02 18:00:00,123 WARNING l7proxy.agent.run: message`. Only the traceback of a fault is more lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the name in logging)
        return super().formatMessage(record).translate(_ESCAPED)


class JsonFormatter(logging.Formatter):
    """`{"time": RFC 3339 in UTC, "level": …, "logger": …, "node": …, "message": …, "exception": a traceback}`."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "node": self._node,
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False)


class LineHandler(logging.Handler):
    """Writes whole lines to a descriptor that it does not own. `lost` counts those dropped since the last notice."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.lost = 0
        self._fd = fd
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self._notice() + self._line(record)
        except Exception:  # noqa: BLE001  (a wrong format string must not end what is logged)
            self.handleError(record)
            return
        data = self._rest + lines
        written = self._out(data)
        if written <= len(self._rest) < len(data):
            self._rest = self._rest[written:]
            self.lost += 1
        else:
            self._rest = data[written:]
            self.lost = 0

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(errors="backslashreplace") + b"\n"

    def _notice(self) -> bytes:
        if not self.lost:
            return b""
        text = "%d lines of the log were lost: nobody read them"
        return self._line(logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (self.lost,), None))

    def _out(self, data: bytes) -> int:
        """As much as is taken at once. Pieces of PIPE_BUF do not block when poll says that there is room (pipe(7))."""
        written = 0
        with suppress(OSError):
            while written < len(data) and self._poll.poll(0):
                written += os.write(self._fd, data[written : written + select.PIPE_BUF])
        return written


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None and not issubclass(kind, KeyboardInterrupt):
        logging.getLogger("l7proxy").critical("uncaught exception", exc_info=(kind, error, trace))
