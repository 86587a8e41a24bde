"""vLLM's pooling requests, for clients written for its servers.

POST /pooling   one output of each text: dense, ColBERT or lexical; or dense and lexical at once

REFERENCE: vllm-project/vllm, vllm/entrypoints/pooling, and tests/plugins/bge_m3_sparse_plugin.
Without a task the answer is ColBERT vectors. Where it sees a difference: lexical weights are
FlagEmbedding's, so <unk> has none, those of 0 are left out of the plugin's answer, and a token
that comes twice has its greatest weight in each place.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import native
from m3rt.server.http.native import Usage, used
from m3rt.server.http.replies import Reply, dumps, json_reply
from m3rt.server.http.routes import Call, Route
from m3rt.server.service import Service
from m3rt.server.work import Answer, Ask, Cut, Input, Lane, Sender
from m3rt.types import Heads

BYTES = "application/octet-stream"
MOST_METADATA = 60_000  # bytes of a header: many clients read no line of over 64 KiB

STATUS: Mapping[Kind, tuple[int, str]] = {
    Kind.MALFORMED: (400, "Bad Request"),
    Kind.INVALID: (400, "BadRequestError"),
    Kind.EMPTY: (400, "BadRequestError"),
    Kind.TOO_LONG: (400, "BadRequestError"),
    Kind.TOO_MANY: (400, "BadRequestError"),
    Kind.TOO_LARGE: (413, "Request Entity Too Large"),
    Kind.TOO_SLOW: (408, "Request Timeout"),
    Kind.UNAUTHORISED: (401, "Unauthorized"),
    Kind.NOT_FOUND: (404, "NotFoundError"),
    Kind.NOT_ALLOWED: (405, "Method Not Allowed"),
    Kind.UNACCEPTABLE: (406, "Not Acceptable"),
    Kind.UNSUPPORTED: (400, "BadRequestError"),
    Kind.OVERLOADED: (429, "Too Many Requests"),
    Kind.EXPIRED: (504, "Gateway Timeout"),
    Kind.NOT_READY: (503, "Service Unavailable"),
    Kind.FAILED: (500, "InternalServerError"),
    Kind.TOKENIZER: (400, "BadRequestError"),
}


def shape(refusal: RefusedError) -> Reply:
    """Tell of what went wrong: ``{"error": {"message", "type", "param", "code"}}``."""
    status, name = STATUS[refusal.kind]
    error = {"message": str(refusal), "type": name, "param": refusal.param, "code": status}
    return json_reply({"error": error}, status, native.retry_headers(refusal))


TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
# a text, texts, the token ids of a text, or those of several
Inputs = str | list[str | TokenId | list[TokenId]]


class Plugin(msgspec.Struct):
    """Texts whose dense and lexical outputs are wanted in one answer."""

    input: Inputs
    embed_task: Literal["dense", "sparse", "dense&sparse"] = "dense&sparse"
    return_tokens: bool | None = None
    add_special_tokens: bool = True


class PoolingRequest(msgspec.Struct):
    """Texts, and the output wanted of them: ``input``, or ``data`` for the task plugin.

    ``truncate_prompt_tokens`` is how many tokens of a text are kept, -1 for as many as the model
    takes; ``priority`` above 0 is bulk. ``dimensions`` can only be the model's own, and
    ``use_activation`` only true: vectors are unit vectors, weights are not negative.
    ``messages`` are refused, as the model has no chat template. Other fields are not read.
    """

    input: Inputs | None = None
    data: Plugin | None = None
    messages: Any = None
    task: Literal["embed", "token_embed", "token_classify", "plugin"] | None = None
    model: str | None = None
    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] = "float"
    embed_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    endianness: Literal["native", "little", "big"] = "native"
    dimensions: int | None = None
    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool = True
    use_activation: bool | None = None
    priority: int = 0
    request_id: Annotated[str, msgspec.Meta(max_length=256)] | None = None


class Pooled(msgspec.Struct):
    """The output of one text: a vector, vectors, weights, or base64 of their numbers."""

    index: int
    object: Literal["pooling"]
    data: list[float | list[float]] | str


class PoolingReply(msgspec.Struct):
    """Outputs, in the order of the texts.

    embed has a vector of a text, token_embed a vector for each token but the first, and
    token_classify a weight for each token but the first and the last.
    """

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Pooled]
    usage: Usage


class TokenWeight(msgspec.Struct):
    """The lexical weight of a token; its name if it was asked for."""

    token_id: int
    weight: float
    token: str | None


class BothPooled(msgspec.Struct):
    """Dense and lexical outputs of one text; null where not asked for."""

    index: int
    object: Literal["dense", "sparse", "dense&sparse"]
    sparse_embedding: list[TokenWeight] | None
    dense_embedding: list[float] | None


class PluginData(msgspec.Struct):
    """Outputs of all texts."""

    data: list[BothPooled]
    usage: Usage


class PluginReply(msgspec.Struct):
    """The answer to the task plugin."""

    request_id: str
    created_at: int
    data: PluginData


HEADS = {"embed": Heads.DENSE, "token_embed": Heads.COLBERT, "token_classify": Heads.SPARSE}
PLUGIN_HEADS = {
    "dense": Heads.DENSE,
    "sparse": Heads.SPARSE,
    "dense&sparse": Heads.DENSE | Heads.SPARSE,
}


async def pooling(call: Call) -> Reply:
    """Embed texts as vLLM's /pooling does; ColBERT vectors, where no task is given."""
    body: PoolingRequest = call.body
    task = body.task or ("token_embed" if body.data is None else "plugin")
    found = body.data.input if task == "plugin" and body.data is not None else body.input
    if body.messages is not None:
        raise RefusedError(
            Kind.UNSUPPORTED,
            "this model has no chat template: pass texts in input, not messages",
            param="messages",
        )
    if found is None or (task == "plugin" and body.data is None):
        param = "data" if task == "plugin" else "input"
        raise RefusedError(Kind.MALFORMED, f"there is no {param}", param=param)
    specials = body.add_special_tokens and (body.data is None or body.data.add_special_tokens)
    check_model(call.service, body, task, specials)
    heads = PLUGIN_HEADS[body.data.embed_task] if task == "plugin" and body.data else HEADS[task]
    ask = Ask(
        inputs_of(found),
        heads,
        kept(body.truncate_prompt_tokens),
        cut_of(body.truncate_prompt_tokens, body.truncation_side, call.service),
        bytes_per_number=12.0 if body.encoding_format == "float" else 4 * 4 / 3,
    )
    answer = await call.service.embed(ask, prioritised(call.sender, body.priority))
    request_id = body.request_id or call.sender.request_id
    write = written_plugin if task == "plugin" else written
    return await call.service.off(write, body, answer, call.service, request_id)


