"""``m3rt serve`` as a process: it starts, renews itself, ends and is killed under load."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
import trustme

import m3rt
from m3rt import M3
from m3rt.types import Heads

TEXTS = [f"{word} {other}" for word in ("one", "fox", "Köln") for other in ("a", "b", "東京")]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass(slots=True)
class Process:
    """A server of its own."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def kill(self, number: signal.Signals, seconds: float = 30) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)

    def wait_ready(self, verify: ssl.SSLContext | bool = True) -> None:
        for _ in range(600):
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + "/readyz", verify=verify).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())


@contextlib.contextmanager
def started(
    model: Path, tmp_path: Path, *options: str, port: int | None = None
) -> Iterator[Process]:
    port = port or free_port()
    log = tmp_path / f"{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "m3rt.cli", "serve", str(model)]
    given = ["--engine", "cpu", "--port", str(port), "--log-format", "json", *options]
    with log.open("w") as stream:
        process = subprocess.Popen([*command, *given], stderr=stream, text=True)
    scheme = "https" if "--tls-cert" in options else "http"
    try:
        yield Process(f"{scheme}://127.0.0.1:{port}", process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@dataclass(slots=True)
class Load:
    """Clients that ask all the time, and check what they get."""

    url: str
    models: list[M3]
    right: int = 0
    wrong: list[str] = field(default_factory=list)
    cut: int = 0  # connections that were closed or refused
    statuses: list[int] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, clients: int = 6) -> None:
        direct = [[rows.tobytes() for rows in rounded(model)] for model in self.models]
        for n in range(clients):
            thread = threading.Thread(target=self._run, args=(n, direct))
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, n: int, direct: list[list[bytes]]) -> None:
        with httpx.Client(timeout=20) as client:
            while not self._stop.is_set():
                n += 1
                text = TEXTS[n % len(TEXTS)]
                body = {"inputs": text, "outputs": ["dense"]}
                try:
                    found = client.post(self.url + "/v1/m3/embed", json=body)
                except httpx.TransportError:
                    self.cut += 1
                    time.sleep(0.02)
                    continue
                if found.status_code != 200:
                    self.statuses.append(found.status_code)
                    continue
                row = np.array(found.json()["data"][0]["dense"], np.float32)
                if np.round(row, 5).tobytes() in [rows[n % len(TEXTS)] for rows in direct]:
                    self.right += 1
                else:
                    self.wrong.append(text)


def rounded(model: M3) -> np.ndarray:
    dense = model.encode(TEXTS, Heads.DENSE).dense
    assert dense is not None
    return np.round(dense, 5)


def reads(path: Path) -> list[str]:
    return [json.loads(line).get("message", "") for line in path.read_text().splitlines()]


def test_sigterm_under_load_finishes_what_is_begun(
    model_dir: Path, model: M3, tmp_path: Path
) -> None:
    with started(model_dir, tmp_path) as server:
        server.wait_ready()
        load = Load(server.url, [model])
        load.start()
        time.sleep(1)
        assert server.kill(signal.SIGTERM) == 0
        load.stop()
        assert load.right > 20
        assert not load.wrong
        assert not load.statuses
        log = reads(server.log)
        assert not [line for line in log if "failed" in line or "Exception" in line], log


def test_while_it_drains_it_is_not_ready_and_still_answers(
    model_dir: Path, model: M3, tmp_path: Path
) -> None:
    with started(model_dir, tmp_path, "--drain-grace", "2") as server:
        server.wait_ready()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert httpx.get(server.url + "/readyz").status_code == 503
        load = Load(server.url, [model])
        load.start(1)
        time.sleep(0.5)
        load.stop()
        assert load.right
        assert not load.cut
        assert server.process.wait(10) == 0


def test_killed_under_load_it_serves_again(model_dir: Path, model: M3, tmp_path: Path) -> None:
    port = free_port()
    with started(model_dir, tmp_path, port=port) as server:
        server.wait_ready()
        load = Load(server.url, [model])
        load.start()
        time.sleep(0.5)
        assert server.kill(signal.SIGKILL) == -signal.SIGKILL
        before = load.right
        with started(model_dir, tmp_path, port=port) as again:
            again.wait_ready()
            time.sleep(0.5)
            load.stop()
            assert load.right > before > 0
            assert load.cut
            assert not load.wrong
            assert set(load.statuses) <= {503}  # while it warmed up


