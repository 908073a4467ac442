"""Finds the trace id of a request in its headers: W3C Trace Context, or Zipkin's B3 with one header or several.

Only well-formed ids count. A header that is repeated says nothing. `traceparent` is asked first, as OpenTelemetry does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from l7proxy.wire.head import Header

TRACEPARENT: Final = b"traceparent"
B3: Final = b"b3"
B3_TRACE_ID: Final = b"x-b3-traceid"
NO_ID: Final = "0" * 32

_FIELD: Final = re.compile(rb"\r\n((?i:traceparent|b3|x-b3-traceid)): *+([^\r]*+)(?=\r\n)")
_TRACEPARENT: Final = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?\Z")
"""https://www.w3.org/TR/trace-context-1/#traceparent-header-field-values: later versions may append to it."""
_B3: Final = re.compile(rb"([0-9a-f]{16}|[0-9a-f]{32})-[0-9a-f]{16}(?:-[01d](?:-[0-9a-f]{16})?)?\Z")
_B3_TRACE_ID: Final = re.compile(rb"([0-9a-f]{16}|[0-9a-f]{32})\Z")
"""https://github.com/openzipkin/b3-propagation: ids of 64 or 128 bits."""


def of_head(raw: bytes) -> str:
    """The trace id in the bytes of an HTTP/1 head that a reader has checked: 32 hexadecimal digits, "" if it has none.

    Hot: most requests have none, and the three searches for parts of the names are what they pay. Not `in`: it first
    takes its operand for an integer, and formats the error.
    """
    if raw.find(b"raceparent") < 0 and raw.find(b"b3") < 0 and raw.find(b"B3") < 0:
        return ""
    return _of([(name.lower(), value.rstrip(b" \t")) for name, value in _FIELD.findall(raw)])


def of_headers(headers: Iterable[Header]) -> str:
    """The same of headers with names in lower case."""
    found = [header for header in headers if header[0] == TRACEPARENT or header[0] == B3 or header[0] == B3_TRACE_ID]
    return _of(found) if found else ""


def _of(found: Sequence[Header]) -> str:
    named = dict(found)
    if len(named) != len(found):
        return ""
    traceparent = _TRACEPARENT.match(named.get(TRACEPARENT, b""))
    if traceparent is not None and (traceparent[1] != b"00" or traceparent[3] is None):
        trace_id = traceparent[2]
    else:
        b3 = _B3.match(named.get(B3, b"")) or _B3_TRACE_ID.match(named.get(B3_TRACE_ID, b""))
        trace_id = b3[1] if b3 is not None else b""
    text = str(trace_id, "ascii").zfill(32)
    return text if text != NO_ID else ""
