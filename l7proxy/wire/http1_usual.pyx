# cython: language_level=3
"""Reads the usual HTTP/1 heads in one pass over their bytes: http1_usual.py says which, and what the result is.

Memory: every pointer is into the bytes that the caller holds during the call, and none outlives it. CPython puts a NUL
behind the last byte of a bytes object. NUL is in no set of allowed bytes, so each scan ends at the NUL at the latest,
and each comparison ends at the first byte that differs: nothing behind the NUL is read.
"""

import re

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from l7proxy.wire import authority, path
from l7proxy.wire import head as limits

ctypedef const unsigned char *Bytes

cdef enum:  # what a byte may be part of
    PATH = 1
    QUERY = 2
    NAME = 4  # of a header
    VALUE = 8
    HOST = 16

cdef enum:  # which header a name is
    OTHER
    HOST_HEADER
    CONTENT_LENGTH
    CONNECTION
    CODING  # Transfer-Encoding
    RARE  # Expect, Upgrade
    TRACE

cdef enum:
    INVALID = -3  # framing that is not usual; below limits.UNTIL_CLOSE

cdef struct Fields:
    Bytes host  # NULL: absent
    Py_ssize_t host_size
    long long framing
    bint framed  # `framing` comes from a header
    bint connection  # present
    bint keep_alive
    bint traced

cdef unsigned char[256] KINDS
cdef Py_ssize_t MAX_HEAD = limits.MAX_HEAD
cdef Py_ssize_t MAX_HEADERS = limits.MAX_HEADERS
cdef Py_ssize_t MAX_PATH = path.MAX_PATH
cdef Py_ssize_t MAX_TARGET = path.MAX_TARGET
cdef Py_ssize_t MAX_HOST = authority.MAX_AUTHORITY
cdef long long CHUNKED = limits.CHUNKED
cdef long long UNTIL_CLOSE = limits.UNTIL_CLOSE


cdef void fill_kinds():
    """Paths and queries: the sets of path.py themselves. The others: a part of what http1_fast and authority allow."""
    for kind, begin, allowed in (
        (PATH, b"/", path.SEGMENTS),
        (QUERY, b"?", path.QUERY),
        (NAME, b"", rb"[\-0-9A-Za-z]"),
        (VALUE, b"", rb"[ -~]"),
        (HOST, b"", rb"[A-Za-z0-9._~-]"),
    ):
        whole = re.compile(allowed)
        for byte in range(256):
            if whole.fullmatch(begin + bytes([byte])):
                KINDS[byte] |= <unsigned char> kind


fill_kinds()


def request(bytes data not None):
    cdef Bytes start = <Bytes> PyBytes_AS_STRING(data)
    cdef Bytes at = start
    cdef Bytes target
    cdef Bytes host
    cdef Py_ssize_t method_size, target_size, size
    cdef Fields fields
    while c"A" <= at[0] <= c"Z":
        at += 1
    method_size = at - start
    if not 1 <= method_size <= 16 or at[0] != c" " or starts(start, b"CONNECT "):
        return None
    target = at + 1
    at = after_target(target)
    if at is NULL:
        return None
    target_size = at - target
    if not starts(at, b" HTTP/1.1\r\n"):
        return None
    set_absent(&fields, 0)
    at = after_headers(at + 11, &fields)
    if at is NULL or fields.host is NULL or fields.framing < 0:
        return None
    size = at - start
    if size > MAX_HEAD:
        return None
    return (
        start[:method_size],
        target[:target_size],
        fields.host[:fields.host_size],
        fields.framing,
        fields.keep_alive,
        fields.traced,
        size,
    )


def response(bytes data not None):
    cdef Bytes start = <Bytes> PyBytes_AS_STRING(data)
    cdef Bytes at = start
    cdef Py_ssize_t size
    cdef int status
    cdef Fields fields
    if not starts(start, b"HTTP/1.1 "):
        return None
    at = start + 9
    if not (c"2" <= at[0] <= c"5" and is_digit(at[1]) and is_digit(at[2])):
        return None
    status = 100 * (at[0] - c"0") + 10 * (at[1] - c"0") + at[2] - c"0"
    at += 3
    if at[0] == c" ":  # a reason
        at = after(at, VALUE)
    if not starts(at, b"\r\n"):
        return None
    set_absent(&fields, UNTIL_CLOSE)
    at = after_headers(at + 2, &fields)
    if at is NULL:
        return None
    size = at - start
    if size > MAX_HEAD:
        return None
    return status, fields.framing, fields.keep_alive, size


cdef inline void set_absent(Fields *fields, long long framing) noexcept nogil:
    """The values when no header says otherwise."""
    fields.host = NULL
    fields.host_size = 0
    fields.framing = framing
    fields.framed = fields.connection = fields.traced = False
    fields.keep_alive = True


cdef inline bint is_digit(unsigned char byte) noexcept nogil:
    return c"0" <= byte <= c"9"


cdef inline bint starts(Bytes at, const char *expected) noexcept nogil:
    """Whether `expected`, which holds no NUL, comes next."""
    while expected[0]:
        if at[0] != <unsigned char> expected[0]:
            return False
        at += 1
        expected += 1
    return True


