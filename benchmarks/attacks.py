"""Requests that no honest client sends: each is made from a seed and a number, and so again.

Some are JSON that is not what a route wants, some are HTTP that is none.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

Draw = random.Random
LONE = "\ud800"
HUGE = 10**400
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, -(2**63), 2**64, HUGE, -HUGE, 0.5, -0.0, 1e308, 1e-320),
    *(
        "",
        " ",
        "\x00",
        "a\x00b",
        LONE,
        f"a{LONE}b",
        "\udfff\ud800",
        "\ufeff",
        "\u202e",
        "\U0010ffff",
    ),
    *("null", "../../etc/passwd", "%s%n{}{0}", "<script>", "NaN", "-1", "1e999", "right", "dense"),
    *([], {}, [[]], [{}], [None], [""], ["", 1], [[1, 2], [3]], [[[["a"]]]], {"": ""}, {"a": {}}),
    *([0, 1, 2], [-1], [2**40], [1.5], [250_001, 250_002, 10**9], ["dense"] * 50, ["a"] * 300),
)


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


# JSON


def of_json(draw: Draw, body: Any) -> tuple[str, bytes, dict[str, str]]:
    """Change a valid body, once or twice; return what was done, the bytes, and headers."""
    changed = copy.deepcopy(body)
    names = []
    for _ in range(draw.choice((1, 1, 2))):
        change = draw.choice(CHANGES)
        changed = change(draw, changed)
        names.append(change.__name__)
    text = json.dumps(changed, ensure_ascii=draw.random() < 0.5, allow_nan=True)
    data = text.encode("utf-8", "surrogatepass")
    if draw.random() < 0.3:
        spoil = draw.choice(SPOILS)
        data = spoil(draw, data)
        names.append(spoil.__name__)
    encoding = {}
    if draw.random() < 0.03:
        encoding = {"content-encoding": draw.choice(("gzip", "br", "identity", "x"))}
    return "+".join(names), data, encoding


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every part of a value."""
    found = [path]
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Put something else in a place."""
    if not path:
        return new
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = new
    return value


def replaced(draw: Draw, value: Any) -> Any:
    """Put a hostile value somewhere."""
    return put(value, draw.choice(places(value)), copy.deepcopy(draw.choice(VALUES)))


def removed(draw: Draw, value: Any) -> Any:
    """Leave a key out."""
    if isinstance(value, dict) and value:
        value.pop(draw.choice(sorted(value)))
    return value


def added(draw: Draw, value: Any) -> Any:
    """Add a key that nobody knows, or that is another surface's."""
    if isinstance(value, dict):
        names = ("", "x", "__class__", "model", "input", "inputs", "priority", "timeout", LONE)
        value[draw.choice(names)] = copy.deepcopy(draw.choice(VALUES))
    return value


def wrapped(draw: Draw, value: Any) -> Any:
    """Nest a part in lists or objects."""
    path = draw.choice(places(value))
    part: Any = draw.choice(("a", 1, None))
    for _ in range(draw.choice((1, 2, 50, 300))):
        part = [part] if draw.random() < 0.5 else {"a": part}
    return put(value, path, part)


def long_text(draw: Draw, value: Any) -> Any:
    """Put a long text somewhere."""
    piece = draw.choice(("a", " ", "\x00", "é", "東", "🙂", "a ", "\n", "\u0300", LONE))
    return put(value, draw.choice(places(value)), piece * draw.choice((1000, 20_000)))


def many(draw: Draw, value: Any) -> Any:
    """Put many things somewhere."""
    thing: Any = draw.choice(("", "a", None, 1, [], LONE))
    return put(value, draw.choice(places(value)), [thing] * draw.choice((100, 3000)))


CHANGES: tuple[Callable[[Draw, Any], Any], ...] = (
    *(replaced, replaced, replaced, removed, added, wrapped, long_text, many),
)


def cut(draw: Draw, data: bytes) -> bytes:
    """End early."""
    return data[: draw.randrange(len(data) + 1)]


def flipped(draw: Draw, data: bytes) -> bytes:
    """Change some bytes."""
    spoilt = bytearray(data)
    for _ in range(min(len(spoilt), draw.choice((1, 3, 20)))):
        spoilt[draw.randrange(len(spoilt))] = draw.randrange(256)
    return bytes(spoilt)


def deep(draw: Draw, data: bytes) -> bytes:
    """Nest until it hurts."""
    depth = draw.choice((1000, 100_000))
    opening, closing = draw.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"inputs":[', b"]}")))
    return opening * depth + (b"1" + closing * depth if draw.random() < 0.5 else b"")


def odd_number(draw: Draw, data: bytes) -> bytes:
    """Write a number that JSON has not, or that nobody can hold."""
    numbers = (b"1e999999999", b"-1e400", b"NaN", b"-Infinity", b"0x10", b"01", b"1.", b"9" * 5000)
    return data.replace(b": ", b": " + draw.choice(numbers) + b", ", 1)


def odd_encoding(draw: Draw, data: bytes) -> bytes:
    """Write it in what is not UTF-8."""
    text = data.decode("utf-8", "replace")
    return draw.choice(
        (
            text.encode("utf-16"),
            text.encode("utf-32"),
            b"\xef\xbb\xbf" + data,
            data.replace(b"a", b"\xff\xfe"),
            data.replace(b"a", b"\xed\xa0\x80"),
            data.replace(b"a", b"\\ud800"),
            data.replace(b"a", b"\\u0000"),
        )
    )


def more(draw: Draw, data: bytes) -> bytes:
    """Go on after the end."""
    return data + draw.choice((b"x", data, b"\x00", b"]", b" " * 10_000, b"\n{}"))


def twice(draw: Draw, data: bytes) -> bytes:
    """Give keys a second time."""
    return data[:-1] + b"," + data[1:] if data.startswith(b"{") else data


def junk(draw: Draw, data: bytes) -> bytes:
    """Write anything."""
    return draw.randbytes(draw.choice((0, 1, 100, 5000)))


SPOILS = (cut, flipped, deep, odd_number, odd_encoding, more, twice, junk)


# HTTP


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