def test_sighup_serves_another_model_and_drops_no_request(
    model_dir: Path, odd_model_dir: Path, model: M3, tmp_path: Path
) -> None:
    other = m3rt.load(odd_model_dir, "cpu")
    link = tmp_path / "current"
    link.symlink_to(model_dir)
    keys = tmp_path / "keys"
    keys.write_text("# nobody yet\nteam=one\n")
    with started(link, tmp_path, "--api-key-file", str(keys)) as server:
        server.wait_ready()
        info = server.url + "/v1/m3/info"
        assert httpx.get(info, headers={"authorization": "Bearer two"}).status_code == 401
        keys.write_text("team=one\nother=two\n")
        link.unlink()
        link.symlink_to(odd_model_dir)
        server.process.send_signal(signal.SIGHUP)
        asked = {"authorization": "Bearer two"}
        for _ in range(400):
            found = httpx.get(info, headers=asked)
            if found.status_code == 200:
                break
            time.sleep(0.05)
        assert found.json()["max_length"] == other.max_length
        link.unlink()  # what cannot be opened changes nothing
        server.process.send_signal(signal.SIGHUP)
        for _ in range(400):
            if any("what served goes on" in line for line in reads(server.log)):
                break
            time.sleep(0.05)
        body = {"inputs": TEXTS, "outputs": ["dense"]}
        found = httpx.post(server.url + "/v1/m3/embed", json=body, headers=asked)
        rows = np.array([item["dense"] for item in found.json()["data"]], np.float32)
        np.testing.assert_allclose(rows, rounded(other), atol=1e-5)
        assert server.kill(signal.SIGTERM) == 0


def test_a_reload_under_load_drops_no_request(
    model_dir: Path, odd_model_dir: Path, model: M3, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(model_dir)
    with started(link, tmp_path) as server:
        server.wait_ready()
        load = Load(server.url, [model, m3rt.load(odd_model_dir, "cpu")])
        load.start(4)
        for target in (odd_model_dir, model_dir):
            link.unlink()
            link.symlink_to(target)
            count = sum("serves now" in line for line in reads(server.log))
            server.process.send_signal(signal.SIGHUP)
            for _ in range(600):
                if sum("serves now" in line for line in reads(server.log)) > count:
                    break
                time.sleep(0.05)
        load.stop()
        assert load.right > 50
        assert not load.wrong
        assert not load.cut
        assert not load.statuses


def test_tls_and_grpc(model_dir: Path, model: M3, tmp_path: Path) -> None:
    import grpc

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    cert, key, root = (tmp_path / name for name in ("cert.pem", "key.pem", "root.pem"))
    certificate.cert_chain_pems[0].write_to_path(cert)
    certificate.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(root)
    port = free_port()
    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--grpc-port", str(port))
    with started(model_dir, tmp_path, *options) as server:
        context = ssl.create_default_context(cafile=str(root))
        server.wait_ready(context)
        body = {"inputs": TEXTS, "outputs": ["dense"]}
        found = httpx.post(server.url + "/v1/m3/embed", json=body, verify=context)
        rows = np.array([item["dense"] for item in found.json()["data"]], np.float32)
        np.testing.assert_allclose(rows, rounded(model), atol=1e-5)
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/livez")
        credentials = grpc.ssl_channel_credentials(root.read_bytes())
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            from grpc_health.v1 import health_pb2, health_pb2_grpc

            health = health_pb2_grpc.HealthStub(channel)
            state = health.Check(health_pb2.HealthCheckRequest(), timeout=20).status
            assert state == health_pb2.HealthCheckResponse.SERVING
        assert server.kill(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tls-cert", "x.pem"], "TLS needs both"),
        (["--port", "70000"], "expected 0 to 65535"),
        (["--admin"], "--admin needs"),
        (["--weights", "0,0,0"], "sum to"),
        (["--api-key-file", "none"], "cannot be read"),
        (["--config", "none.toml"], "cannot be read"),
        (["--max-wait", "-1"], "expected 0 or more"),
    ],
)
def test_what_cannot_be_is_said_at_once(options: list[str], message: str, model_dir: Path) -> None:
    from typer.testing import CliRunner

    from m3rt.cli import app

    found = CliRunner().invoke(app, ["serve", str(model_dir), *options])
    assert found.exit_code == 3
    assert message in found.output


def test_a_port_that_is_taken(model_dir: Path) -> None:
    from typer.testing import CliRunner

    from m3rt.cli import app

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = CliRunner().invoke(app, ["serve", str(model_dir), "--port", str(port)])
    assert found.exit_code == 1
    assert f"127.0.0.1:{port}" in found.output