cdef inline Bytes after(Bytes at, unsigned char kind) noexcept nogil:
    """The first byte that is not of this kind."""
    while KINDS[at[0]] & kind:
        at += 1
    return at


cdef inline Bytes after_target(Bytes target) noexcept nogil:
    """The end of a path that is its own normal form, and of its query. NULL when it may not be so, or is too long."""
    cdef Bytes at = target
    if at[0] != c"/":
        return NULL
    while KINDS[at[0]] & PATH:
        if at[0] == c"/" and (at[1] == c"/" or at[1] == c"."):
            return NULL
        at += 1
    if at - target > MAX_PATH:
        return NULL
    if at[0] == c"?":
        at = after(at + 1, QUERY)
    return at if at - target <= MAX_TARGET else NULL


cdef Bytes after_headers(Bytes at, Fields *fields) noexcept nogil:
    """What follows the empty line. NULL when a header is not usual, or there is no empty line."""
    cdef Bytes name
    cdef Bytes value
    cdef Bytes end
    cdef Py_ssize_t count = 0
    while at[0] != c"\r":
        name = at
        at = after(at, NAME)
        if at == name or at[0] != c":":
            return NULL
        value = at + 1
        end = after(value, VALUE)
        if end[-1] == c" " or not starts(end, b"\r\n"):  # end[-1] is the colon when there is no value
            return NULL
        while value[0] == c" ":
            value += 1
        count += 1
        if count > MAX_HEADERS or not note(fields, known(name, at - name), value, end):
            return NULL
        at = end + 2
    return at + 2 if at[1] == c"\n" else NULL


cdef inline int known(Bytes name, Py_ssize_t size) noexcept nogil:
    """Which header this is. By its size first: few others have the same."""
    if size == 4:
        return HOST_HEADER if same(name, b"host") else OTHER
    if size == 10:
        return CONNECTION if same(name, b"connection") else OTHER
    if size == 14:
        return CONTENT_LENGTH if same(name, b"content-length") else OTHER
    if size == 17:
        return CODING if same(name, b"transfer-encoding") else OTHER
    if size == 6:
        return RARE if same(name, b"expect") else OTHER
    if size == 7:
        return RARE if same(name, b"upgrade") else OTHER
    if size == 11:
        return TRACE if same(name, b"traceparent") else OTHER
    if size == 12:
        return TRACE if same(name, b"x-b3-traceid") else OTHER
    if size == 2:
        return TRACE if same(name, b"b3") else OTHER
    return OTHER


cdef inline bint same(Bytes name, const char *expected) noexcept nogil:
    """Whether the name is `expected`, whose letters are lower case. Both have the same size.

    A digit or a hyphen has bit 0x20 set already; the only other bytes that it makes one of these are control bytes,
    which no name has.
    """
    while expected[0]:
        if (name[0] | 0x20) != <unsigned char> expected[0]:
            return False
        name += 1
        expected += 1
    return True


cdef inline bint note(Fields *fields, int header, Bytes value, Bytes end) noexcept nogil:
    """Take what a header says. False when it is not usual; one that may occur once occurs once."""
    if header == OTHER:
        return True
    if header == TRACE:
        fields.traced = True
        return True
    if header == HOST_HEADER:
        if fields.host is not NULL or not is_host(value, end):
            return False
        fields.host = value
        fields.host_size = end - value
        return True
    if header == CONNECTION:
        if fields.connection:
            return False
        fields.connection = True
        fields.keep_alive = is_keep_alive(value, end)
        return fields.keep_alive or (end - value == 5 and starts(value, b"close"))
    if fields.framed or header == RARE:
        return False
    fields.framed = True
    if header == CODING:  # a request with one is not usual: `request` demands a framing that is a length
        fields.framing = CHUNKED if end - value == 7 and starts(value, b"chunked") else INVALID
    else:
        fields.framing = length(value, end)
    return fields.framing != INVALID


cdef inline bint is_keep_alive(Bytes value, Bytes end) noexcept nogil:
    if end - value != 10 or not (value[0] == c"k" or value[0] == c"K") or not (value[5] == c"a" or value[5] == c"A"):
        return False
    return starts(value + 1, b"eep-") and starts(value + 6, b"live")


cdef inline bint is_host(Bytes value, Bytes end) noexcept nogil:
    """A name or an IPv4 address, with an optional port of one to five digits."""
    cdef Bytes at = after(value, HOST)
    cdef Bytes port
    if at == value or end - value > MAX_HOST:
        return False
    if at[0] == c":":
        port = at + 1
        at = port
        while is_digit(at[0]):
            at += 1
        if not 1 <= at - port <= 5:
            return False
    return at == end


cdef inline long long length(Bytes value, Bytes end) noexcept nogil:
    """Of at most 18 digits, without a needless zero; else INVALID."""
    cdef long long number = 0
    cdef Bytes at = value
    if not 1 <= end - value <= 18 or (at[0] == c"0" and end - value > 1):
        return INVALID
    while at < end:
        if not is_digit(at[0]):
            return INVALID
        number = number * 10 + at[0] - c"0"
        at += 1
    return number
