"""A server on loopback, in a thread of this process: real sockets, real clients, a real engine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from m3rt import M3
from m3rt.server.http.app import App
from m3rt.server.http.surfaces import ROUTES
from m3rt.server.service import Service
from m3rt.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs."""

    url: str  # without a slash at its end
    service: Service
    model: M3  # what it serves, to compare its answers with


@contextmanager
def serving(settings: Settings, model: M3, kind: type[Service] = Service) -> Iterator[Served]:
    """Run a server until the block ends; of another kind, to make the core refuse."""
    service = kind(settings, model)
    config = uvicorn.Config(App(service, ROUTES), log_config=None, lifespan="off", access_log=False)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                time.sleep(0.01)
            yield Served(f"http://127.0.0.1:{port}", service, model)
        finally:
            server.should_exit = True
            thread.join(30)
