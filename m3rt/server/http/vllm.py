"""vLLM's pooling requests, for clients written for its servers.

POST /pooling   one output of each text: dense, ColBERT or lexical; or dense and lexical at once

REFERENCE: vllm-project/vllm, vllm/entrypoints/pooling, and tests/plugins/bge_m3_sparse_plugin.
Without a task the answer is ColBERT vectors. Where it sees a difference: lexical weights are
FlagEmbedding's, so <unk> has none, those of 0 are left out of the plugin's answer, and a token
that comes twice has its greatest weight in each place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import native
from m3rt.server.http.pooled import (
    BYTES,
    Inputs,
    PluginReply,
    PoolingReply,
    PoolingRequest,
    written,
    written_plugin,
)
from m3rt.server.http.replies import Reply, json_reply
from m3rt.server.http.routes import Call, Route
from m3rt.server.service import Service
from m3rt.server.work import Ask, Cut, Input, Lane, Sender
from m3rt.types import Heads

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
    param = "truncate_prompt_tokens" if refusal.param == "max_length" else refusal.param
    error = {"message": str(refusal), "type": name, "param": param, "code": status}
    return json_reply({"error": error}, status, native.retry_headers(refusal))


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
        await inputs_of(call.service, found),
        heads,
        kept(body.truncate_prompt_tokens),
        cut_of(body.truncate_prompt_tokens, body.truncation_side, call.service),
        bytes_per_number=12.0 if body.encoding_format == "float" else 4 * 4 / 3,
    )
    answer = await call.service.embed(ask, prioritised(call.sender, body.priority))
    request_id = body.request_id or call.sender.request_id
    write = written_plugin if task == "plugin" else written
    return await call.service.finish(answer, write, body, answer, call.service, request_id)


async def inputs_of(service: Service, found: Inputs) -> Sequence[Input]:
    """Return texts and token ids as a list of either.

    Raises:
        RefusedError: there are none, or too many, or ids that are not the model's.
    """
    if isinstance(found, str):
        return [found]
    if not found:
        raise RefusedError(Kind.EMPTY, "input is empty, expected at least one text", param="input")
    if isinstance(found[0], int):  # the ids of one text; there may be millions
        return await service.off(checked, service, [found])
    native.limit(service, len(found), "input")
    return await service.off(checked, service, found)


def checked(service: Service, found: Sequence[object]) -> list[Input]:
    """Return texts, and token ids that the model has.

    Raises:
        RefusedError: one is of another kind, or no token has one of the ids.
    """
    inputs: list[Input] = []
    vocab = service.model.manifest.vocab
    for item in found:
        if isinstance(item, list) and set(map(type, item)) <= {int}:
            if item and max(item) >= vocab:
                raise RefusedError(
                    Kind.INVALID,
                    f"input has the token id {max(item)}, expected 0 to {vocab - 1}",
                    param="input",
                )
            inputs.append(item)
        elif isinstance(item, str):
            inputs.append(item)
        else:
            raise RefusedError(
                Kind.MALFORMED,
                "input mixes kinds, expected texts, or the ids of a text, or lists of ids",
                param="input",
            )
    return inputs


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
