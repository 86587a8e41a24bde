"""What all methods of gRPC share: whose call it is, refusals, and streams.

Messages pass as bytes: large ones are read and written in another thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc

from m3rt.errors import EngineError, InputError
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.finished import Finished
from m3rt.server.http import exchange
from m3rt.server.rpc import messages
from m3rt.server.service import Service
from m3rt.server.work import Lane, Sender, Trail

log = logging.getLogger("m3rt.server")

T = TypeVar("T")
Codes = Mapping[Kind, Any]  # to a grpc.StatusCode
Allowed = Callable[[str | None], str | None]  # of an authorization header: the client's name

CLIENT: ContextVar[str] = ContextVar("client", default="")
METHOD: ContextVar[str] = ContextVar("method", default="")
OK = 0  # gRPC's number for it
OPEN = ("/grpc.health.v1.Health/",)  # answered without an API key


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without an API key, and keeps the client's name for the others."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Return the handler of a call, or one that refuses it."""
        header = next(
            (value for key, value in details.invocation_metadata if key == "authorization"), None
        )
        if isinstance(header, bytes):
            header = header.decode("latin-1")
        client = self._allowed(header)
        if client is None and not details.method.startswith(OPEN):
            return grpc.stream_stream_rpc_method_handler(_deny)
        CLIENT.set(client or "")
        METHOD.set(details.method)
        return await continuation(details)


async def _deny(_: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "No valid auth token")


@dataclass(frozen=True, slots=True)
class Call:
    """One message of a call, read, and what it may use."""

    service: Service
    request: Any
    sender: Sender


Work = Callable[[Call], Awaitable[T]]


