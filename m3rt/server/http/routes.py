"""What answers which request."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http.replies import Reply
from m3rt.server.service import Service
from m3rt.server.work import Sender

Shape = Callable[[RefusedError], Reply]  # how a protocol tells of what went wrong


@dataclass(slots=True)
class Call:
    """One request, read and understood, and what it may use."""

    service: Service
    body: Any  # an instance of Route.body; bytes where that is bytes
    headers: Mapping[str, str]  # names in lower case
    params: Mapping[str, str]  # of the path
    sender: Sender
    started: float  # time.perf_counter when its headers were there
    shape: Shape | None = None  # where one path takes requests of two protocols: its own


Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    Args:
        method: GET or POST.
        path: with ``{name}`` for a part that varies.
        handler: its docstring is the summary in the documents.
        shape: how it tells of what went wrong.
        body: what JSON is decoded into, a msgspec type; None reads no body, bytes all of it as
            it is.
        reply: a msgspec type that documents the answer, or a tuple of what it may be; answers are
            never made through it.
        media: of the answer, besides JSON; without a reply, instead of JSON.
        open: answered without an API key.
        observed: counted as inference in the metrics.
        form: documents the body where it is bytes: a msgspec type, or a tuple of them.
        shapes: further ways it tells of what went wrong, for the documents.
        kinds: what it may be refused for besides what any such route is, for the documents.
        example: a body, for the documents.
        slashes: the first variable part of the path may hold some, as a hub id does. Such a route
            comes after those whose paths continue its own.
    """

    method: str
    path: str
    handler: Handler
    shape: Shape
    body: Any = None
    reply: Any = None
    media: tuple[str, ...] = ()
    open: bool = False
    observed: bool = True
    form: Any = None
    shapes: tuple[Shape, ...] = ()
    kinds: tuple[Kind, ...] = ()
    example: Any = None
    slashes: bool = False


class Table:
    """Finds the route of a request: paths without variable parts by one look."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, Route]]] = []
        by_path: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            methods = by_path.setdefault(route.path, {})
            if route.method in methods:
                raise ValueError(f"two routes answer {route.method} {route.path}")
            methods[route.method] = route
        for path, methods in by_path.items():
            if "{" in path:
                slashes = any(route.slashes for route in methods.values())
                self._patterns.append((pattern(path, slashes), methods))
            else:
                self._exact[path] = methods

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Return the route and the variable parts of the path.

        Raises:
            RefusedError: there is no such path, or no such method.
        """
        params: Mapping[str, str] = {}
        methods = self._exact.get(path)
        if methods is None:
            for compiled, candidates in self._patterns:
                if match := compiled.fullmatch(path):
                    methods, params = candidates, match.groupdict()
                    break
            else:
                raise RefusedError(Kind.NOT_FOUND, f"there is no {path}; /docs tells what there is")
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = ", ".join(sorted(methods))
            raise RefusedError(Kind.NOT_ALLOWED, f"{path} answers {allowed}, not {method}")
        return route, params


def pattern(path: str, slashes: bool = False) -> re.Pattern[str]:
    """Compile a path with ``{name}`` for parts that vary, slashes excluded but in the first."""
    parts = re.split(r"\{(\w+)\}", path)
    parts[1::2] = [f"(?P<{name}>[^/]+)" for name in parts[1::2]]
    parts[::2] = map(re.escape, parts[::2])
    if slashes:
        parts[1] = parts[1].replace("[^/]+", ".+?")
    return re.compile("".join(parts))