def inputs_of(found: Inputs, param: str = "input") -> list[Input]:
    """Return texts and token ids as a list of either.

    Raises:
        RefusedError: there are none, or ids stand beside texts.
    """
    if isinstance(found, str):
        return [found]
    if not found:
        raise RefusedError(Kind.EMPTY, f"{param} is empty, expected at least one text", param=param)
    numbers = [item for item in found if isinstance(item, int)]
    if len(numbers) == len(found):
        return [numbers]
    if numbers:
        raise RefusedError(
            Kind.MALFORMED,
            f"{param} has numbers beside texts or lists: expected the ids of one text, or a list "
            "for each text",
            param=param,
        )
    return [item for item in found if not isinstance(item, int)]


def check_model(service: Service, body: PoolingRequest, task: str, specials: bool) -> None:
    """Refuse what this model cannot do.

    Raises:
        RefusedError: says what it is.
    """
    manifest = service.model.manifest
    width = manifest.colbert_dim if task == "token_embed" else manifest.hidden
    refused = None
    if body.dimensions not in (None, width):
        refused = "dimensions", f"is {body.dimensions}, and the model has {width}, not fewer"
    elif not specials:
        refused = "add_special_tokens", "is false, and this model's vectors need those tokens"
    elif body.use_activation is False:
        refused = "use_activation", "is false, and this model's outputs are there only with it"
    elif task == "plugin" and body.encoding_format != "float":
        refused = "encoding_format", "must be float with the task plugin"
    if refused:
        raise RefusedError(Kind.INVALID, " ".join(refused), param=refused[0])


def kept(tokens: int | None) -> int | None:
    """Return max_length for ``truncate_prompt_tokens``, of which -1 is what the model takes."""
    return None if tokens == -1 else tokens


def cut_of(tokens: int | None, side: str | None, service: Service) -> Cut:
    """Return how to cut: not at all where the request does not say and the server does not."""
    if tokens is None and not service.settings.auto_truncate:
        return Cut.NONE
    return Cut.LEFT if side == "left" else Cut.RIGHT


def prioritised(sender: Sender, priority: int) -> Sender:
    """Return the sender with the lane of ``priority``, of which lower ones come first."""
    if priority == 0:
        return sender
    return replace(sender, lane=Lane.BULK if priority > 0 else Lane.INTERACTIVE)