@dataclass(frozen=True, slots=True)
class Methods:
    """How one protocol answers.

    Args:
        service: what embeds.
        codes: its status for each refusal.
    """

    service: Service
    codes: Codes

    def unary(self, request: str, work: Work[bytes]) -> Any:
        """Answer one message with one."""
        form = messages.kind(request)

        async def handle(raw: bytes, context: Any) -> bytes:
            async with self._refusing(context):
                sender = self._sender(context)
                return await self._observed(context, sender, form, raw, work)
            raise AssertionError  # what is refused does not come here

        return grpc.unary_unary_rpc_method_handler(handle)

    def stream(self, request: str, work: Work[bytes], parallel: int) -> Any:
        """Answer each message with one, in their order.

        Args:
            request: the messages' full name.
            work: makes an answer.
            parallel: messages at most that are in work, or whose answers wait to be taken.
        """

        async def handle(_: Any, context: Any) -> None:
            async def send(answer: bytes) -> None:
                await self._send(context, answer)

            async with self._refusing(context):
                await self._in_order(context, request, work, send, parallel)

        return grpc.stream_stream_rpc_method_handler(handle)

    def gathered(
        self,
        request: str,
        work: Work[T],
        finish: Callable[[list[T], float], bytes],
        parallel: int,
        size: Callable[[T], int],
    ) -> Any:
        """Answer all messages of a stream with one.

        Args:
            request: the messages' full name.
            work: makes of a message what finish wants.
            finish: makes the answer, of those and the seconds since the call began; in another
                thread.
            parallel: messages at most that are in work.
            size: bytes that are held for a message: together no more than of a request.
        """
        most = self.service.settings.max_body_bytes

        async def handle(_: Any, context: Any) -> bytes:
            begun = time.perf_counter()
            found: list[T] = []
            held = 0

            async def keep(one: T) -> None:
                nonlocal held
                held += size(one)
                if held > most:
                    message = f"the stream has over {most} bytes, which are the most taken"
                    raise RefusedError(Kind.TOO_LARGE, message)
                found.append(one)

            async with self._refusing(context):
                await self._in_order(context, request, work, keep, parallel)
                return await self.service.off(finish, found, time.perf_counter() - begun)
            raise AssertionError

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _in_order(
        self,
        context: Any,
        request: str,
        work: Work[T],
        take: Callable[[T], Awaitable[None]],
        parallel: int,
    ) -> None:
        """Work at messages as they come, and take what is made of them in their order."""
        form = messages.kind(request)
        room = asyncio.Semaphore(parallel)
        waiting: asyncio.Queue[asyncio.Task[T] | None] = asyncio.Queue()
        running: set[asyncio.Task[Any]] = set()

        caller = self._sender(context)

        async def one(raw: bytes, place: int) -> T:
            sender = replace(caller, deadline=self._deadline(context), trail=Trail())
            if sender.lane is None and place >= self.service.settings.interactive_texts:
                sender = replace(sender, lane=Lane.BULK)
            return await self._observed(context, sender, form, raw, work)

        async def receive() -> None:
            place = 0
            try:
                while True:
                    await room.acquire()  # before reading: what is not read, the client holds
                    raw = await context.read()
                    if raw is grpc.aio.EOF:
                        return
                    task = asyncio.create_task(one(raw, place))
                    running.add(task)
                    task.add_done_callback(running.discard)
                    waiting.put_nowait(task)
                    place += 1
            finally:
                waiting.put_nowait(None)

        receiver = asyncio.create_task(receive())
        try:
            while (task := await waiting.get()) is not None:
                await take(await task)
                room.release()
            await receiver
        finally:
            rest = [receiver, *running]
            for left in rest:
                left.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            while not waiting.empty():  # those that failed behind the one that ended the stream
                if (done := waiting.get_nowait()) is not None and not done.cancelled():
                    done.exception()

    async def _observed(
        self, context: Any, sender: Sender, form: Any, raw: bytes, work: Work[T]
    ) -> T:
        """Work at one message, and tell what became of it: the log and the metrics want to know."""
        started = time.perf_counter()
        status, refused, gone = OK, None, False
        try:
            with self.service.entered(sender):
                found = await messages.read(self.service, form, raw)
                return await work(Call(self.service, found, sender))
        except RefusedError as refusal:
            refused, status = refusal.kind, self.codes[refusal.kind].value[0]
            raise
        except asyncio.CancelledError:
            gone = True
            raise
        except Exception:
            refused, status = Kind.FAILED, self.codes[Kind.FAILED].value[0]
            raise
        finally:
            assert sender.trail is not None
            sender.trail.release()
            seconds = time.perf_counter() - started
            traced = _headers(context).get("traceparent", "")
            method = METHOD.get()
            self.service.over(
                Finished("grpc", "POST", method, status, refused, gone, seconds, 0, sender, traced)
            )

    async def _send(self, context: Any, answer: bytes) -> None:
        seconds = self.service.settings.write_timeout
        try:
            async with asyncio.timeout(seconds):
                await context.write(answer)
        except TimeoutError:
            message = f"the client took no answer for {seconds:g} s"
            raise RefusedError(Kind.TOO_SLOW, message) from None

    def _sender(self, context: Any) -> Sender:
        """Return whose call it is, and tell the client what it is called in the log."""
        settings, headers = self.service.settings, _headers(context)
        address = context.peer().rpartition(":")[0]  # without the port
        client = exchange.client(CLIENT.get(), settings.client_header, headers, address)
        request_id = exchange.request_id(headers)
        context.set_trailing_metadata((("x-request-id", request_id),))
        deadline = self._deadline(context)
        return Sender(client, exchange.lane(headers), deadline, request_id, Trail())

    def _deadline(self, context: Any) -> float:
        """Return when a message that came now must be answered: before the call must end."""
        most = self.service.settings.request_timeout
        left = context.time_remaining()
        ends = math.inf if left is None else time.monotonic() + left
        return min(exchange.deadline(_headers(context), most), ends)

    @contextlib.asynccontextmanager
    async def _refusing(self, context: Any) -> AsyncGenerator[None]:
        """Tell of what goes wrong inside by the status of the call."""
        try:
            yield
        except RefusedError as refusal:
            await self._refuse(context, refusal)
        except InputError as error:
            await self._refuse(context, RefusedError(Kind.INVALID, str(error)))
        except EngineError as error:
            log.exception("a call failed")
            await self._refuse(context, RefusedError(Kind.FAILED, str(error)))
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # a fault of ours, told without its insides; or the client went
            if context.cancelled() or context.done():
                raise
            log.exception("a call failed")
            message = f"internal error: {type(error).__name__}"
            await context.abort(grpc.StatusCode.INTERNAL, message)

    async def _refuse(self, context: Any, refusal: RefusedError) -> None:
        after = tuple(context.trailing_metadata() or ())
        if refusal.kind == Kind.OVERLOADED:
            seconds = refusal.retry_after or 1.0
            after += (
                ("grpc-retry-pushback-ms", str(math.ceil(seconds * 1e3))),
                ("retry-after", str(math.ceil(seconds))),
            )
        await context.abort(self.codes[refusal.kind], str(refusal), after)


def _headers(context: Any) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else value.decode("latin-1")
        for key, value in context.invocation_metadata() or ()
    }
