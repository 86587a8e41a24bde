"""TEI's requests on tokens: of a text, and back to text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import inputs
from m3rt.server.http.replies import Reply, dumps, json_reply
from m3rt.server.http.routes import Call, Route
from m3rt.server.http.tei_forms import refuse_prompt, shape
from m3rt.server.service import Service
from m3rt.tokenizer import Pieces

CHARACTERS = 250  # of a text, for each token that the model takes: TEI's limit
STEP = 4096  # tokens whose objects are held at once


class TokenizeRequest(msgspec.Struct):
    """Texts whose tokens are wanted."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class TokenReply(msgspec.Struct):
    """A token: its place in bytes of UTF-8, which an added special token has not."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class DecodeRequest(msgspec.Struct):
    """Ids of one text, or of several."""

    ids: list[int | list[int]]
    skip_special_tokens: bool = True


async def tokenize(call: Call) -> Reply:
    """Tell the tokens of texts, uncut: start and stop are bytes of UTF-8, as in TEI."""
    body: TokenizeRequest = call.body
    refuse_prompt(body.prompt_name)
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    most = call.service.settings.max_client_batch_size
    if len(texts) > most:
        raise inputs.too_many(len(texts), most, "inputs")
    if not texts or "" in texts:
        raise inputs.empty("inputs")
    limit = CHARACTERS * call.service.model.max_length
    if (longest := max(map(len, texts))) > limit:
        raise RefusedError(
            Kind.TOO_LONG, f"`inputs` must have less than {limit} characters. Given: {longest}"
        )
    return await call.service.off(tokens, call.service, texts, body.add_special_tokens)


def tokens(service: Service, texts: Sequence[str], special: bool) -> Reply:
    """Write the tokens of texts.

    Raises:
        RefusedError: there are more than a request may have.
    """
    rows: list[bytes] = []
    count, most = 0, service.settings.max_request_tokens
    for text, found in zip(texts, service.model.tokenizer.located(texts, special), strict=True):
        count += len(found.ids)
        if count > most:
            raise RefusedError(
                Kind.TOO_LARGE, f"`inputs` has over {most} tokens, which are the most of a request"
            )
        items = placed(text, found)
        steps = iter(lambda items=items: list(islice(items, STEP)), [])  # type: ignore[misc]
        rows.append(b"[" + b",".join(dumps(step)[1:-1] for step in steps) + b"]")
    return Reply(b"[" + b",".join(rows) + b"]")


def placed(text: str, found: Pieces) -> Iterator[dict[str, Any]]:
    """Give the tokens of a text; one of the text is told by its part of it, not its entry."""
    bytes_before = None if text.isascii() else byte_places(text)
    for token, entry, added, (start, stop) in zip(
        found.ids, found.entries, found.added, found.spans, strict=True
    ):
        item: dict[str, Any] = {"id": token, "text": entry, "special": bool(added)}
        if added:
            item |= {"start": None, "stop": None}
        else:
            item["text"] = text[start:stop]
            if bytes_before is not None:
                start, stop = bytes_before[start], bytes_before[stop]
            item |= {"start": int(start), "stop": int(stop)}
        yield item


def byte_places(text: str) -> list[int]:
    """Return how many bytes of UTF-8 stand before each character, and before the end."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    places: list[int] = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    return places


async def decode(call: Call) -> Reply:
    """Tell the texts of token ids."""
    body: DecodeRequest = call.body
    return await call.service.off(decoded, call.service, body)


def decoded(service: Service, body: DecodeRequest) -> Reply:
    """Write the texts of ids.

    Raises:
        RefusedError: no ids, ids that no token has, or too many texts.
    """
    single = bool(body.ids) and isinstance(body.ids[0], int)
    rows: Sequence[object] = [body.ids] if single else body.ids
    most = service.settings.max_client_batch_size
    if len(rows) > most:
        raise inputs.too_many(len(rows), most, "ids")
    if not rows:
        raise inputs.empty("ids")
    texts = [inputs.ids(service, row, "ids") for row in rows]
    decode = service.model.tokenizer.decode
    return json_reply([decode(text, body.skip_special_tokens) for text in texts])


ROUTES = (
    Route("POST", "/tokenize", tokenize, shape, TokenizeRequest, list[list[TokenReply]]),
    Route("POST", "/decode", decode, shape, DecodeRequest, list[str]),
)
