"""One request and its answer, over ASGI.

Pure ASGI: a framework's middleware would hide that a client has gone. While a request is worked
at, its connection is watched; when the client goes, the work is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http.replies import Reply
from m3rt.server.service import Service
from m3rt.server.work import Lane

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

SMALL = 32 << 10  # bytes of a body that is decoded at once, in some 50 microseconds
SPARED = 32 << 20  # bytes beyond the most that are read, and thrown away, before a refusal
PIECE = 64 << 10  # bytes sent at once: what a client that does not read can make us hold beside


REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class ClientGoneError(Exception):
    """The client closed the connection before it was answered."""


async def read(receive: Receive, headers: Mapping[str, str], most: int, seconds: float) -> bytes:
    """Read a body.

    Raises:
        ClientGoneError: the client closed the connection.
        RefusedError: it is larger than it may be, or did not come in time.
    """
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most + SPARED:
        raise RefusedError(
            Kind.TOO_LARGE, f"the body has {declared} bytes, at most {most} are taken"
        )
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part: bytes = message.get("body", b"")
                size += len(part)
                if size <= most:
                    parts.append(part)
                else:  # a client reads no answer before it has sent all
                    parts.clear()
                if size <= most + SPARED and message.get("more_body"):
                    continue
                if size > most:
                    found = declared or f"over {most}"
                    raise RefusedError(
                        Kind.TOO_LARGE, f"the body has {found} bytes, at most {most} are taken"
                    )
                return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise RefusedError(
            Kind.TOO_SLOW, f"the body did not come within {seconds:g} s; {size} bytes did"
        ) from None


async def decode(service: Service, raw: bytes, form: Any) -> Any:
    """Decode a JSON body into a msgspec type; a large one in another thread.

    Raises:
        RefusedError: it is not JSON, or not of that form; says where.
    """
    try:
        if len(raw) <= SMALL:
            return msgspec.json.decode(raw, type=form)
        return await service.off(msgspec.json.decode, raw, type=form)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        param = where.removeprefix(".").removesuffix("`").partition("[")[0] or None
        raise RefusedError(Kind.MALFORMED, str(error) if where else message, param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(Kind.MALFORMED, f"the body is not JSON: {error}") from error


@contextlib.asynccontextmanager
async def watched(receive: Receive) -> AsyncGenerator[None]:
    """Cancel what runs inside when the client goes.

    Raises:
        ClientGoneError: it went.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
        if gone:  # the work was done just before it was cancelled: nobody is there to have it
            await asyncio.sleep(0)
    except asyncio.CancelledError:
        if not gone or task.uncancel() > 0:
            raise
        raise ClientGoneError from None
    finally:
        watcher.cancel()


async def answer(send: Send, reply: Reply, seconds: float, head: bool = False) -> None:
    """Send an answer, a piece at a time.

    Raises:
        ClientGoneError: the client took no piece for so many seconds.
    """
    headers = [
        (b"content-type", reply.media.encode()),
        (b"content-length", str(len(reply.body)).encode()),
        *(
            (name.encode(), value.encode("latin-1", "replace"))
            for name, value in reply.headers.items()
        ),
    ]
    start = {"type": "http.response.start", "status": reply.status, "headers": headers}
    try:
        await send(start)
        if head or len(reply.body) <= PIECE:
            await send({"type": "http.response.body", "body": b"" if head else reply.body})
            return
        whole = memoryview(reply.body)
        for first in range(0, len(whole), PIECE):
            piece = {
                "type": "http.response.body",
                "body": bytes(whole[first : first + PIECE]),
                "more_body": first + PIECE < len(whole),
            }
            async with asyncio.timeout(seconds):
                await send(piece)
    except TimeoutError:
        raise ClientGoneError from None


def request_id(headers: Mapping[str, str]) -> str:
    """Return the client's own, if it is one line of plain characters, or a new one."""
    own = headers.get("x-request-id", "")
    return own if REQUEST_ID.fullmatch(own) else uuid.uuid4().hex


def client(name: str, header: str, headers: Mapping[str, str], address: str) -> str:
    """Return who shares the engine with others: a key's owner, told apart further by a proxy.

    Args:
        name: of the API key; empty where there are no keys.
        header: that a proxy sets for each of its clients; empty if none does.
        headers: of the request.
        address: where it came from, for those of whom nothing else is known.
    """
    told = headers.get(header.lower(), "") if header else ""
    return "/".join(filter(None, (name, told))) or address


def deadline(headers: Mapping[str, str], most: float) -> float:
    """Return when a request must be answered, on the clock of time.monotonic.

    ``x-request-timeout-ms`` is ours; ``x-stainless-read-timeout``, in seconds, is what OpenAI's
    client sends: how long it will read.

    Args:
        headers: of the request.
        most: seconds, which a request without these headers gets.

    Raises:
        RefusedError: it is no number, or not more than 0.
    """
    for name, unit in (("x-request-timeout-ms", 1e-3), ("x-stainless-read-timeout", 1.0)):
        if (text := headers.get(name)) is None:
            continue
        try:
            asked = float(text) * unit
        except ValueError:
            asked = math.nan
        if asked > 0:
            return time.monotonic() + min(asked, most)
        if name == "x-request-timeout-ms":
            raise RefusedError(
                Kind.MALFORMED, f"{name} is {text!r}, expected more than 0", param=name
            )
    return time.monotonic() + most


def lane(headers: Mapping[str, str]) -> Lane | None:
    """Return the lane that ``x-priority`` asks for: interactive, bulk, or a number, 0 the first.

    Raises:
        RefusedError: it is something else.
    """
    text = headers.get("x-priority")
    if text is None:
        return None
    text = text.strip().lower()
    if text in ("interactive", "bulk"):
        return Lane[text.upper()]
    try:
        return Lane.BULK if int(text) > 0 else Lane.INTERACTIVE
    except ValueError:
        raise RefusedError(
            Kind.MALFORMED,
            f"x-priority is {text!r}, expected interactive, bulk or a number",
            param="x-priority",
        ) from None
