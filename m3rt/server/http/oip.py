"""The Open Inference Protocol, version 2, as KServe and Triton speak it, with binary tensors.

GET  /v2                                the server
GET  /v2/health/live, /v2/health/ready  200, or 400
GET  /v2/models/MODEL                   its tensors
GET  /v2/models/MODEL/ready             200, or 400
POST /v2/models/MODEL/infer             texts to tensors

After MODEL may come ``/versions/1``. Binary tensors, which Triton's clients send unless told
otherwise, follow the JSON in one body; a header says where it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import m3rt
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import exchange, tensors
from m3rt.server.http import oip_forms as forms
from m3rt.server.http.native import retry_headers
from m3rt.server.http.oip_forms import Found
from m3rt.server.http.replies import Reply, dumps, json_reply
from m3rt.server.http.routes import Call, Route
from m3rt.server.work import Answer, Ask, Sender

BINARY = "application/octet-stream"

STATUS: Mapping[Kind, int] = {
    Kind.MALFORMED: 400,
    Kind.INVALID: 400,
    Kind.EMPTY: 400,
    Kind.TOO_LONG: 400,
    Kind.TOO_MANY: 400,
    Kind.TOO_LARGE: 413,
    Kind.TOO_SLOW: 408,
    Kind.UNAUTHORISED: 401,
    Kind.NOT_FOUND: 404,
    Kind.NOT_ALLOWED: 405,
    Kind.UNACCEPTABLE: 406,
    Kind.UNSUPPORTED: 501,
    Kind.OVERLOADED: 429,
    Kind.EXPIRED: 503,
    Kind.NOT_READY: 503,
    Kind.FAILED: 500,
    Kind.TOKENIZER: 400,
}


def shape(refusal: RefusedError) -> Reply:
    """Tell of what went wrong: ``{"error": message}``."""
    message = "Request timeout expired" if refusal.kind == Kind.EXPIRED else str(refusal)
    return json_reply({"error": message}, STATUS[refusal.kind], retry_headers(refusal))


async def server(call: Call) -> Reply:
    """Name the server, its version and the extensions of the protocol that it has."""
    found = {"name": "m3rt", "version": m3rt.__version__, "extensions": tensors.EXTENSIONS}
    return json_reply(found)


async def live(call: Call) -> Reply:
    """Tell whether the server lives: 200, or 400."""
    return json_reply({"live": call.service.live}, 200 if call.service.live else 400)


async def ready(call: Call) -> Reply:
    """Tell whether requests are answered: 200, or 400."""
    return json_reply({"ready": call.service.ready}, 200 if call.service.ready else 400)


async def model(call: Call) -> Reply:
    """Describe the model's tensors."""
    name = _model(call)
    outputs = [
        {"name": one.name, "datatype": one.datatype, "shape": one.shape}
        for one in tensors.known(call.service.model).values()
    ]
    return json_reply(
        {
            "name": name,
            "versions": [tensors.VERSION],
            "platform": tensors.PLATFORM,
            "inputs": [{"name": tensors.INPUT, "datatype": "BYTES", "shape": [-1]}],
            "outputs": outputs,
        }
    )


async def model_ready(call: Call) -> Reply:
    """Tell whether the model's requests are answered: 200, or 400."""
    found = {"name": _model(call), "ready": call.service.ready}
    return json_reply(found, 200 if call.service.ready else 400)


async def infer(call: Call) -> Reply:
    """Embed texts: dense, sparse and ColBERT vectors from one pass."""
    name = _model(call)
    service, raw = call.service, call.body
    if encoding := call.headers.get("content-encoding", "").strip().lower():
        raw = await service.off(forms.inflated, raw, encoding, service.settings.max_body_bytes)
    end = forms.header(call.headers, len(raw))
    body: forms.InferRequest = await exchange.decode(service, raw[:end], forms.InferRequest)

    def understand() -> tuple[Found, Ask, Sender, list[str]]:
        found = forms.asked_of(body, memoryview(raw)[end:], name)
        return found, *tensors.understood(service, found.asked, call.sender)

    small = len(raw) <= exchange.SMALL
    found, ask, sender, outputs = understand() if small else await service.off(understand)
    answer = await service.embed(ask, sender)
    return await service.finish(answer, written, found, outputs, answer)


def _model(call: Call) -> str:
    name, version = call.params["model"], call.params.get("version", "")
    tensors.check_model(call.service, name, version)
    return name


def written(found: Found, outputs: list[str], answer: Answer) -> Reply:
    """Write an answer: JSON, and binary tensors after it."""
    described: list[dict[str, Any]] = []
    blobs: list[memoryview] = []
    for name in outputs:
        binary = found.is_binary(name)
        made = tensors.array(name, answer.embeddings, half=binary)
        one: dict[str, Any] = {
            "name": name,
            "datatype": tensors.datatype(made),
            "shape": made.shape,
        }
        if binary:
            one["parameters"] = {"binary_data_size": made.nbytes}
            if made.nbytes:  # a view of nothing cannot be cast
                blobs.append(made.reshape(-1).view("u1").data)
        else:
            one["data"] = made.reshape(-1)
        described.append(one)
    content: dict[str, Any] = {
        "model_name": found.asked.model,
        "model_version": tensors.VERSION,
        "outputs": described,
    }
    if found.id:
        content["id"] = found.id
    head = dumps(content)
    if not any(map(found.is_binary, outputs)):
        return Reply(head)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return Reply(b"".join((head, *blobs)), 200, BINARY, headers)


MODEL = "/v2/models/{model}"


def _both(method: str, end: str, handler: Any, reply: Any, **more: Any) -> tuple[Route, ...]:
    """Return the routes of a model, with and without its version."""
    return tuple(
        Route(method, MODEL + version + end, handler, shape, reply=reply, slashes=True, **more)
        for version in ("/versions/{version}", "")
    )


ROUTES = (
    Route("GET", "/v2", server, shape, reply=forms.ServerReply, observed=False),
    Route("GET", "/v2/health/live", live, shape, reply=forms.LiveReply, open=True, observed=False),
    Route(
        "GET", "/v2/health/ready", ready, shape, reply=forms.ReadyReply, open=True, observed=False
    ),
    *_both(
        *("POST", "/infer", infer, forms.InferReply),
        body=bytes,
        form=forms.InferRequest,
        media=(BINARY,),
    ),
    *_both("GET", "/ready", model_ready, forms.ModelReadyReply, observed=False),
    *_both(
        "GET", "", model, forms.ModelReply, observed=False
    ),  # last: a model's name may have slashes
)
