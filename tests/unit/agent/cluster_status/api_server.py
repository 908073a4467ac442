"""A small API server over real HTTP: objects by path, versions, selectors, watches, server-side apply of what we send.

It counts all requests, and can refuse or end them. What the real one does besides is tried in tests/kube.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from l7proxy.sources.kubernetes.connection import Connection
from l7proxy.sources.kubernetes.credentials import Access

Object = dict[str, Any]
COLLECTIONS = ("leases", "nodes", "events", "ciliumnetworkpolicies", "ciliumclusterwidenetworkpolicies")


class ApiServer:
    """`objects`: by path. `refuse`: called with method and path, returns a status to answer with, or 0."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.requests: list[tuple[str, str]] = []
        self.watches: set[asyncio.Queue[Object | None]] = set()
        self.refuse: Callable[[str, str], int] = lambda method, path: 0
        self.drops_unknown = False
        self._version = 0
        self.port = 0

    def put(self, path: str, found: Object) -> Object:
        """An object appears or changes."""
        self._version += 1
        kind = "MODIFIED" if path in self.objects else "ADDED"
        found.setdefault("metadata", {})["resourceVersion"] = str(self._version)
        self.objects[path] = found
        self._tell(kind, path)
        return found

    def remove(self, path: str) -> None:
        self._version += 1
        self.objects[path]["metadata"]["resourceVersion"] = str(self._version)
        self._tell("DELETED", path)
        del self.objects[path]

    def end_watches(self) -> None:
        for watch in self.watches:
            watch.put_nowait(None)

    def count(self) -> Counter[str]:
        """Requests by method and the last part of the path that is a collection, without watches."""
        found: Counter[str] = Counter()
        for method, path in self.requests:
            collection = next((part for part in path.split("/") if part in COLLECTIONS), path)
            found[f"{method} {collection}{'/status' if path.endswith('/status') else ''}"] += 1
        return found

    def _tell(self, kind: str, path: str) -> None:
        event = {"type": kind, "object": json.loads(json.dumps(self.objects[path])), "path": path}
        for watch in self.watches:
            watch.put_nowait(event)

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[None]:
        application = web.Application(client_max_size=1 << 24)
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield
        finally:
            self.end_watches()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        watch = request.query.get("watch") == "true"
        self.requests.append(("WATCH" if watch else request.method, path))
        if status := self.refuse(request.method, path):
            return _status(status, "refused by the test")
        if watch:
            return await self._watch(request)
        if request.method == "GET":
            return self._list(request)
        body = json.loads(await request.read())
        if request.method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return _status(409, "AlreadyExists")
            return web.json_response(self.put(path, body), status=201)
        if request.method == "PUT":
            before = self.objects.get(path)
            if before is None or before["metadata"]["resourceVersion"] != body["metadata"].get("resourceVersion"):
                return _status(409, "Conflict")
            return web.json_response(self.put(path, body))
        assert request.method == "PATCH"
        assert request.content_type == "application/apply-patch+yaml"
        assert request.query["fieldManager"] == "l7proxy"
        return self._apply(path, body)

    def _apply(self, path: str, body: Object) -> web.Response:
        before = self.objects.get(path.removesuffix("/status"))
        if not path.endswith("/status"):
            return web.json_response(self.put(path, body))
        if before is None:
            return _status(404, "NotFound")
        old = {one["type"]: one for one in before.get("status", {}).get("conditions", [])}
        new = {one["type"]: one for one in body["status"]["conditions"]}
        if self.drops_unknown:
            for one in new.values():
                del one["observedGeneration"]
        status = {"conditions": list((old | new).values())}
        return web.json_response(self.put(path.removesuffix("/status"), before | {"status": status}))

    def _list(self, request: web.Request) -> web.Response:
        found = [one for path, one in sorted(self.objects.items()) if _wanted(request, path, one)]
        size, start = int(request.query.get("limit", "0")) or len(found), int(request.query.get("continue", "0"))
        metadata = {"resourceVersion": str(self._version)}
        if start + size < len(found):
            metadata["continue"] = str(start + size)
        return web.json_response({"metadata": metadata, "items": found[start : start + size]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        queue: asyncio.Queue[Object | None] = asyncio.Queue()
        since = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        for path, one in list(self.objects.items()):
            if int(one["metadata"]["resourceVersion"]) > since and _wanted(request, path, one):
                await response.write(json.dumps({"type": "MODIFIED", "object": one}).encode() + b"\n")
        self.watches.add(queue)
        with suppress(ConnectionError):
            while (event := await queue.get()) is not None:
                if _wanted(request, event["path"], event["object"]):
                    await response.write(json.dumps(event).encode() + b"\n")
        self.watches.discard(queue)
        return response

    @asynccontextmanager
    async def connect(self, directory: Path) -> AsyncIterator[Connection]:
        async with Connection(Access(kubeconfig=str(self.kubeconfig(directory)))) as api:
            yield api

    def kubeconfig(self, directory: Path) -> Path:
        path = directory / "kubeconfig"
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        user = {"name": "u", "user": {"token": "t"}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "x"}
        path.write_text(json.dumps(config | {"clusters": [cluster], "users": [user], "contexts": [context]}))
        return path


def _wanted(request: web.Request, path: str, one: Object) -> bool:
    """Whether the object is in the collection, of any namespace, and has what the selectors ask for."""
    *above, collection = request.path.strip("/").split("/")
    parts = path.strip("/").split("/")
    if parts[:-2][: len(above)] != above or parts[-2] != collection:
        return False
    metadata = one["metadata"]
    for each in filter(None, request.query.get("labelSelector", "").split(",")):
        key, _, value = each.partition("=")
        if metadata.get("labels", {}).get(key) != value:
            return False
    name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
    return name in ("", metadata["name"])


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "message": message, "reason": message}, status=code)
