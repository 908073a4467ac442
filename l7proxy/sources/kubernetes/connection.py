"""Authenticated requests to the Kubernetes API server. Answers are raw bytes: models cost many times their memory.

    async with Connection(Access()) as api:
        body = await api.request("GET", "/api/v1/nodes", query={"limit": "500"})
        await api.request("PATCH", path, body={"status": …}, content_type=MERGE_PATCH)
        async with api.stream("/api/v1/pods", {"watch": "1"}, silence=150) as response:
            async for chunk in response.content.iter_any(): …

Credentials that are replaced on disk, a rotated CA among them, are read before the next request; after a 401 or a
failed TLS handshake they are read again and the request is repeated once. Running streams keep their connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import msgspec
from kubernetes.aio import client

from l7proxy.errors import ApiError, ConfigError
from l7proxy.sources.kubernetes.credentials import Access, Login, load

log = logging.getLogger(__name__)

JSON: Final = "application/json"
METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Objects with their metadata alone. For a list: `METADATA_LIST`."""
METADATA_LIST: Final = METADATA.replace("Metadata;", "MetadataList;")
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_PATCH: Final = "application/strategic-merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
TIMEOUT: Final = 30.0
"""Seconds for a whole request."""
CONNECT: Final = 10.0
"""Seconds for a TCP connection and the TLS handshake."""
CHECK: Final = 1.0
"""Seconds between looks at the files of the credentials."""
KEEPALIVE: Final = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
"""A stream is silent for long: a server that is gone without a word is noticed after half a minute."""
DEAD: Final = 30_000
"""Milliseconds after which a connection whose sent data is not acknowledged is closed."""
MESSAGE: Final = 4096
"""Bytes of an error's body that are read."""


class Status(msgspec.Struct):
    """The body of a refusal (`Status` of meta/v1): only what a message needs."""

    message: str = ""
    reason: str = ""


@dataclass(slots=True, eq=False)
class _Session:
    """A client with one version of the credentials; closed when it is replaced and no request uses it."""

    login: Login
    api: Any
    connector: aiohttp.TCPConnector
    users: int = 0
    replaced: bool = False
    looked: float = field(default_factory=time.monotonic)

    async def close(self) -> None:
        await self.api.close()
        await self.connector.close()


