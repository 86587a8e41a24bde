"""grpc.health.v1: of the server, and of each of its services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from m3rt.server.service import Service

NAME = "grpc.health.v1.Health"
EVERY = 0.25  # seconds between looks, for all who watch together


class Health:
    """Answers by what the service says at that moment.

    Args:
        service: what embeds.
        serving: names of services, which serve while it is ready.
        never: names of services that refuse all calls.
    """

    def __init__(self, service: Service, serving: Iterable[str], never: Iterable[str]) -> None:
        self._service = service
        self._serving = frozenset(("", *serving))
        self._never = frozenset(never)
        self._stopping = False
        self._changed = asyncio.Event()  # another one after each change
        self._looking = asyncio.create_task(self._look())

    def stop(self) -> None:
        """Tell those who watch that it is over, and end their streams."""
        self._stopping = True
        self._looking.cancel()
        self._wake()

    def handlers(self) -> Any:
        """Return the handlers of the methods."""
        form, reply = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
        more = {
            "request_deserializer": form.FromString,
            "response_serializer": reply.SerializeToString,
        }
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check, **more),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, **more),
            },
        )

    async def check(self, request: Any, context: Any) -> Any:
        """Tell whether a service serves now."""
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def watch(self, request: Any, context: Any) -> AsyncGenerator[Any]:
        """Tell whether a service serves, now and when that changes."""
        last = None
        while True:
            changed = self._changed  # before the look, so that no change comes between
            status = self._status(request.service)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
            if self._stopping:
                return
            last = status
            await changed.wait()

    async def _look(self) -> None:
        """Wake those who watch when the service changes."""
        last = self._service.ready
        while True:
            await asyncio.sleep(EVERY)
            if self._service.ready != last:
                last = not last
                self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, name: str) -> int:
        statuses = health_pb2.HealthCheckResponse
        if name in self._serving and self._service.ready and not self._stopping:
            return int(statuses.SERVING)
        if name in self._serving or name in self._never:
            return int(statuses.NOT_SERVING)
        return int(statuses.SERVICE_UNKNOWN)