def rows_of(answer: Answer, service: Service) -> list[NDArray[np.float32]]:
    """Return the output of each text: (h,), (t_i - 1, d) or (t_i - 2,)."""
    found = answer.embeddings
    if found.dense is not None:
        return list(found.dense)
    if found.colbert is not None:
        return found.colbert
    rows = []
    for row in range(len(found)):
        _, weights = native.pieces(answer, row, service.model)
        assert weights is not None
        rows.append(weights[1:-1])
    return rows


def written(body: PoolingRequest, answer: Answer, service: Service, request_id: str) -> Reply:
    """Write outputs in one of the four encodings.

    Raises:
        RefusedError: where they are in a header, they are more than fits.
    """
    rows = rows_of(answer, service)
    content: dict[str, Any] = {
        "id": f"pool-{request_id}",
        "object": "list",
        "created": int(time.time()),
        "model": service.name,
    }
    if body.encoding_format in ("bytes", "bytes_only"):
        parts = [encoded(row, body.embed_dtype, body.endianness) for row in rows]
        if body.encoding_format == "bytes_only":
            return Reply(b"".join(parts), media=BYTES)
        del content["object"]
        content["data"] = placed(parts, rows, body)
        content["usage"] = used(answer)
        metadata = json.dumps(content)
        if len(metadata) > MOST_METADATA:
            raise RefusedError(
                Kind.TOO_LARGE,
                f"the header metadata would have {len(metadata)} bytes for {len(rows)} texts, over "
                f"{MOST_METADATA}: send fewer texts, or take base64",
                param="encoding_format",
            )
        return Reply(b"".join(parts), media=BYTES, headers={"metadata": metadata})
    items: Sequence[Any] = rows
    if body.encoding_format == "base64":
        items = [
            base64.b64encode(encoded(row, body.embed_dtype, body.endianness)).decode()
            for row in rows
        ]
    content["data"] = [
        {"index": i, "object": "pooling", "data": item} for i, item in enumerate(items)
    ]
    content["usage"] = used(answer)
    return Reply(dumps(content))


def placed(
    parts: Sequence[bytes], rows: Sequence[NDArray[np.float32]], body: PoolingRequest
) -> list[dict[str, Any]]:
    """Return where each output is in the body."""
    items, end = [], 0
    for index, (part, row) in enumerate(zip(parts, rows, strict=True)):
        start, end = end, end + len(part)
        item = {"index": index, "embed_dtype": body.embed_dtype, "endianness": body.endianness}
        items.append({**item, "start": start, "end": end, "shape": row.shape})
    return items


def encoded(values: NDArray[np.float32], dtype: str, endianness: str) -> bytes:
    """Return the numbers' bytes; bfloat16 is rounded to nearest, ties to even."""
    numbers: NDArray[Any] = np.ascontiguousarray(values)
    if dtype == "bfloat16":
        bits = numbers.view(np.uint32)
        numbers = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    elif dtype == "float16":
        numbers = numbers.astype(np.float16)
    if endianness not in ("native", sys.byteorder):
        numbers = numbers.byteswap()
    return numbers.tobytes()


def written_plugin(
    body: PoolingRequest, answer: Answer, service: Service, request_id: str
) -> Reply:
    """Write dense and lexical outputs as vLLM's plugin for M3 does."""
    assert body.data is not None
    found = answer.embeddings
    data: list[dict[str, Any]] = []
    for row in range(len(found)):
        entries = None
        if found.sparse is not None:
            ids = found.sparse.ids[row].tolist()
            names = [
                service.model.tokenizer.piece(i) if body.data.return_tokens else None for i in ids
            ]
            columns = zip(ids, found.sparse.weights[row], names, strict=True)
            entries = [{"token_id": i, "weight": w, "token": name} for i, w, name in columns]
        item = {"index": row, "object": body.data.embed_task, "sparse_embedding": entries}
        item["dense_embedding"] = None if found.dense is None else found.dense[row]
        data.append(item)
    content = {
        "request_id": request_id,
        "created_at": int(time.time()),
        "data": {"data": data, "usage": used(answer)},
    }
    return Reply(dumps(content))


ROUTES = (
    Route(
        "POST",
        "/pooling",
        pooling,
        shape,
        PoolingRequest,
        (PoolingReply, PluginReply),
        media=(BYTES,),
        example={"input": ["what is BGE-M3?"], "task": "token_classify"},
    ),
)