@dataclass(frozen=True, slots=True)
class _Question:
    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    content_type: str
    accept: str
    limits: aiohttp.ClientTimeout

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class Connection:
    """A connection to one API server, for any number of concurrent requests. ConfigError: unusable credentials."""

    def __init__(self, access: Access | None = None) -> None:
        self._access = access or Access()
        self._session: _Session | None = None
        self._loading = asyncio.Lock()
        self.location = ""
        """The server's URL."""
        self.cluster = ""
        """Of the credentials in use (`Login.cluster`). When it changes, versions of objects mean nothing any more."""

    async def __aenter__(self) -> Self:
        await self._replace(None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all requests. A later one opens it again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        accept: str = JSON,
        timeout: float = TIMEOUT,  # noqa: ASYNC109 - of the socket, not only of the task
    ) -> bytes:
        """The body of a successful answer. `body` is encoded as JSON. ApiError: no answer within `timeout`, or none
        that is 2xx."""
        limits = aiohttp.ClientTimeout(total=timeout, connect=CONNECT)
        asked = _Question(method, path, query or {}, body, content_type, accept, limits)
        async with self._opened(asked) as response:
            return await response.read()

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str] | None = None, *, silence: float, accept: str = JSON
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to GET, whose content the caller reads. ApiError, also from the caller's reads, when nothing
        comes for `silence` seconds."""
        limits = aiohttp.ClientTimeout(total=None, connect=CONNECT, sock_read=silence)
        async with self._opened(_Question("GET", path, query or {}, None, JSON, accept, limits)) as response:
            yield response

    @asynccontextmanager
    async def _opened(self, asked: _Question) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            session = await self._current()
            response = await self._ask(session, asked)
            if response is None:  # its credentials are not accepted
                session = await self._replace(session)
                response = await self._ask(session, asked, last=True)
                assert response is not None
            try:
                if response.status >= 300:
                    raise await _refusal(asked, response)
                yield response
            finally:
                response.release()
                await self._done(session)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(f"{asked}: {_reason(error)}") from error

    async def _ask(self, session: _Session, asked: _Question, *, last: bool = False) -> aiohttp.ClientResponse | None:
        """The answer, which uses the session until `_done`; None if new credentials may help, unless it is the `last`
        attempt."""
        session.users += 1
        response = None
        try:
            response = await _send(session.api, asked)
            if last or response.status != 401:
                return response
            response.release()
        except aiohttp.ClientSSLError:
            if last:
                raise
        finally:
            if response is None or (response.status == 401 and not last):
                await self._done(session)
        return None

    async def _current(self) -> _Session:
        """The session; a new one when the files of its credentials have changed."""
        session, now = self._session, time.monotonic()
        if session is None:
            return await self._replace(None)
        if now - session.looked >= CHECK:
            session.looked = now
            if session.login.changed:
                with suppress(ApiError):  # the old ones may still be good
                    return await self._replace(session)
        return session

    async def _replace(self, old: _Session | None) -> _Session:
        """A session with the credentials as they are on disk now, unless another task has replaced `old` meanwhile."""
        async with self._loading:
            if self._session is not None and self._session is not old:
                return self._session
            try:
                login = await load(self._access)
                fresh = _session(login)
            except ConfigError as error:
                if old is None and self._session is None:
                    raise
                raise ApiError(str(error)) from error
            self._session, self.location = fresh, login.configuration.host
            if self.cluster not in ("", login.cluster):
                log.warning("the API server is %s now, or has other CA certificates: listing all again", self.location)
            self.cluster = login.cluster
            if old is not None:
                old.replaced = True
                if not old.users:
                    await old.close()
            return fresh

    async def _done(self, session: _Session) -> None:
        session.users -= 1
        if session.replaced and not session.users:
            await session.close()


def _session(login: Login) -> _Session:
    try:
        api = client.ApiClient(login.configuration)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        named = " or ".join(str(path) for path in login.files)
        raise ConfigError(f"credentials for the Kubernetes API: a certificate of {named}: {error}") from error
    connector = aiohttp.TCPConnector(limit=0, ssl=api.rest_client.ssl_context, socket_factory=_socket)
    login.configuration.client_session_kwargs = {"connector": connector}
    api.user_agent = "l7proxy"
    return _Session(login, api, connector)


def _socket(info: Any) -> socket.socket:
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD)
    return made


async def _send(api: Any, asked: _Question) -> aiohttp.ClientResponse:
    url = await api.param_serialize(
        asked.method,
        asked.path,
        query_params=list(asked.query.items()),
        header_params={"Accept": asked.accept, "Content-Type": asked.content_type},
        body=asked.body,
        auth_settings=["BearerToken"],
    )
    answer = await api.call_api(*url, _request_timeout=asked.limits)
    response: aiohttp.ClientResponse = answer.response
    return response


async def _refusal(asked: _Question, response: aiohttp.ClientResponse) -> ApiError:
    """What the server says, which is not of the network's making: at most MESSAGE bytes of it."""
    status = Status()
    with suppress(msgspec.MsgspecError, aiohttp.ClientError, TimeoutError):
        status = msgspec.json.decode(await response.content.read(MESSAGE), type=Status)
    what = status.message or response.reason or ""
    return ApiError(
        f"{asked}: {response.status} {what}".rstrip(),
        status=response.status,
        reason=status.reason,
        retry_after=_seconds(response.headers.get("Retry-After", "")),
    )


def _seconds(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() else None


def _reason(error: BaseException) -> str:
    """A sentence for people: aiohttp's own texts name its classes, or nothing at all for a timeout."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection ended within the answer"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.errno and not isinstance(cause, ssl.SSLError | socket.gaierror):
        return os.strerror(cause.errno)  # asyncio's text has no reason
    return str(cause) or type(cause).__name__
