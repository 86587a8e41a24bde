"""Starts and stops the gRPC server, in the event loop that HTTP runs in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from m3rt.errors import UnavailableError
from m3rt.server.rpc import calls, messages, oip, tei
from m3rt.server.rpc import health as health_service
from m3rt.server.rpc.calls import Allowed
from m3rt.server.rpc.health import Health
from m3rt.server.service import Service

OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
    ("grpc.max_send_message_length", -1),  # ColBERT vectors of a long text are some 32 MiB
    ("grpc.max_concurrent_streams", 1024),  # of a connection; more of them wait at the client
    # who has gone without a word is found out; who asks so himself, is not thrown out for it
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),
)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs."""

    server: Any  # a grpc.aio.Server
    port: int  # 0 for a socket of a file
    health: Health

    async def stop(self, grace: float | None) -> None:
        """Take no more calls, wait so many seconds for those in work, and cancel the rest."""
        self.health.stop()
        await self.server.stop(grace)

    async def wait_for_termination(self) -> None:
        """Wait until it has stopped."""
        await self.server.wait_for_termination()


async def start(
    service: Service, address: str, allowed: Allowed, credentials: Any = None
) -> Running:
    """Start the server.

    Args:
        service: what embeds.
        address: ``host:port``, port 0 for any that is free, or ``unix:path``.
        allowed: told the ``authorization`` of a call; returns the client's name, which may be
            empty, or None, which refuses the call. Health is answered in any case.
        credentials: of grpc.ssl_server_credentials, for TLS.

    Raises:
        UnavailableError: the address cannot be listened at.
    """
    options = (*OPTIONS, ("grpc.max_receive_message_length", service.settings.max_body_bytes))
    server = grpc.aio.server(interceptors=(calls.Guard(allowed),), options=options)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise UnavailableError(f"gRPC cannot listen at {address}: {error}") from error
    if not port:
        raise UnavailableError(f"gRPC cannot listen at {address}: is it taken?")
    health = Health(service, (*tei.SERVING, oip.NAME), tei.NEVER)
    server.add_generic_rpc_handlers(
        (*tei.handlers(service), oip.handlers(service), health.handlers())
    )
    _describe()
    names = (*tei.SERVING, *tei.NEVER, oip.NAME, health_service.NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, messages.POOL)
    await server.start()
    return Running(server, port, health)


def _describe() -> None:
    """Put the messages of health and reflection to ours, for those who ask what there is."""
    for module in (health_pb2, reflection_pb2):
        messages.POOL.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
