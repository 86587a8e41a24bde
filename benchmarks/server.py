"""A server that is measured: started as a process of its own, watched, and asked one by one."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.checkpoint import TINY, Shape, make
from m3rt import export
from m3rt.connection import Pool
from m3rt.payloads import ROUTE, body

PATIENCE = 600.0  # seconds until a server is ready
SHAPES = {"tiny": TINY, "middle": Shape(hidden=384, layers=12, heads=6, ffn=1536)}
GRACE = 60.0  # seconds for it to stop
READ = 1 << 20
GAUGE = re.compile(r"^(m3rt_\w+) ([-+.\w]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that runs.

    Args:
        url: without a slash at its end.
        pid: of its process; None: not known, and not watched.
    """

    url: str
    pid: int | None


@contextlib.contextmanager
def started(model: Path, engine: str, *options: str) -> Iterator[Peer]:
    """Run ``m3rt serve`` until the block ends; then it must stop by itself.

    Raises:
        RuntimeError: it did not become ready, or did not stop; tells its last words.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "m3rt.cli", "serve", str(model), "--engine", engine]
    command += ["--port", str(port), *options]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)

        def words() -> str:
            said.seek(0)
            return said.read()[-2000:].decode("utf-8", "replace")

        try:
            peer = Peer(f"http://127.0.0.1:{port}", process.pid)
            stop = time.monotonic() + PATIENCE
            while not ready(peer.url):
                if process.poll() is not None or time.monotonic() > stop:
                    raise RuntimeError(f"the server did not start: {words()}")
                time.sleep(0.05)
            yield peer
            process.send_signal(signal.SIGTERM)
            if process.wait(GRACE) != 0:
                raise RuntimeError(f"the server ended with {process.returncode}: {words()}")
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"the server did not stop: {words()}") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def ready(url: str) -> bool:
    """Ask whether a server is ready."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextlib.contextmanager
def reached(
    url: str | None, pid: int | None, model: Path, engine: str, *options: str
) -> Iterator[Peer]:
    """Give a server that runs already, or start one."""
    if url:
        yield Peer(url.rstrip("/"), pid)
    else:
        with started(model, engine, *options) as peer:
            yield peer


def small(folder: Path, name: str = "tiny") -> Path:
    """Return a small model, made and exported where it is not there."""
    model = folder / name
    if not model.exists():
        export.run(str(make(folder / f"{name}-checkpoint", SHAPES[name])), model)
    return model


def usage(pid: int) -> dict[str, int]:
    """Return what a process holds: memory in bytes, threads, open files."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    found = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "rss": int(found["VmRSS"].split()[0]) * 1024,
        "threads": int(found["Threads"]),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208, names are not needed
    }


async def named(pool: Pool) -> str:
    """Return what a server calls its model, as its own answers say."""
    answer = await pool.ask(pool.target.request(ROUTE, body(["a"], ["dense"], "json")))
    found: str = json.loads(answer.body)["model"]
    return found


def gauges(url: str) -> dict[str, float]:
    """Return the server's own gauges without labels, where it has metrics."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace") if answer.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    return {
        name: float(value)
        for name, value in GAUGE.findall(text)
        if kinds.get(name) == "gauge" and not name.endswith("_created")
    }


@dataclass
class Watch:
    """Looks at a server's process again and again, in a thread.

    Args:
        peer: the server.
        seconds: between looks.
        metrics: ask for its gauges, too.
    """

    peer: Peer
    seconds: float = 0.2
    metrics: bool = False
    samples: list[dict[str, float]] = field(default_factory=list)

    def __enter__(self) -> Watch:
        """Begin."""
        self._stop = threading.Event()
        self._begun = time.monotonic()
        self.look()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End with a last look."""
        self._stop.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Take one sample, of what is known."""
        found: dict[str, float] = {"seconds": round(time.monotonic() - self._begun, 2)}
        if self.peer.pid is not None:
            found |= usage(self.peer.pid)
        if self.metrics:
            found |= gauges(self.peer.url)
        self.samples.append(found)

    def _run(self) -> None:
        while not self._stop.wait(self.seconds):
            with contextlib.suppress(OSError):
                self.look()

    def memory(self) -> dict[str, int] | None:
        """Return the bytes resident before, at the most, and after; None: not watched."""
        rss = [int(one["rss"]) for one in self.samples if "rss" in one]
        if not rss:
            return None
        return {"before_bytes": rss[0], "peak_bytes": max(rss), "after_bytes": rss[-1]}

    def trends(self, settled: float = 0.25) -> dict[str, Any]:
        """Return each figure at the start, its end, its most and its slope a second.

        Args:
            settled: the share of the samples, at the start, that the slope leaves out.
        """
        late = self.samples[int(settled * len(self.samples)) :]
        found: dict[str, Any] = {}
        for name in dict.fromkeys(name for one in self.samples for name in one):
            if name == "seconds":
                continue
            values = [(one["seconds"], one[name]) for one in late if name in one]
            whole = [one[name] for one in self.samples if name in one]
            times, heights = [at for at, _ in values], [height for _, height in values]
            slope = float(np.polyfit(times, heights, 1)[0]) if len(values) > 2 else None
            found[name] = {
                "first": whole[0],
                "settled": values[0][1] if values else None,
                "last": whole[-1],
                "most": max(whole),
                "slope_per_second": slope,
            }
        return found

    def thinned(self, most: int = 120) -> list[dict[str, float]]:
        """Return some of the samples, evenly."""
        step = -(-len(self.samples) // most)
        return self.samples[::step]


class Line:
    """One connection that stays, asked by one thread: as little client as can be."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._socket = socket.create_connection((place.hostname or "", place.port or 80), 60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; return status and body."""
        self._socket.sendall(request)
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        head = bytes(data[:end]).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        while len(data) < end + 4 + length:
            data += self._more()
        return int(head[9:12]), bytes(data[end + 4 :])

    def _more(self) -> bytes:
        piece = self._socket.recv(READ)
        if not piece:
            raise ConnectionError("the server closed the connection")
        return piece

    def close(self) -> None:
        """Close it."""
        self._socket.close()


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the nearest ranks in milliseconds."""
    values = 1e3 * np.asarray(seconds)
    points = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = {
        name: float(np.quantile(values, q, method="inverted_cdf")) for name, q in points.items()
    }
    return {name: round(value, 4) for name, value in found.items()} | {"n": len(values)}
