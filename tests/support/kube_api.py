"""A small API server that speaks Kubernetes' HTTP API on localhost, in a thread of its own: lists in pages, watches
with bookmarks and streamed initial events, discovery, PATCH and POST, and every bad day that a test asks for.

Unlike a real one it stores what it is given, so that tests see what clients do with broken objects. Objects are kept
under paths of the test's choice; an object that gets another name under its path is deleted and created anew.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from aiohttp import web

from l7proxy.sources.kubernetes.reflector import Timing

T = TypeVar("T")
Object = Mapping[str, Any]

BUILT_IN: Final = {
    "v1": {"Node": "nodes", "Namespace": "namespaces", "Pod": "pods", "Service": "services", "Secret": "secrets",
           "ServiceAccount": "serviceaccounts", "ConfigMap": "configmaps"},
    "discovery.k8s.io/v1": {"EndpointSlice": "endpointslices"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "apiextensions.k8s.io/v1": {"CustomResourceDefinition": "customresourcedefinitions"},
    "apiregistration.k8s.io/v1": {"APIService": "apiservices"},
}  # fmt: skip
CLUSTER_WIDE: Final = frozenset(("Node", "Namespace", "CustomResourceDefinition", "APIService"))
QUICK: Final = Timing(first=0.01, longest=0.1)
"""Short pauses."""
TOKEN: Final = "test-token"


@dataclass(frozen=True, slots=True)
class Event:
    version: int
    type: str
    resource: tuple[str, str]
    value: Object


@dataclass(slots=True, eq=False)
class Trouble:
    """What happens to the next `count` requests whose path and query contain `of`: a status, or no answer at all."""

    of: str
    status: int = 500
    count: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    reason: str = ""
    message: str = "a test's trouble"


async def _turns() -> None:
    """Let the loop do what it has begun: to accept a connection takes three turns, to close one takes one."""
    for _ in range(10):
        await asyncio.sleep(0)


class KubeApi:
    """`url` stays the same over `stop` and `start`. `requests`: "METHOD path?query" of all that came."""

    def __init__(self, *, stream_lists: bool = True, tls: ssl.SSLContext | None = None) -> None:
        self.resources = {version: dict(kinds) for version, kinds in BUILT_IN.items()}
        self.requests: list[str] = []
        self.tokens = {TOKEN}
        self.troubles: list[Trouble] = []
        self.page = 500
        self.tls = tls
        self.authority: Path | None = None
        self._stream_lists = stream_lists
        self._objects: dict[str, Object] = {}
        self._events: list[Event] = []
        self._version = 1
        self._oldest = 0
        self._pages: dict[str, tuple[int, list[Object]]] = {}
        self._news = asyncio.Condition()
        self._bookmarks = 0
        self._ends = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="API server", daemon=True)
        self._thread.start()
        self._runner: web.AppRunner | None = None
        self._port = 0
        self.start()

    # What tests do. Each call returns when it is done.

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self._port}"

    def kubeconfig(self, folder: Path, token: str = TOKEN) -> Path:
        path = folder / "kubeconfig"
        trusted = {"certificate-authority": str(self.authority)} if self.authority else {}
        path.write_text(json.dumps({
            "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": self.url} | trusted}],
            "users": [{"name": "u", "user": {"token": token}}],
        }))  # fmt: skip
        return path

    def start(self) -> None:
        self._do(self._start())

    def stop(self) -> None:
        """Close the port and every connection, as if the process was killed."""
        self._do(self._stop())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def put(self, path: str, value: Object) -> None:
        self._do(self._put(path, value))

    def fill(self, objects: Mapping[str, Object]) -> None:
        """Add many at once, before any client watches."""
        stored = ((path, value, value.get("metadata", {})) for path, value in objects.items())
        self._objects |= {
            path: {**value, "metadata": {"uid": path, "resourceVersion": str(self._version), **metadata}}
            for path, value, metadata in stored
        }

    def delete(self, path: str) -> None:
        self._do(self._delete(path))

    def serve(self, version: str, kind: str, plural: str) -> None:
        """A CustomResourceDefinition appears."""
        self.resources.setdefault(version, {})[kind] = plural
        name = f"{plural}.{version.partition('/')[0]}"
        self.put(f"crd {name}", {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                                 "metadata": {"name": name}})  # fmt: skip

    def unserve(self, version: str, kind: str) -> None:
        """It goes, with its objects."""
        plural = self.resources[version].pop(kind)
        for path, value in [*self._objects.items()]:
            if (value["apiVersion"], value["kind"]) == (version, kind):
                self.delete(path)
        self.delete(f"crd {plural}.{version.partition('/')[0]}")

    def trouble(self, of: str, status: int = 500, count: int = 1, **more: Any) -> Trouble:
        self.troubles.append(Trouble(of, status, count, **more))
        return self.troubles[-1]

    def forget(self) -> None:
        """Compact: versions before now are 410 Gone, also those of continue tokens."""
        self._oldest = self._version
        self._pages.clear()

    def bookmark(self) -> None:
        """Send every watch a bookmark."""
        self._bookmarks += 1
        self._do(self._notify())

    def end_watches(self) -> None:
        """End every watch, as the server does after its timeout."""
        self._ends += 1
        self._do(self._notify())

    def get(self, path: str) -> Object:
        return self._objects[path]

    # What it does, in its own thread.

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        self._listener = socket.create_server(("127.0.0.1", self._port))
        await web.SockSite(self._runner, self._listener, ssl_context=self.tls).start()
        self._port = self._listener.getsockname()[1]

    async def _stop(self) -> None:
        if self._runner is not None:
            assert self._runner.server is not None
            self._loop.remove_reader(self._listener)  # asyncio leaks what it is accepting when the port is closed
            await _turns()
            for protocol in self._runner.server.connections:
                if protocol.transport is not None:
                    protocol.transport.abort()
            await _turns()  # aborted transports close their sockets
            await self._runner.cleanup()
            self._runner = None

    async def _put(self, path: str, value: Object) -> None:
        old = self._objects.get(path)
        named = {"namespace": "default"} if value["kind"] not in CLUSTER_WIDE else {}
        if old is not None and _name(old) != _name({"metadata": named | value.get("metadata", {})}):
            await self._delete(path)
            old = None
        self._version += 1
        metadata = {**named, "uid": path, "resourceVersion": str(self._version), **value.get("metadata", {})}
        self._objects[path] = {**value, "metadata": metadata}
        await self._happened("MODIFIED" if old else "ADDED", self._objects[path])

    async def _delete(self, path: str) -> None:
        value = self._objects.pop(path)
        self._version += 1
        await self._happened("DELETED", value)

    async def _happened(self, kind: str, value: Object) -> None:
        plural = self.resources.get(value["apiVersion"], {}).get(value["kind"])
        if plural:
            value = {**value, "metadata": {**value["metadata"], "resourceVersion": str(self._version)}}
            self._events.append(Event(self._version, kind, (value["apiVersion"], plural), value))
        await self._notify()

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        for trouble in self.troubles:
            if trouble.of in request.path_qs and trouble.count > 0:
                trouble.count -= 1
                if trouble.hang:
                    await asyncio.sleep(3600)
                return _status(trouble.status, trouble.reason, trouble.message, trouble.headers)
        if request.headers.get("Authorization", "").removeprefix("Bearer ").removeprefix("bearer ") not in self.tokens:
            return _status(401, "Unauthorized", "Unauthorized")
        parts = [part for part in request.path.split("/") if part]
        core = parts[:1] == ["api"]
        version, rest = ("v1", parts[2:]) if core else ("/".join(parts[1:3]), parts[3:])
        if parts[:1] == ["apis"] and len(parts) == 2:
            return self._group(parts[1])
        if not self.resources.get(version):
            return _status(404, "NotFound", "the server could not find the requested resource")
        if not rest:
            return self._discovery(version)
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            _, namespace, *rest = rest
        if rest[0] not in self.resources[version].values():
            return _status(404, "NotFound", "the server could not find the requested resource")
        if request.method != "GET":
            return await self._write(request, version, rest)
        chosen = _chooser(namespace, request.query.get("fieldSelector", ""))
        if request.query.get("watch") in ("1", "true"):
            return await self._watch(request, (version, rest[0]), chosen)
        return self._list(request, (version, rest[0]), chosen)

    async def _write(self, request: web.Request, version: str, rest: list[str]) -> web.Response:
        body = await request.json()
        if request.method == "POST":
            await self._put(f"{rest[0]}/{body['metadata']['name']}", {"apiVersion": version, **body})
            return web.json_response(body, status=201)
        path = next((key for key, value in self._objects.items() if value["metadata"]["name"] == rest[1]), "")
        if not path:
            return _status(404, "NotFound", f"{rest[1]} not found")
        await self._put(path, _merged(self._objects[path], body))
        return web.json_response(self._objects[path])

    def _group(self, group: str) -> web.Response:
        found = [version for version, kinds in self.resources.items() if kinds and version.startswith(f"{group}/")]
        if not found:
            return _status(404, "NotFound", "the server could not find the requested resource")
        return web.json_response({"kind": "APIGroup", "versions": [{"groupVersion": name} for name in found]})

    def _discovery(self, version: str) -> web.Response:
        items = [{"name": plural, "kind": kind, "namespaced": kind not in CLUSTER_WIDE, "verbs": ["list", "watch"]}
                 for kind, plural in self.resources[version].items()]  # fmt: skip
        return web.json_response({"kind": "APIResourceList", "groupVersion": version, "resources": items})

    def _now(self, resource: tuple[str, str], chosen: Callable[[Object], bool]) -> list[Object]:
        version, plural = resource
        kind = next(kind for kind, name in self.resources[version].items() if name == plural)
        return [value for value in self._objects.values()
                if (value["apiVersion"], value["kind"]) == (version, kind) and chosen(value)]  # fmt: skip

    def _list(self, request: web.Request, resource: tuple[str, str], chosen: Callable[[Object], bool]) -> web.Response:
        token = request.query.get("continue", "")
        if token and token not in self._pages:
            return _status(410, "Expired", "The provided continue parameter is too old")
        version, items = self._pages.pop(token) if token else (self._version, self._now(resource, chosen))
        limit = min(int(request.query.get("limit") or self.page), self.page)
        metadata = {"resourceVersion": str(version)}
        if items[limit:]:
            metadata["continue"] = f"{resource[1]}.{len(self.requests)}"
            self._pages[metadata["continue"]] = version, items[limit:]
        shown = [
            {key: value for key, value in item.items() if key not in ("apiVersion", "kind")} for item in items[:limit]
        ]  # fmt: skip - a list has them once
        return web.json_response({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": shown})

    async def _watch(
        self, request: web.Request, resource: tuple[str, str], chosen: Callable[[Object], bool]
    ) -> web.StreamResponse:
        initial, since = request.query.get("sendInitialEvents") == "true", request.query.get("resourceVersion", "")
        if initial and not self._stream_lists:
            return _status(422, "Invalid", "sendInitialEvents: Forbidden: feature gate WatchList is not enabled")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        seen = int(since or 0) if not initial else self._version
        marks, ends = self._bookmarks, self._ends
        if initial:
            for value in self._now(resource, chosen):
                await _line(response, "ADDED", value)
            ended = {"resourceVersion": str(seen), "annotations": {"k8s.io/initial-events-end": "true"}}
            await _line(response, "BOOKMARK", {"metadata": ended})
        elif seen < self._oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": f"too old resource version: {seen}"}
            await _line(response, "ERROR", gone)
            return response
        with suppress(ConnectionError):
            while self._ends == ends:
                for event in self._after(seen):
                    seen = event.version
                    if event.resource == resource and chosen(event.value):
                        await _line(response, event.type, event.value)
                if marks != self._bookmarks:
                    marks = self._bookmarks
                    await _line(response, "BOOKMARK", {"metadata": {"resourceVersion": str(self._version)}})
                async with self._news:
                    if not [*self._after(seen)] and self._ends == ends and marks == self._bookmarks:
                        await self._news.wait()
        return response

    def _after(self, version: int) -> Iterator[Event]:
        return iter([event for event in self._events if event.version > version])


def _name(value: Object) -> Any:
    metadata = value.get("metadata", {})
    return metadata.get("namespace"), metadata.get("name")


def _chooser(namespace: str, selector: str) -> Callable[[Object], bool]:
    wanted = dict(part.split("=") for part in selector.split(",") if part)

    def chosen(value: Object) -> bool:
        metadata = value["metadata"]
        return (not namespace or metadata.get("namespace") == namespace) and all(
            metadata.get(key.removeprefix("metadata.")) == text for key, text in wanted.items()
        )

    return chosen


def _merged(value: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    base = dict(value) if isinstance(value, dict) else {}
    for key, part in patch.items():
        if part is None:
            base.pop(key, None)
        else:
            base[key] = _merged(base.get(key), part)
    return base


async def _line(response: web.StreamResponse, kind: str, value: Object) -> None:
    await response.write(json.dumps({"type": kind, "object": value}).encode() + b"\n")


def _status(code: int, reason: str, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}
    return web.json_response(body, status=code, headers=headers)
