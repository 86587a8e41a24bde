"""Requests that no honest client sends: each is made from a seed and a number, and so again.

Some are JSON that is not what a route wants, some are HTTP that is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.spoils import Draw, of_json

AUTHORITY = "127.0.0.1"
BODIES: Mapping[str, Any] = {
    "/v1/m3/embed": {
        "inputs": ["a text", "another"],
        "outputs": ["dense", "sparse", "colbert"],
        "input_type": "query",
        "max_length": 64,
        "truncate": "right",
        "format": "base64",
        "dtype": "float16",
    },
    "/v1/m3/score": {"queries": ["a query"], "passages": ["a text", "another"]},
    "/v1/embeddings": {
        "model": "m",
        "input": ["a text"],
        "encoding_format": "base64",
        "dimensions": 64,
        "user": "u",
    },
    "/embed": {"inputs": "a text", "truncate": True, "normalize": True, "prompt_name": None},
    "/embed_sparse": {"inputs": ["a text"], "truncation_direction": "left"},
    "/embed_all": {"inputs": ["a text"]},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}, "parameters": {}},
    "/rerank": {"query": "a query", "texts": ["b", "c"], "raw_scores": False, "return_text": True},
    "/v1/rerank": {"query": "a query", "documents": ["b", "c"], "top_n": 1},
    "/v2/embed": {
        "model": "m",
        "input_type": "search_query",
        "texts": ["a"],
        "embedding_types": ["float", "int8"],
        "truncate": "END",
    },
    "/score": {"text_1": "a", "text_2": ["b", "c"]},
    "/pooling": {"input": ["a"], "task": "token_embed", "encoding_format": "float"},
    "/tokenize": {"inputs": ["a text"], "add_special_tokens": True},
    "/decode": {"ids": [[0, 5, 2]], "skip_special_tokens": True},
    "/v2/models/m/infer": {
        "id": "1",
        "inputs": [{"name": "TEXT", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}],
        "outputs": [{"name": "dense"}],
    },
    "/": {"inputs": "a text"},
}


@dataclass(frozen=True, slots=True)
class Attack:
    """One request.

    Args:
        name: of what is done.
        data: all bytes.
        whole: a server that reads HTTP must answer; else it may wait for more, or close.
    """

    name: str
    data: bytes
    whole: bool


def attack(seed: int, number: int, bodies: Mapping[str, Any]) -> Attack:
    """Make a request; the same numbers and bodies give the same."""
    draw = Draw(f"{seed}/{number}")
    path = draw.choice(sorted(bodies))
    body = bodies[path]
    if draw.random() < 0.6:
        name, text, encoding = of_json(draw, body)
        headers = {"content-type": "application/json"} | encoding
        data = request(path, text, headers | sometimes(draw))
        return Attack(f"{path}: {name}", data, whole=True)
    wild = draw.choice(WILD)
    return wild(draw, path, json.dumps(body).encode())


def request(
    path: str, body: bytes, headers: Mapping[str, str], method: str = "POST", length: str = ""
) -> bytes:
    """Write a request, whatever is in it."""
    said = {"host": AUTHORITY, "content-length": length or str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("utf-8", "surrogatepass") + body


def sometimes(draw: Draw) -> dict[str, str]:
    """Return headers that the application reads, with values that it should not trust."""
    if draw.random() < 0.7:
        return {}
    values = ("", "0", "-1", "nan", "1e999", "1", "99999999999999999999", "\x01", "é", "a" * 3000)
    names = (
        *("x-priority", "x-request-timeout-ms", "x-stainless-read-timeout", "x-request-id"),
        *("accept", "authorization", "traceparent", "inference-header-content-length", "expect"),
        *("content-type", "content-encoding", "accept-encoding", "cookie", "origin", "range"),
    )
    return {draw.choice(names): draw.choice(values) for _ in range(draw.choice((1, 2)))}


def wrong_length(draw: Draw, path: str, body: bytes) -> Attack:
    """Say another length than the body has."""
    n = len(body)
    lengths = (
        *(str(n + 10), str(n - 5), "0", "-1", "+5", "5, 5", "0x10", "1e3", "a", " ", str(2**63)),
        *(str(10**30), f"{n}, {n + 1}", "٣"),
    )
    length = draw.choice(lengths)
    return Attack(f"length {length}", request(path, body, {}, length=length), whole=False)


def two_lengths(draw: Draw, path: str, body: bytes) -> Attack:
    """Say the length twice, or chunks and a length."""
    second = draw.choice(
        (
            f"Content-Length: {len(body) + 5}",
            f"CONTENT-LENGTH: {len(body)}",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding: xchunked",
        )
    )
    data = request(path, body, {}).replace(b"\r\n\r\n", f"\r\n{second}\r\n\r\n".encode(), 1)
    return Attack("two lengths", data, whole=False)


def chunks(draw: Draw, path: str, body: bytes) -> Attack:
    """Send chunks that are none."""
    head = f"POST {path} HTTP/1.1\r\nhost: {AUTHORITY}\r\ntransfer-encoding: chunked\r\n\r\n"
    size = f"{len(body):x}".encode()
    right = size + b"\r\n" + body + b"\r\n0\r\n\r\n"
    forms: tuple[tuple[bytes, bool], ...] = (
        (right, True),
        (right.replace(size, size + b";a=b", 1), True),
        (
            b"".join(b"1\r\n" + body[i : i + 1] + b"\r\n" for i in range(len(body))) + b"0\r\n\r\n",
            True,
        ),
        (b"zz\r\n" + body + b"\r\n0\r\n\r\n", False),
        (b"-1\r\n" + body, False),
        (b"f" * 40 + b"\r\n" + body, False),
        (size + b"\n" + body + b"\n0\n\n", False),
        (b"5\r\n" + body + b"\r\n0\r\n\r\n", False),
        (size + b"\r\n" + body, False),
        (draw.randbytes(200), False),
        (size + b";" + b"a" * 100_000 + b"\r\n" + body + b"\r\n0\r\n\r\n", False),
        (right[:-2] + b"trailer: x\r\n" * 1000 + b"\r\n", False),
    )
    text, whole = draw.choice(forms)
    return Attack("chunks", head.encode() + text, whole)


def flood(draw: Draw, path: str, body: bytes) -> Attack:
    """Send headers without end, or very long ones."""
    headers = draw.choice(
        (
            {f"x-{i}": "a" for i in range(2000)},
            {"x": "a" * 200_000},
            {"x" * 100_000: "a"},
            {"cookie": "; ".join(f"a{i}=b" for i in range(5000))},
        )
    )
    return Attack("flood", request(path, body, headers), whole=False)


def odd_header(draw: Draw, path: str, body: bytes) -> Attack:
    """Send a header that is none."""
    line = draw.choice(
        (
            *(b"a", b": b", b"a b: c", b"a\x00: b", b"a: \x00", b"\xff\xfe: b", b"a: b\r\n c"),
            *(b"a: b\nc: d", b"a:" + b" " * 10_000, b"\r", b"host: other", b"connection: upgrade"),
            *(b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: eA==", b"te: x"),
            *(b"expect: 100-continue", b"expect: 999", b"connection: close, keep-alive"),
        )
    )
    data = request(path, body, {}).replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n", 1)
    return Attack("header", data, whole=False)


def odd_start(draw: Draw, path: str, body: bytes) -> Attack:
    """Begin with what is no request."""
    start = draw.choice(
        (
            *(f"GET {path}", "POST", "", " ", f"POST  {path}  HTTP/1.1", f"POST {path} HTTP/9.9"),
            *(f"POST {path} HTTP/1.0", f"post {path} HTTP/1.1", f"POST {path} http/1.1"),
            *("PRI * HTTP/2.0", f"POST {path}\x00 HTTP/1.1", f"A{'B' * 5000} {path} HTTP/1.1"),
            *("CONNECT a:1 HTTP/1.1", "OPTIONS * HTTP/1.1", f"TRACE {path} HTTP/1.1"),
            *(f"HEAD {path} HTTP/1.1", f"PUT {path} HTTP/1.1", f"DELETE {path} HTTP/1.1"),
        )
    )
    rest = request(path, body, {}).partition(b"\r\n")[2]
    return Attack("start", start.encode("utf-8", "replace") + b"\r\n" + rest, whole=False)


def odd_path(draw: Draw, path: str, body: bytes) -> Attack:
    """Ask for a path that there is not, or that is none."""
    found = draw.choice(
        (
            *("/%00", "/%", "/%zz", "/..%2f..%2fetc/passwd", "//", path + "/", path.upper()),
            *("/" + "a" * 10_000, "/" + "a/" * 5000, f"http://{AUTHORITY}{path}", "*", "a", "/é"),
            *(path + "?" + "a=b&" * 2000, path + "#x", path + ";x", path + "%2f", "/\udc80"),
            *("/v2/models/%00/infer", "/v2/models/" + "a" * 3000 + "/infer", "/docs", "/metrics"),
        )
    )
    method = draw.choice(("POST", "GET", "HEAD", "OPTIONS"))
    data = request(found, body if method == "POST" else b"", {}, method)
    return Attack("path", data, whole=False)


def half(draw: Draw, path: str, body: bytes) -> Attack:
    """Send a part, and go."""
    data = request(path, body, {})
    return Attack("half", data[: draw.randrange(1, len(data))], whole=False)


def binary(draw: Draw, path: str, body: bytes) -> Attack:
    """Speak another language."""
    data = draw.choice(
        (
            draw.randbytes(draw.choice((1, 50, 4000))),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(500),  # TLS
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + draw.randbytes(30),
            b"\r\n" * 1000,
            b"\x00" * 70_000,
            b"A" * 200_000,
        )
    )
    return Attack("binary", data, whole=False)


def pipelined(draw: Draw, path: str, body: bytes) -> Attack:
    """Ask several times without waiting."""
    one = request(path, body, {})
    return Attack("pipelined", one * draw.choice((2, 5)), whole=True)


def foreign(draw: Draw, path: str, body: bytes) -> Attack:
    """Send tensors whose header lies about its length, as the protocol of KServe has them."""
    length = draw.choice(("0", "-1", "5", str(len(body)), str(len(body) + 9), "x", str(2**70)))
    tail = draw.randbytes(draw.choice((0, 8, 100)))
    headers = {
        "inference-header-content-length": length,
        "content-type": "application/octet-stream",
    }
    target = draw.choice((path, "/v2/models/m/infer"))
    return Attack("tensors", request(target, body + tail, headers), whole=True)


def large(draw: Draw, path: str, body: bytes) -> Attack:
    """Say that very much comes."""
    length = draw.choice((40 << 20, 1 << 40))
    return Attack("large", request(path, body, {}, length=str(length)), whole=False)


WILD: tuple[Callable[[Draw, str, bytes], Attack], ...] = (
    *(wrong_length, two_lengths, chunks, flood, odd_header, odd_start, odd_path, half, binary),
    *(pipelined, foreign, large),
)
