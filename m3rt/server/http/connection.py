"""A connection: uvicorn's, with bounds on what a client can make it hold and for how long."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADERS = 64 << 10  # bytes of a request's line and headers
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 20\r\nretry-after: 1\r\nconnection: close\r\n\r\ntoo many connections"
)


class Connection(HttpToolsProtocol):
    """Closes itself when headers do not come in time or are too large, or there is no room.

    The bounds are the class's: bounded makes a class for those of a server.
    """

    header_timeout: ClassVar[float]
    most: ClassVar[int]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or turn it away."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(FULL)
            transport.close()
            return
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._header_bytes = 0
        # what ends a connection whose client reads nothing: close would wait for it
        self.scope["extensions"] = {"m3rt.abort": self.transport.abort}  # type: ignore[dict-item]
        if self._timer is None:
            self._expect_headers()

    def on_url(self, url: bytes) -> None:
        """Take a part of the path."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start to answer."""
        self._cancel()
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > HEADERS:
            raise ValueError("headers too large")  # the parser's caller answers 400 and closes

    def _expect_headers(self) -> None:
        self._timer = self.loop.call_later(self.header_timeout, self._too_late)

    def _too_late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.abort()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bounded(seconds: float, most: int) -> type[Connection]:
    """Return the class of a server's connections.

    Args:
        seconds: in which headers must come.
        most: connections at once.
    """
    return type("Connection", (Connection,), {"header_timeout": seconds, "most": most})
