"""The application: finds the route, reads the request, calls the handler, sends the answer."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from m3rt.errors import EngineError, InputError
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import exchange, native
from m3rt.server.http.exchange import ClientGoneError, Receive, Scope, Send
from m3rt.server.http.replies import Reply
from m3rt.server.http.routes import Call, Route, Shape, Table
from m3rt.server.service import Service
from m3rt.server.work import Sender

log = logging.getLogger("m3rt.server")

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class App:
    """ASGI. One instance serves all requests of a process."""

    def __init__(self, service: Service, routes: Iterable[Route]) -> None:
        self.service = service
        self.table = Table(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        request_id = headers.get("x-request-id", "")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        shape: Shape = native.shape
        notes: dict[str, Any] = {}
        try:
            try:
                route, params = self.table.find(scope["method"], scope["path"])
                shape = route.shape
                sender = self._sender(scope, headers, request_id)
                body = await self._body(route, receive, headers)
                call = Call(self.service, body, headers, params, sender, started, notes)
                async with exchange.watched(receive):
                    reply = await route.handler(call)
            except RefusedError as refusal:
                reply = shape(refusal)
            except InputError as error:
                reply = shape(RefusedError(Kind.INVALID, str(error)))
            except EngineError as error:
                log.exception("request %s failed", request_id)
                reply = shape(RefusedError(Kind.FAILED, str(error)))
            except ClientGoneError:
                raise
            except Exception as error:  # a fault of ours: told without its insides
                log.exception("request %s failed", request_id)
                reply = shape(RefusedError(Kind.FAILED, f"internal error: {type(error).__name__}"))
            reply = Reply(
                reply.body,
                reply.status,
                reply.media,
                {**reply.headers, "x-request-id": request_id},
            )
            await exchange.answer(
                send, reply, self.service.settings.write_timeout, scope["method"] == "HEAD"
            )
        except ClientGoneError:
            return

    def _sender(self, scope: Scope, headers: Mapping[str, str], request_id: str) -> Sender:
        settings = self.service.settings
        client = headers.get(settings.client_header, "") if settings.client_header else ""
        if not client and scope.get("client"):
            client = scope["client"][0]
        return Sender(
            client,
            exchange.lane(headers),
            exchange.deadline(headers, settings.request_timeout),
            request_id,
        )

    async def _body(self, route: Route, receive: Receive, headers: Mapping[str, str]) -> Any:
        if route.body is None:
            return None
        settings = self.service.settings
        raw = await exchange.read(receive, headers, settings.max_body_bytes, settings.body_timeout)
        return raw if route.body is bytes else await exchange.decode(self.service, raw, route.body)
