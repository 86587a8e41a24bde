"""What a client may do to a server, over real sockets, and what the server tells of it."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from m3rt import M3
from m3rt.server.http.connection import HEADERS
from m3rt.server.settings import Settings
from m3rt.types import Heads
from tests.served import Served, serving
from tests.steered import Steered, steered

EMBED = "/v1/m3/embed"
SECRET = "a text that is nobody's business"


@contextlib.contextmanager
def server(model: M3, **changes: Any) -> Iterator[Served]:
    with serving(Settings(Path("model"), **changes), model) as found:
        yield found


@contextlib.contextmanager
def gated(model: M3, **changes: Any) -> Iterator[tuple[Served, Steered]]:
    """A server whose engine is behind a gate, which is open at first."""
    behind, engine = steered(model)
    with server(behind, **changes) as found:
        while engine.entered.acquire(blocking=False):
            pass
        try:
            yield found, engine
        finally:
            engine.gate.set()


def address(served: Served) -> tuple[str, int]:
    host, _, port = served.url.removeprefix("http://").partition(":")
    return host, int(port)


@contextlib.contextmanager
def raw(served: Served) -> Iterator[socket.socket]:
    with socket.create_connection(address(served), timeout=20) as found:
        yield found


def request(body: bytes, path: str = EMBED, extra: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def body(*texts: str, outputs: tuple[str, ...] = ("dense",)) -> bytes:
    return json.dumps({"inputs": list(texts), "outputs": list(outputs)}).encode()


def read_all(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError(f"it never came: {what}")


def right(found: httpx.Response, model: M3, *texts: str) -> None:
    direct = model.encode(texts, Heads.DENSE).dense
    assert direct is not None
    data = found.raise_for_status().json()["data"]
    rows = np.array([item["dense"] for item in data], np.float32)
    np.testing.assert_allclose(rows, direct, atol=1e-6)


def post(served: Served, *texts: str, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(served.url + EMBED, content=body(*texts), headers=names, timeout=30)


def test_keys(model: M3) -> None:
    with server(model, api_key="first, team=second==") as served:
        for header in (None, "", "Bearer", "Bearer third", "second", "Bearer team=second=="):
            found = post(served, "a") if header is None else post(served, "a", authorization=header)
            assert found.status_code == 401
            assert found.json()["error"]["type"] == "unauthorised"
            assert found.headers["www-authenticate"] == "Bearer"
        for headers in (
            {"authorization": "Bearer first"},
            {"authorization": "bearer second=="},
            {"x_api_key": "first"},
        ):
            right(post(served, "a", **headers), model, "a")
        for path in ("/livez", "/readyz", "/health", "/metrics", "/v2/health/live", "/docs"):
            assert httpx.get(served.url + path).status_code == 200
        assert httpx.get(served.url + "/info").status_code == 401
        assert (
            httpx.post(served.url + "/v1/embeddings").json()["error"]["code"] == "invalid_api_key"
        )


def test_ids_of_requests(served: Served) -> None:
    assert post(served, "a", x_request_id="mine-1").headers["x-request-id"] == "mine-1"
    for hostile in (b"a b", b"\xc3\xa9", b"x" * 129):
        made = httpx.get(served.url + "/livez", headers={b"x-request-id": hostile})
        assert len(made.headers["x-request-id"]) == 32
    assert httpx.get(served.url + "/none").headers["x-request-id"]


def test_pages_of_other_origins(model: M3) -> None:
    with server(model, cors_allow_origin="https://a.example") as served:
        asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
        found = httpx.options(served.url + EMBED, headers=asked)
        assert found.status_code == 204
        assert found.headers["access-control-allow-origin"] == "https://a.example"
        assert "x-priority" in found.headers["access-control-allow-headers"]
        other = httpx.options(served.url + EMBED, headers={**asked, "origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
        right(post(served, "a", origin="https://a.example"), model, "a")


def test_by_default_no_other_origin_may(served: Served) -> None:
    found = post(served, "a", origin="https://a.example")
    assert not [name for name in found.headers if name.startswith("access-control")]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(model: M3, chunked: bool) -> None:
    with server(model, max_body_bytes=1000) as served:
        large = body("x" * 2000)
        content: Any = (part for part in [large[:700], large[700:]]) if chunked else large
        found = httpx.post(served.url + EMBED, content=content)
        assert found.status_code == 413
        assert found.json()["error"]["type"] == "too_large"
        right(post(served, "a"), model, "a")


def test_who_sends_somewhat_too_much_is_told_so(model: M3) -> None:
    """A client reads no answer before it has sent all: what is too much is read, and not kept."""
    with server(model, max_body_bytes=1000) as served:
        found = httpx.post(served.url + EMBED, content=b"x" * (16 << 20), timeout=30)
        assert found.status_code == 413
        assert str(16 << 20) in found.json()["error"]["message"]


def test_a_body_that_is_declared_huge_is_not_waited_for(model: M3) -> None:
    with server(model, max_body_bytes=1000) as served, raw(served) as connection:
        connection.sendall(
            f"POST {EMBED} HTTP/1.1\r\nhost: x\r\ncontent-length: {1 << 40}\r\n\r\n".encode()
        )
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come(model: M3) -> None:
    with server(model, body_timeout=0.2) as served, raw(served) as connection:
        connection.sendall(request(body("a"))[:-5])
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert served.service.requests == 0
        right(post(served, "a"), model, "a")


def test_headers_that_do_not_come(model: M3) -> None:
    with server(model, header_timeout=0.2) as served:
        with raw(served) as connection:
            assert read_all(connection) == b""
        with raw(served) as connection:
            connection.sendall(b"POST /embed HTTP/1.1\r\nhost:")
            assert read_all(connection) == b""
        with raw(served) as connection:  # the second request of a connection, too
            connection.sendall(request(body("a")))
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            connection.sendall(b"POST")
            time.sleep(0.3)
            read_all(connection)
        right(post(served, "a"), model, "a")


def test_headers_that_never_end(served: Served) -> None:
    with raw(served) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for n in range(HEADERS // 50):
                connection.sendall(f"x-header-{n}: {'y' * 60}\r\n".encode())
        assert read_all(connection).startswith((b"HTTP/1.1 400", b""))
    right(post(served, "a"), served.model, "a")


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /embed HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /embed HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /embed HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ],
)
def test_what_is_no_http(served: Served, junk: bytes) -> None:
    with raw(served) as connection:
        connection.settimeout(2)
        connection.sendall(junk)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):
            answer = read_all(connection)
            assert not answer.startswith(b"HTTP/1.1 5")
    right(post(served, "a"), served.model, "a")


def test_connections_are_bounded(model: M3) -> None:
    with server(model, max_connections=3) as served, contextlib.ExitStack() as stack:
        held = [stack.enter_context(raw(served)) for _ in range(3)]
        for connection in held:
            connection.sendall(request(body("a")))
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        with raw(served) as connection:
            assert read_all(connection).startswith(b"HTTP/1.1 503 ")
        held[0].close()
        until(lambda: len(served.service.observers) > 0, "room")
        time.sleep(0.05)
        right(post(served, "a"), model, "a")


def test_requests_are_bounded(model: M3) -> None:
    with gated(model, max_concurrent_requests=2) as (served, engine):
        engine.gate.clear()
        with raw(served) as one, raw(served) as two:
            for connection in (one, two):
                connection.sendall(request(body("a")))
            until(lambda: served.service.requests == 2, "both")
            found = post(served, "b")
            assert found.status_code == 429
            assert int(found.headers["retry-after"]) >= 1
            assert found.headers["x-should-retry"] == "true"
            assert httpx.get(served.url + "/livez").status_code == 200
            engine.gate.set()
            assert one.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_client_that_goes_takes_its_work_along(model: M3) -> None:
    with gated(model) as (served, engine):
        engine.gate.clear()
        line = served.service.stage.scheduler.line
        with raw(served) as busy, raw(served) as gone, raw(served) as stays:
            busy.sendall(request(body("busy")))
            assert engine.entered.acquire(timeout=10)
            gone.sendall(request(body("gone a", "gone b")))
            until(lambda: len(line) == 2, "its texts")
            stays.sendall(request(body("stays")))
            until(lambda: len(line) == 3, "the other's")
            gone.close()
            until(lambda: len(line) == 1, "they are dropped")
            engine.gate.set()
            assert stays.recv(1 << 16).startswith(b"HTTP/1.1 200")
        ran = {text for texts, _ in engine.ran for text in texts}
        assert model.tokenize(["gone a"]).ids[0].tobytes() not in ran
        until(lambda: served.service.requests == 0, "no request is left")
        metrics = httpx.get(served.url + "/metrics").text
        assert "m3rt_cancelled_total 1.0" in metrics


def test_a_client_that_goes_in_the_midst_of_its_body(served: Served) -> None:
    for cut in (10, 60, 120, 150):
        with raw(served) as connection:
            connection.sendall(request(body("a" * 200))[:cut])
    until(lambda: served.service.requests == 0, "no request is left")
    right(post(served, "a"), served.model, "a")


def test_a_client_that_does_not_read_is_given_up(model: M3) -> None:
    """What it holds is bounded meanwhile, and given back."""
    with server(model, write_timeout=0.3, max_wait=60.0) as served:
        room = served.service.room
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(20)
            connection.connect(address(served))
            # some 40 MB, which no socket's buffers take
            connection.sendall(request(body(*["word " * 3000] * 12, outputs=("colbert",))))
            until(lambda: room.held > 0, "its answer is made")
            until(lambda: room.held == 0, "it is given up")
            with contextlib.suppress(ConnectionError):
                assert len(read_all(connection)) < 40 << 20
        right(post(served, "a"), model, "a")


def test_requests_one_behind_another_on_a_connection(served: Served) -> None:
    with raw(served) as connection:
        texts = ["first", "second", "third"]
        connection.sendall(b"".join(request(body(text)) for text in texts))
        connection.settimeout(0.5)
        answer = b""
        with contextlib.suppress(TimeoutError):
            while part := connection.recv(1 << 16):
                answer += part
        parts = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 OK")[1:]]
        assert len(parts) == 3
        direct = served.model.encode(texts, Heads.DENSE).dense
        assert direct is not None
        for part, row in zip(parts, direct, strict=True):
            found = np.array(json.loads(part)["data"][0]["dense"], np.float32)
            np.testing.assert_allclose(found, row, atol=1e-6)


def test_deadlines(model: M3) -> None:
    with gated(model) as (served, engine):
        engine.gate.clear()
        begun = time.monotonic()
        for header in ({"x_request_timeout_ms": "100"}, {"x_stainless_read_timeout": "0.1"}):
            found = post(served, "late", **header)
            assert found.status_code in (429, 504)
            assert found.status_code == 429 or found.headers["x-should-retry"] == "false"
        assert time.monotonic() - begun < 10
        for wrong in ("0", "-1", "nan", "soon"):
            assert post(served, "a", x_request_timeout_ms=wrong).status_code == 400
        assert post(served, "a", x_priority="urgent").status_code == 400


def test_lanes_are_told(model: M3, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "m3rt.access"),
        server(model, interactive_texts=2) as served,
    ):
        for headers in ({}, {"x_priority": "bulk"}, {"x_priority": "1"}, {"x_priority": "0"}):
            right(post(served, "a", **headers), model, "a")
        right(post(served, "a", "b", "c"), model, "a", "b", "c")
        until(lambda: len(lines(caplog)) == 5, "all are logged")
    lanes = [line["lane"] for line in lines(caplog)]
    assert lanes == ["interactive", "bulk", "bulk", "interactive", "bulk"]


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record)["m3rt"] for record in caplog.records if record.name == "m3rt.access"]


def test_the_log_knows_no_texts(model: M3, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), server(model) as served:
        right(post(served, SECRET, x_request_id="r1"), model, SECRET)
        for content in (b'{"inputs": "' + SECRET.encode(), body(SECRET, outputs=("none",))):
            httpx.post(served.url + EMBED, content=content)
        httpx.get(served.url + "/" + SECRET)
        httpx.post(served.url + "/v1/embeddings", json={"input": [SECRET, ""], "model": "m"})
        until(lambda: len(lines(caplog)) == 5, "all are logged")
    assert SECRET not in caplog.text
    assert SECRET not in str(lines(caplog))
    first = lines(caplog)[0]
    assert first["request_id"] == "r1"
    assert (first["texts"], first["status"], first["route"]) == (1, 200, EMBED)
    assert first["tokens"] == len(model.tokenize([SECRET]).ids.values)
    assert first["ms"] >= first["engine_ms"] > 0


def test_texts_are_logged_where_that_was_chosen(
    model: M3, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "m3rt.access"), server(model, log_texts=True) as served:
        post(served, SECRET)
        until(lambda: len(lines(caplog)) == 1, "it is logged")
    assert lines(caplog)[0]["inputs"] == [SECRET]


@pytest.mark.parametrize("form", ["json", "text"])
def test_lines_of_the_log(form: str, model: M3, caplog: pytest.LogCaptureFixture) -> None:
    from m3rt.server import logs

    with caplog.at_level(logging.INFO, "m3rt.access"), server(model) as served:
        post(served, "a")
        until(lambda: len(lines(caplog)) == 1, "it is logged")
    record = next(record for record in caplog.records if record.name == "m3rt.access")
    formatter = logs.JsonFormatter() if form == "json" else logs.TextFormatter()
    line = formatter.format(record)
    if form == "json":
        found = json.loads(line)
        assert (found["status"], found["lane"], found["level"]) == (200, "interactive", "info")
    else:
        assert f"POST {EMBED} 200 ms=" in line
        assert "lane=interactive" in line
    assert "\n" not in line


def test_metrics(model: M3) -> None:
    with server(model, metrics_compat="tei") as served:
        right(post(served, "a", "b"), model, "a", "b")
        httpx.post(served.url + EMBED, content=b"{")
        httpx.post(served.url + "/embed", json={"inputs": "a"})
        found = httpx.get(served.url + "/metrics").text
    for line in (
        f'm3rt_requests_total{{code="200",route="{EMBED}"}} 1.0',
        f'm3rt_requests_total{{code="400",route="{EMBED}"}} 1.0',
        "m3rt_texts_total 3.0",
        'm3rt_queue_seconds_count{lane="interactive"} 2.0',
        "m3rt_batch_size_sum 3.0",
        "m3rt_ready 1.0",
        "m3rt_held_bytes 0.0",
        'te_request_count_total{method="batch"} 1.0',
        'te_request_failure_total{err="validation"} 1.0',
        "te_embed_count_total 3.0",
        "te_queue_size 0.0",
    ):
        assert line in found, line
    tokens = float(found.split("\nm3rt_tokens_total ")[1].split("\n")[0])
    assert tokens == sum(map(len, model.tokenize(["a", "b", "a"]).ids))


def test_traces(model: M3) -> None:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from m3rt.server.tracing import Tracing

    spans = InMemorySpanExporter()
    tracing = Tracing("", "m3", SimpleSpanProcessor(spans))
    with server(model) as served:
        served.service.observers.append(tracing.finished)
        caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        right(post(served, SECRET, traceparent=caller), model, SECRET)
        until(lambda: len(spans.get_finished_spans()) == 5, "its spans")
    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"embeddings m3", "tokenise", "queue", "infer", "serialise"}
    whole = found.pop("embeddings m3")
    assert f"{whole.context.trace_id:032x}" in caller
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" in caller
    assert whole.attributes is not None
    assert whole.attributes["gen_ai.usage.input_tokens"] == len(model.tokenize([SECRET]).ids.values)
    assert SECRET not in str(whole.attributes)
    for span in found.values():
        assert span.parent is not None
        assert span.parent.span_id == whole.context.span_id
        assert span.start_time is not None
        assert span.end_time is not None
        assert whole.start_time is not None
        assert whole.end_time is not None
        assert whole.start_time <= span.start_time <= span.end_time


def test_traces_are_sent_to_a_collector(model: M3) -> None:
    taken: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        with server(model, otlp_endpoint=f"http://127.0.0.1:{collector.server_port}") as served:
            right(post(served, SECRET), model, SECRET)
        until(lambda: bool(taken), "what was not sent is sent in the end")
        collector.shutdown()
    assert [path for path, _ in taken] == ["/v1/traces"]
    assert b"embeddings" in taken[0][1]
    assert SECRET.encode() not in taken[0][1]


def test_probes_while_it_starts_and_when_it_hangs(model: M3) -> None:
    behind, engine = steered(model)
    engine.gate.clear()
    opened = threading.Event()

    def probe(served: Served, path: str) -> int:
        return httpx.get(served.url + path).status_code

    def open_late() -> None:
        opened.wait(10)
        engine.gate.set()

    threading.Thread(target=open_late).start()
    with serving(Settings(Path("model"), engine_timeout=0.3), behind, ready=False) as served:
        assert probe(served, "/livez") == 200
        assert probe(served, "/readyz") == 503
        found = post(served, "a")
        assert found.status_code == 503
        assert found.json()["error"]["type"] == "not_ready"
        opened.set()
        until(lambda: probe(served, "/readyz") == 200, "it is warm")
        right(post(served, "a"), model, "a")
        engine.gate.clear()
        assert post(served, "b").status_code in (500, 503)
        assert probe(served, "/livez") == 503
        assert probe(served, "/readyz") == 503
        engine.gate.set()
        until(lambda: probe(served, "/readyz") == 200, "it is back")


def test_what_the_engine_says_is_not_lost(model: M3) -> None:
    from m3rt.errors import EngineError

    with gated(model) as (served, engine):

        def before(_: object) -> None:
            raise EngineError("out of luck")

        engine.before = before
        found = post(served, "a")
        assert found.status_code == 500
        assert "out of luck" in found.json()["error"]["message"]
        engine.before = lambda batch: None
        right(post(served, "a"), model, "a")


def test_a_fault_of_ours_shows_no_insides(model: M3) -> None:
    with gated(model) as (served, engine):
        engine.after = lambda batch, raw: None  # type: ignore[assignment, return-value]
        found = post(served, SECRET)
        assert found.status_code == 500
        assert SECRET not in found.text


def test_a_reload_by_request(model: M3, odd_model_dir: Path) -> None:
    import m3rt

    other = m3rt.load(odd_model_dir, "cpu")
    settings = Settings(Path("model"), admin=True, api_key="k")

    async def reload(service: Any) -> str:
        await service.swap(other)
        return str(service.name)

    with serving(settings, model, reload=reload) as served:
        assert httpx.post(served.url + "/admin/reload").status_code == 401
        keyed = {"authorization": "Bearer k"}
        found = httpx.post(served.url + "/admin/reload", headers=keyed, timeout=30)
        assert found.json() == {"model": other.manifest.source.checkpoint}
        right(post(served, "a", **keyed), other, "a")


def test_without_admin_there_is_no_reload(served: Served) -> None:
    assert httpx.post(served.url + "/admin/reload").status_code == 404


def test_a_client_may_go_at_any_moment(model: M3, caplog: pytest.LogCaptureFixture) -> None:
    """Also as its answer is ready, or is sent: nothing is logged as a fault, nothing is left."""
    with server(model) as served:
        for n in range(300):
            with raw(served) as connection:
                connection.sendall(request(body("a", outputs=("dense", "colbert"))))
                time.sleep(n % 30 * 1e-4)
        until(lambda: served.service.requests == 0, "no request is left")
        assert served.service.room.held == 0
        right(post(served, "a"), model, "a")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
