"""Valid JSON, made into what no route wants."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

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
