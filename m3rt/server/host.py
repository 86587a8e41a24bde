"""A server from its start to its end: sockets, signals, reload."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import uvicorn

from m3rt.errors import EngineError, InputError, M3Error, missing
from m3rt.runtime import M3
from m3rt.score import Weights
from m3rt.server.http.app import App
from m3rt.server.http.assembly import assembled
from m3rt.server.http.connection import bounded
from m3rt.server.keys import Keys
from m3rt.server.service import Service
from m3rt.server.settings import Settings

log = logging.getLogger("m3rt.server")

PORTS = 65535
POSITIVE = (
    *("streams", "max_client_batch_size", "max_request_tokens", "max_body_bytes", "max_memory"),
    *("max_concurrent_requests", "max_connections", "max_queue_tokens", "request_timeout"),
    *("header_timeout", "body_timeout", "write_timeout", "keep_alive", "engine_timeout"),
)
SWITCH = 0.001  # seconds after which a thread lets others run: the event loop waits no longer


class Host(uvicorn.Server):
    """uvicorn's server, which ends in good order and with 0 when it is told to end.

    SIGTERM and SIGINT end it: first it is not ready any more, so that load balancers look
    elsewhere; then it takes no more connections, and finishes what is begun. A second one ends it
    at once. SIGHUP opens the model directory and the keys again.
    """

    def __init__(self, config: uvicorn.Config, app: App, opened: Callable[[], M3]) -> None:
        super().__init__(config)
        self._app = app
        self._opened = opened
        self._rpc: Any = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reloading = asyncio.Lock()
        self.broken = False  # the engine failed as it was warmed up

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Take signals while the server runs."""
        loop = asyncio.get_running_loop()
        actions = {signal.SIGTERM: self._end, signal.SIGINT: self._end}
        if hasattr(signal, "SIGHUP"):
            actions[signal.SIGHUP] = self._renew
        taken = []
        for number, action in actions.items():
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                loop.add_signal_handler(number, action)  # not in other threads, not on Windows
                taken.append(number)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        if self._app.service.settings.grpc_port:
            self._rpc = await self._listened()
        self._spawn(self._watch())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is begun."""
        if self._rpc is not None:
            await self._rpc.stop(self._app.service.settings.drain_timeout)
        await super().shutdown(sockets)

    async def reload(self) -> str:
        """Open the model directory and the keys again, and serve them; return the model's name.

        Raises:
            M3Error: they cannot be opened; what serves goes on.
        """
        async with self._reloading:
            service = self._app.service
            keys = Keys.read(service.settings)
            model = await asyncio.to_thread(self._opened)
            await service.swap(model)
            self._app.keys = keys
        log.info("%s serves now, with %s", service.name, model.engine.name)
        return service.name

    async def _listened(self) -> Any:
        """Start gRPC, with the same keys and certificate."""
        import grpc

        from m3rt.server.rpc import server

        service, credentials = self._app.service, None
        settings = service.settings
        if settings.tls_cert:
            chain, key = Path(settings.tls_cert), Path(settings.tls_key)
            credentials = grpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())])
        address = f"{settings.host}:{settings.grpc_port}"
        found = await server.start(
            service, address, lambda header: self._app.keys.client(header), credentials
        )
        log.info("gRPC at %s", address)
        return found

    async def _watch(self) -> None:
        await self._app.failed.wait()
        self.broken = True
        self.should_exit = True

    def _end(self) -> None:
        service = self._app.service
        if service.stopping:
            self.should_exit = self.force_exit = True
            return
        log.info("ending: what is begun is finished first")
        service.refuse()
        grace = service.settings.drain_grace
        asyncio.get_running_loop().call_later(grace, setattr, self, "should_exit", True)

    def _renew(self) -> None:
        self._spawn(self._renewed())

    async def _renewed(self) -> None:
        try:
            await self.reload()
        except M3Error as error:
            log.error("the reload failed, what served goes on: %s", error)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # or it could be collected while it runs
        task.add_done_callback(self._tasks.discard)


def serve(settings: Settings, opened: Callable[[], M3]) -> None:
    """Serve until a signal ends it.

    Args:
        settings: all there is to know.
        opened: opens the model; it is called again for a reload.

    Raises:
        EngineError: the engine failed as it was warmed up.
        InputError: settings that cannot be.
        OSError: the port is taken.
    """
    check(settings)
    keys = Keys.read(settings)
    listener = listening(settings.host, settings.port)
    with listener:
        service = Service(settings, opened())
        box: list[Host] = []

        async def reload() -> str:
            return await box[0].reload()

        app = assembled(service, keys, reload)
        host = Host(configuration(settings, app), app, opened)
        box.append(host)
        sys.setswitchinterval(SWITCH)
        scheme = "https" if settings.tls_cert else "http"
        address = f"{scheme}://{settings.host}:{listener.getsockname()[1]}"
        log.info("%s with %s, at %s", service.name, service.model.engine.name, address)
        host.run([listener])
    if host.broken:
        raise EngineError("the engine failed as it was warmed up; the log says how")


def configuration(settings: Settings, app: App) -> uvicorn.Config:
    """Return what uvicorn has to know."""
    return uvicorn.Config(
        app,
        http=bounded(settings.header_timeout, settings.max_connections),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(settings.keep_alive)),
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout)),
        ssl_certfile=settings.tls_cert or None,
        ssl_keyfile=settings.tls_key or None,
    )


def listening(host: str, port: int) -> socket.socket:
    """Open the socket before the model: a port that is taken is known at once.

    Raises:
        OSError: says which address it is.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error


def check(settings: Settings) -> None:
    """Refuse settings that cannot be.

    Raises:
        InputError: says which.
        UnavailableError: a package is not there.
    """
    for name in ("port", "grpc_port"):
        if getattr(settings, name) > PORTS:
            raise InputError(f"{name} is {getattr(settings, name)}, expected 0 to {PORTS}")
    for name in POSITIVE:
        if not getattr(settings, name) > 0:
            raise InputError(f"{name} is {getattr(settings, name)}, expected more than 0")
    if not settings.bulk_share < 1:
        raise InputError(f"bulk_share is {settings.bulk_share}, expected less than 1")
    Weights(*settings.weights)
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise InputError("TLS needs both: --tls-cert and --tls-key")
    for name in ("tls_cert", "tls_key"):
        path = getattr(settings, name)
        if path and not Path(path).is_file():
            raise InputError(f"--{name.replace('_', '-')} is {path}, which is no file")
    if settings.admin and not (settings.api_key or settings.api_key_file):
        raise InputError("--admin needs --api-key or --api-key-file: anybody could reload")
    if settings.grpc_port:
        try:
            import grpc  # noqa: F401
        except ImportError as error:
            raise missing("grpcio", "grpc", "--grpc-port") from error
