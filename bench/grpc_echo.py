"""gRPC unary calls between real gRPC peers (grpcio), without generated code: bytes in, the same bytes out.

    python -m bench.grpc_echo serve PORT
    python -m bench.grpc_echo call HOST PORT SECONDS [CONCURRENCY]

`call` prints one JSON object: calls, errors, the first error, seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass

import grpc
import grpc.aio

SERVICE, METHOD = "bench.Echo", "Unary"
PAYLOAD = b"x" * 100


class AnyMethod(grpc.GenericRpcHandler):  # type: ignore[misc] # grpcio has no types
    """Takes calls of every service and method: each soak call has its own method name."""

    def __init__(self) -> None:
        async def echo(request: bytes, _: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            return request

        self._echo = grpc.unary_unary_rpc_method_handler(echo)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return self._echo


async def serve(port: int) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((AnyMethod(),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    await server.start()
    await server.wait_for_termination()


@dataclass
class Tally:
    calls: int = 0
    errors: int = 0
    first_error: str = ""


async def call(host: str, port: int, seconds: float, concurrency: int) -> dict[str, object]:
    tally = Tally()
    async with grpc.aio.insecure_channel(f"{host}:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        unary = channel.unary_unary(f"/{SERVICE}/{METHOD}")
        start = time.monotonic()

        async def one() -> None:
            number = 0
            while time.monotonic() < start + seconds and not tally.errors:
                number += 1
                try:
                    answer = await unary(PAYLOAD, timeout=5, metadata=(("x-request-id", f"{number:032x}"),))
                    tally.errors += answer != PAYLOAD
                    tally.calls += 1
                except grpc.aio.AioRpcError as error:
                    tally.errors += 1
                    tally.first_error = f"{error.code().name}: {error.details()}"

        async with asyncio.TaskGroup() as tasks:
            for number in range(concurrency):
                tasks.create_task(one(), name=f"caller {number}")
        elapsed = time.monotonic() - start
    return {"calls": tally.calls, "errors": tally.errors, "first_error": tally.first_error, "seconds": elapsed}


def main() -> None:
    match sys.argv[1:]:
        case ["serve", port]:
            asyncio.run(serve(int(port)))
        case ["call", host, port, seconds, *rest]:
            print(json.dumps(asyncio.run(call(host, int(port), float(seconds), int(rest[0]) if rest else 8))))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
