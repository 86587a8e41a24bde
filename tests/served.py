"""A server on loopback, in a thread of this process: real sockets, real clients, a real engine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from m3rt import M3
from m3rt.server.host import configuration
from m3rt.server.http.app import App
from m3rt.server.http.assembly import assembled
from m3rt.server.keys import Keys
from m3rt.server.service import Service
from m3rt.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs."""

    url: str  # without a slash at its end
    app: App
    service: Service
    model: M3  # what it serves, to compare its answers with


@contextmanager
def serving(
    settings: Settings,
    model: M3,
    kind: type[Service] = Service,
    *,
    ready: bool = True,
    reload: Callable[[Service], Awaitable[str]] | None = None,
) -> Iterator[Served]:
    """Run a server until the block ends.

    Args:
        settings: of it.
        model: to serve.
        kind: of service, to make the core refuse.
        ready: wait until it is warm.
        reload: what is done for a reload, if it can be.
    """
    service = kind(settings, model)
    app = assembled(
        service, Keys.read(settings), None if reload is None else lambda: reload(service)
    )
    server = uvicorn.Server(configuration(settings, app))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not (server.started and (service.started or not ready)):
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.01)
            yield Served(f"http://127.0.0.1:{port}", app, service, model)
        finally:
            server.should_exit = True
            thread.join(30)
