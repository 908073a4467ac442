"""Two independent HTTP servers that log every request as they parsed it: nginx, and aiohttp (llhttp).

Each runs in a namespace of its test, on port 80 of one address; aiohttp's server is this file, run as a program.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.unit.proxy.netns import Namespace

ROOT: Final = Path(__file__).resolve().parents[2]
NGINX: Final = """
daemon off; master_process off; worker_processes 1; pid {place}/nginx.pid; error_log {place}/error.log;
events {{ worker_connections 512; }}
http {{
  log_format seen escape=json '{{"line": "$request", "method": "$request_method", "target": "$request_uri", '
    '"host": "$http_host", "body": "$request_body", "status": $status}}';
  client_body_temp_path {place}/body; proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/f;
  uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;
  client_header_buffer_size 64k; large_client_header_buffers 8 64k;
  client_body_buffer_size 1m; client_max_body_size 0; keepalive_requests 100000;
  server {{
    listen {address}:80 backlog=512; access_log {place}/nginx.log seen;
    location / {{ proxy_pass http://unix:{place}/behind.sock; proxy_http_version 1.1; }}
  }}
  server {{ listen unix:{place}/behind.sock; access_log off; return 200 "ok\\n"; }}
}}
"""


@dataclass(frozen=True)
class Seen:
    """One request as a server read it, whole. `target` is the request target without scheme and authority."""

    method: str
    target: str
    host: str
    body: bytes


class Witness:
    """A server that keeps a log. Only requests that it read completely and answered with 200 are `seen`."""

    def __init__(self, name: str, address: str, log: Path) -> None:
        self.name = name
        self.address = address
        self._log = log
        self._read = 0

    async def seen(self, count: int) -> list[Seen]:
        """The requests since the last call: waits for `count` of them, or until a timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                while len(self._lines()) < count:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)  # an extra one would come late
        text = self._log.read_text("latin-1")
        found = self._lines()
        self._read = len(text)
        return found

    def _lines(self) -> list[Seen]:
        lines = self._log.read_text("latin-1")[self._read :].split("\n")[:-1]
        return [_seen(resource) for line in lines if (resource := json.loads(line))["status"] == 200]


def _seen(resource: dict[str, Any]) -> Seen:
    target = resource["target"]
    if target.lower().startswith("http://"):
        target = "/" + target.split("/", 3)[3]
    return Seen(resource["method"], target, resource["host"], resource["body"].encode("latin-1"))


@contextlib.asynccontextmanager
async def nginx(where: Namespace, address: str, place: Path) -> AsyncIterator[Witness]:
    shown = f"[{address}]" if ":" in address else address
    (place / "nginx.conf").write_text(NGINX.format(place=place, address=shown))
    (place / "nginx.log").touch()
    async with _running(where, ["nginx", "-p", str(place), "-c", str(place / "nginx.conf")], address):
        yield Witness("nginx", address, place / "nginx.log")


@contextlib.asynccontextmanager
async def llhttp(where: Namespace, address: str, place: Path) -> AsyncIterator[Witness]:
    log = place / "aiohttp.log"
    log.touch()
    async with _running(where, [sys.executable, "-m", "tests.lab.witnesses", address, str(log)], address):
        yield Witness("aiohttp", address, log)


@contextlib.asynccontextmanager
async def _running(where: Namespace, command: list[str], address: str) -> AsyncIterator[None]:
    """Starts the server as a process and waits until it listens."""
    process = await asyncio.create_subprocess_exec(*where.command(""), *command, cwd=ROOT)
    try:
        async with asyncio.timeout(20):
            while not await asyncio.to_thread(_listens, where, address):
                assert process.returncode is None, f"{command} ended"
                await asyncio.sleep(0.05)
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _listens(where: Namespace, address: str) -> bool:
    return bool(where.run(f"ss -Hltn src {'[' + address + ']' if ':' in address else address} sport = 80").strip())


# --- the aiohttp server ----------------------------------------------------------------------------------------------


async def _serve(address: str, log: Path) -> None:
    from aiohttp import web

    with log.open("a", encoding="latin-1", buffering=1) as out:

        async def handle(request: web.BaseRequest) -> web.Response:
            body = await request.read()
            told = {
                "method": request.method,
                "target": request.raw_path,
                "host": request.headers.get("Host", ""),
                "body": body.decode("latin-1"),
                "status": 200,
            }
            out.write(json.dumps(told) + "\n")
            return web.Response(text="ok\n")

        runner = web.ServerRunner(web.Server(handle, max_line_size=1 << 16, max_field_size=1 << 16, max_headers=512))
        await runner.setup()
        await web.TCPSite(runner, address, 80, backlog=512).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2])))
