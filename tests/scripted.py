"""A peer that answers as a test says, to try the load client on what no good server does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

# is given the number of the request, its bytes, and where to write the answer
Script = Callable[[int, bytes, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Peer:
    """What was asked of it."""

    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)  # on the event loop's clock
    connections: int = 0


@contextlib.asynccontextmanager
async def peer(script: Script) -> AsyncIterator[Peer]:
    """Listen on loopback, in the event loop of the test."""
    found = Peer()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line[15:])
                data = head + await reader.readexactly(length)
                number = len(found.requests)
                found.requests.append(data)
                found.arrived.append(asyncio.get_running_loop().time())
                await script(number, data, writer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    found.url = f"http://{host}:{port}"
    try:
        yield found
    finally:
        server.close()


def reply(body: bytes = b"{}", status: int = 200, headers: str = "") -> bytes:
    """Return an answer with its length."""
    return f"HTTP/1.1 {status} X\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body
