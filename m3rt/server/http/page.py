"""The playground: a page that shows the scores of passages, and why they are what they are.

GET /              the page
GET /page/{name}   its parts: styles, scripts, the icon
GET /v1/m3/info    what the page, or anyone, has to know of the model
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import PurePath

import msgspec

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http.native import shape
from m3rt.server.http.replies import Reply, json_reply
from m3rt.server.http.routes import Call, Route
from m3rt.types import Heads

MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, and no text that becomes markup.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # asked for anew by its ETag, so that a new version shows at once
}


class Info(msgspec.Struct):
    """The model that is served.

    ``engine`` is its engine and precision, ``max_length`` the most tokens that are read of a text,
    ``weights`` those of the combined score of a request that gives none, by head.
    """

    model: str
    engine: str
    heads: list[str]
    max_length: int
    weights: dict[str, float]


def read() -> dict[str, Reply]:
    """Return the files of the page by name, ready to send."""
    folder = resources.files("m3rt.server") / "page"
    found = {}
    for file in folder.iterdir():
        body = file.read_bytes()
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        media = MEDIA[PurePath(file.name).suffix]
        found[file.name] = Reply(body, 200, media, {**HEADERS, "etag": tag})
    return found


FILES = read()


async def index(call: Call) -> Reply:
    """Show the playground."""
    return known(FILES["index.html"], call)


async def part(call: Call) -> Reply:
    """Return a part of the playground.

    Raises:
        RefusedError: there is none of that name.
    """
    if (file := FILES.get(call.params["name"])) is None:
        raise RefusedError(Kind.NOT_FOUND, "the page has no such part", param="name")
    return known(file, call)


def known(file: Reply, call: Call) -> Reply:
    """Return a file, without its bytes to a browser that has them."""
    tags = call.headers.get("if-none-match", "").replace("W/", "").split(",")
    if file.headers["etag"] in map(str.strip, tags):
        return Reply(b"", 304, file.media, file.headers)
    return file


async def info(call: Call) -> Reply:
    """Tell of the model that is served, and of what a request gets that does not say."""
    service = call.service
    return json_reply(
        {
            "model": service.name,
            "engine": service.model.engine.name,
            "heads": service.model.heads.names,
            "max_length": service.model.max_length,
            "weights": dict(zip(Heads.ALL.names, service.settings.weights, strict=True)),
        }
    )


ROUTES = (
    Route("GET", "/", index, shape, media=("text/html",), open=True, observed=False),
    Route(
        "GET",
        "/page/{name}",
        part,
        shape,
        media=("text/css", "text/javascript", "image/svg+xml"),
        open=True,
        observed=False,
    ),
    Route("GET", "/v1/m3/info", info, shape, reply=Info, observed=False),
)
