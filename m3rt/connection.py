"""HTTP/1.1 as a load client needs it: connections that stay open, a bounded number of them.

It is small so that it takes little of the processor, which the server may need: a request is bytes
that are ready, and an answer is a status, headers and a body, stamped when its last byte is there.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from m3rt.errors import InputError, M3Error

HEAD = 64 << 10  # bytes of a head, the most
Kind = Literal["refused", "closed", "malformed", "timeout"]


class ExchangeError(M3Error):
    """A request that got no answer.

    Args:
        kind: refused: there was no connection; closed: it ended before the answer did; malformed:
            the answer is no HTTP; timeout: it did not come in time.
        message: what was found.
        untouched: nothing of an answer came, on a connection that had been used before: the server
            may have closed it while it was idle, and the request can be sent again.
    """

    def __init__(self, kind: Kind, message: str, untouched: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.untouched = untouched


@dataclass(frozen=True, slots=True)
class Response:
    """An answer."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    ended: float  # when its last byte was there, on the clock of the event loop
    size: int  # bytes, head included


@dataclass(frozen=True, slots=True)
class Target:
    """A server."""

    host: str
    port: int
    tls: bool
    prefix: str  # of every path

    @classmethod
    def parse(cls, url: str) -> Target:
        """Read the URL of a server.

        Raises:
            InputError: it is none.
        """
        try:
            found = urlsplit(url)
            port = found.port
        except ValueError as error:
            raise InputError(f"{url!r} is no URL: {error}") from error
        if found.scheme not in ("http", "https") or not found.hostname:
            raise InputError(f"{url!r} is no URL of a server, as http://127.0.0.1:8080")
        tls = found.scheme == "https"
        return cls(found.hostname, port or (443 if tls else 80), tls, found.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """What the Host header says."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def request(
        self,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "",
    ) -> bytes:
        """Return the bytes of a request: POST with a JSON body, else GET."""
        lines = [
            f"{method or ('GET' if body is None else 'POST')} {self.prefix}{path} HTTP/1.1",
            f"host: {self.authority}",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        if body is not None:
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b"")


class Connection(asyncio.Protocol):
    """One connection, one request on it at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Response] | None = None
        self._used = False  # for a request before
        self._clear()
        self.open = False

    def _clear(self) -> None:
        self._buffer = bytearray()
        self._status = 0  # of the head that was read; 0: none yet
        self._headers: dict[str, str] = {}
        self._start = 0  # of what is not taken yet
        self._length: int | None = None  # of the body; None: until the end, or in chunks
        self._chunks: list[bytes] | None = None
        self._trailers = False
        self._keep = True

    def ask(self, data: bytes) -> asyncio.Future[Response]:
        """Send a request; the answer comes by the future, or an ExchangeError."""
        assert self._transport is not None
        assert self._answer is None
        self._clear()
        self._answer = self._loop.create_future()
        self._transport.write(data)
        return self._answer

    def close(self) -> None:
        """Close at once; a request on the way is given up."""
        self.open = False
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        """End the answer that has no other end, or say that there is none."""
        self.open = False
        if self._answer is None:
            return
        if exc is None and self._status and self._length is None and self._chunks is None:
            self._done(bytes(self._buffer[self._start :]))
            return
        untouched = self._used and not self._buffer
        self._fail(ExchangeError("closed", f"the connection ended: {exc or 'closed'}", untouched))

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        if self._answer is None:  # nobody asked: as a server that says 408 before it closes
            self.close()
            return
        self._buffer += data
        try:
            self._read()
        except (ValueError, IndexError) as error:
            self._fail(ExchangeError("malformed", f"the answer is no HTTP/1.1: {error}"))
            self.close()

    def _read(self) -> None:
        while not self._status:
            end = self._buffer.find(b"\r\n\r\n", self._start)
            if end < 0:
                if len(self._buffer) > HEAD:
                    raise ValueError("its head has no end")
                return
            self._head(bytes(self._buffer[self._start : end]))
            self._start = end + 4
        if self._chunks is not None:
            self._take_chunks(self._chunks)
        elif self._length is not None and len(self._buffer) >= (end := self._start + self._length):
            self._keep &= len(self._buffer) == end
            self._done(bytes(memoryview(self._buffer)[self._start : end]))

    def _head(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ", 2)
        if version not in ("HTTP/1.1", "HTTP/1.0") or len(status) != 3:
            raise ValueError(f"it begins with {first[:40]!r}")
        code = int(status)
        if 100 <= code < 200:  # goes before the answer
            return
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise ValueError(f"a header is {line[:40]!r}")
            headers[name.strip().lower()] = value.strip()
        self._headers = headers
        self._status = code
        said = headers.get("connection", "").lower()
        self._keep = said != "close" if version == "HTTP/1.1" else said == "keep-alive"
        if code in (204, 304):
            self._length = 0
        elif "chunked" in headers.get("transfer-encoding", "").lower():
            self._chunks = []
        elif "content-length" in headers:
            self._length = int(headers["content-length"])
            if self._length < 0:
                raise ValueError("its length is below 0")
        else:
            self._keep = False

    def _take_chunks(self, chunks: list[bytes]) -> None:
        while True:
            end = self._buffer.find(b"\r\n", self._start)
            if end < 0:
                return
            line = bytes(self._buffer[self._start : end])
            if self._trailers:
                self._start = end + 2
                if not line:
                    self._done(b"".join(chunks))
                    return
                continue
            size = int(line.partition(b";")[0], 16)
            if len(self._buffer) < end + 2 + size + (2 if size else 0):
                return
            if size:
                chunks.append(bytes(memoryview(self._buffer)[end + 2 : end + 2 + size]))
                if self._buffer[end + 2 + size : end + 4 + size] != b"\r\n":
                    raise ValueError("a chunk is longer than it says")
                self._start = end + 4 + size
            else:
                self._start = end + 2
                self._trailers = True

    def _done(self, body: bytes) -> None:
        answer, self._answer = self._answer, None
        self._used = True
        if not self._keep and self._transport is not None:
            self.open = False
            self._transport.close()
        if answer is not None and not answer.done():
            size = len(self._buffer)
            answer.set_result(Response(self._status, self._headers, body, self._loop.time(), size))

    def _fail(self, error: ExchangeError) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(error)


class Pool:
    """Connections to one server. Used from one event loop.

    Args:
        target: the server.
        most: connections at once; who finds none free waits for one, first come first served.
        timeout: seconds for an answer, after a connection was free.
    """

    def __init__(self, target: Target, most: int = 1024, timeout: float = 60.0) -> None:
        self.target = target
        self.most = most
        self.timeout = timeout
        self.opened = 0  # connections so far
        self.waited = 0  # requests that found no connection free
        self.again = 0  # requests sent a second time, as an idle connection had been closed
        self._free: list[Connection] = []  # the last one used is the first one taken
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._tls = ssl.create_default_context() if target.tls else None

    async def ask(self, data: bytes) -> Response:
        """Send a request and return its answer, whatever its status.

        Raises:
            ExchangeError: there is none.
        """
        if self._taken >= self.most:
            await self._wait()
        else:
            self._taken += 1
        try:
            async with asyncio.timeout(self.timeout):
                return await self._exchange(data)
        except TimeoutError:
            raise ExchangeError("timeout", f"no answer within {self.timeout:g} s") from None
        finally:
            self._leave()

    async def _exchange(self, data: bytes) -> Response:
        while True:
            connection = await self._connection()
            try:
                found = await connection.ask(data)
            except ExchangeError as error:
                if not error.untouched:
                    raise
                self.again += 1
            except BaseException:
                connection.close()
                raise
            else:
                if connection.open:
                    self._free.append(connection)
                return found

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(loop), self.target.host, self.target.port, ssl=self._tls
            )
        except OSError as error:
            raise ExchangeError("refused", f"no connection: {error}") from error
        self.opened += 1
        return connection

    async def _wait(self) -> None:
        """Wait for the place of a request that ends, which is handed on."""
        self.waited += 1
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave()
            raise

    def _leave(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._taken -= 1

    def close(self) -> None:
        """Close what is open and free."""
        for connection in self._free:
            connection.close()
        self._free.clear()
