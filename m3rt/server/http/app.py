"""The application: finds the route, reads the request, calls the handler, sends the answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from m3rt.errors import EngineError, InputError
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.finished import Finished
from m3rt.server.http import cors, exchange, native
from m3rt.server.http.exchange import ClientGoneError, Receive, Scope, Send
from m3rt.server.http.replies import Reply
from m3rt.server.http.routes import Call, Route, Shape, Table
from m3rt.server.keys import Keys
from m3rt.server.service import Service
from m3rt.server.work import Sender, Trail

log = logging.getLogger("m3rt.server")

UNREAD = (Kind.TOO_LARGE, Kind.TOO_SLOW)  # what is left of such a body is no next request


class App:
    """ASGI. One instance serves all requests of a process.

    Args:
        service: what embeds; it is started and stopped with the application.
        routes: what is answered.
        keys: who may ask.
    """

    def __init__(
        self,
        service: Service,
        routes: Iterable[Route],
        keys: Keys,
    ) -> None:
        self.service = service
        self.keys = keys
        self.table = Table(routes)
        self.failed = asyncio.Event()  # the engine failed as it was warmed up
        self._origins = cors.origins(service.settings.cors_allow_origin)
        self._starting: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Start the service, which warms up while probes are answered already, and end it."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._starting = asyncio.create_task(self._start())
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                if self._starting is not None and not self._starting.done():
                    self._starting.cancel()
                if not await self.service.stop(self.service.settings.drain_timeout):
                    log.warning("not all requests were finished in time")
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _start(self) -> None:
        try:
            await self.service.start()
        except Exception:
            log.exception("the engine failed as it was warmed up")
            self.failed.set()

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        method = scope["method"]
        headers = headers_of(scope)
        sender = Sender(request_id=exchange.request_id(headers), trail=Trail())
        route: Route | None = None
        call: Call | None = None
        shape: Shape = native.shape
        refused: Kind | None = None
        reply = Reply(status=499)
        gone = False
        try:
            try:
                if method == "OPTIONS":  # a page asks whether it may
                    reply = Reply(status=204)
                else:
                    route, params = self.table.find(method, scope["path"])
                    shape = route.shape
                    sender = self._sender(scope, headers, sender, route)
                    call = Call(self.service, None, headers, params, sender, started)
                    reply = await self._answer(route, call, receive)
            except RefusedError as error:
                refused = error.kind
                told = call.shape if call is not None and call.shape is not None else shape
                reply = told(error)
            reply = replace(
                reply,
                headers={
                    **({"connection": "close"} if refused in UNREAD else {}),
                    **reply.headers,
                    **cors.headers(self._origins, headers),
                    "x-request-id": sender.request_id,
                },
            )
            seconds = self.service.settings.write_timeout
            await exchange.answer(send, reply, seconds, method == "HEAD")
        except ClientGoneError:
            gone = True
            abort: Callable[[], None] | None = scope.get("extensions", {}).get("m3rt.abort")
            if abort is not None:
                abort()
        finally:
            if sender.trail is not None:
                sender.trail.release()
        done = Finished(
            "http",
            method,
            route.path if route else "",
            reply.status,
            refused,
            gone,
            time.perf_counter() - started,
            0 if gone else len(reply.body),
            sender,
            headers.get("traceparent", ""),
        )
        self.service.over(done)

    async def _answer(self, route: Route, call: Call, receive: Receive) -> Reply:
        """Read the body and call the handler.

        Raises:
            ClientGoneError: the client went.
            RefusedError: anything else.
        """
        try:
            if route.body is None:
                return await route.handler(call)
            declared = call.headers.get("content-length", "")
            size = int(declared) if declared.isdecimal() else None
            with self.service.entered(call.sender, size):
                settings = self.service.settings
                raw = await exchange.read(
                    receive, call.headers, settings.max_body_bytes, settings.body_timeout
                )
                async with exchange.watched(receive):
                    call.body = (
                        raw
                        if route.body is bytes
                        else await exchange.decode(self.service, raw, route.body)
                    )
                    return await route.handler(call)
        except (RefusedError, ClientGoneError):
            raise
        except InputError as error:
            raise RefusedError(Kind.INVALID, str(error)) from error
        except EngineError as error:
            log.error("request %s failed: %s", call.sender.request_id, error)
            raise RefusedError(Kind.FAILED, str(error)) from error
        except Exception as error:  # a fault of ours: told without its insides
            log.exception("request %s failed", call.sender.request_id)
            message = f"internal error: {type(error).__name__}"
            raise RefusedError(Kind.FAILED, message) from error

    def _sender(
        self, scope: Scope, headers: Mapping[str, str], sender: Sender, route: Route
    ) -> Sender:
        """Return who asks, and how it is to be served.

        Raises:
            RefusedError: it has no key, or a header is wrong.
        """
        name = self.keys.client(headers.get("authorization") or headers.get("x-api-key"))
        if name is None and not route.open:
            raise RefusedError(
                Kind.UNAUTHORISED, "no valid API key: send Authorization: Bearer KEY"
            )
        settings = self.service.settings
        address = scope["client"][0] if scope.get("client") else ""
        return replace(
            sender,
            client=exchange.client(name or "", settings.client_header, headers, address),
            lane=exchange.lane(headers),
            deadline=exchange.deadline(headers, settings.request_timeout),
        )


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers, names in lower case; of several with one name, the last."""
    pairs: list[tuple[bytes, bytes]] = scope["headers"]
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}
