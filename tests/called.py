"""A gRPC server on loopback, in a thread of this process, and what its tests share."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

from m3rt import M3
from m3rt.server.rpc import server
from m3rt.server.settings import Settings
from tests.watched import Watched


@dataclass(frozen=True, slots=True)
class Called:
    """A gRPC server that runs in a thread of this process."""

    service: Watched
    loop: asyncio.AbstractEventLoop
    running: server.Running
    channel: Any

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.running.port}"

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def last(self) -> Any:
        """What was asked last, and for whom."""
        return self.service.asks[-1]


@contextmanager
def calling(
    model: M3,
    settings: Settings,
    allowed: Callable[[str | None], str | None] = lambda header: "",
    credentials: Any = None,
) -> Iterator[Called]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    service = Watched(settings, model)

    def do(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    try:
        do(service.start())
        start = server.start(service, "127.0.0.1:0", allowed, credentials)
        running = do(start)
        with grpc.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            yield Called(service, loop, running, channel)
        do(running.stop(None))
    finally:
        do(service.stop(5))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def refused(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as found:
        call()
    return found.value


def close(got: Any, want: Any) -> None:
    """Expect equal numbers: other heads, or texts, in a run round the last digit otherwise."""
    np.testing.assert_allclose(got, want, atol=1e-6)


def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)
