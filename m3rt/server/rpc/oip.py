"""inference.GRPCInferenceService: the Open Inference Protocol, version 2, as Triton speaks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

import m3rt
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import tensors
from m3rt.server.http.exchange import SMALL
from m3rt.server.http.tensors import Asked, Given
from m3rt.server.rpc import messages
from m3rt.server.rpc.calls import Call, Methods
from m3rt.server.service import Service
from m3rt.server.work import Answer, Ask, Sender

NAME = "inference.GRPCInferenceService"

Status = grpc.StatusCode
CODES: Mapping[Kind, Any] = {
    Kind.MALFORMED: Status.INVALID_ARGUMENT,
    Kind.INVALID: Status.INVALID_ARGUMENT,
    Kind.EMPTY: Status.INVALID_ARGUMENT,
    Kind.TOO_LONG: Status.INVALID_ARGUMENT,
    Kind.TOO_MANY: Status.INVALID_ARGUMENT,
    Kind.TOO_LARGE: Status.INVALID_ARGUMENT,
    Kind.TOO_SLOW: Status.DEADLINE_EXCEEDED,
    Kind.UNAUTHORISED: Status.UNAUTHENTICATED,
    Kind.NOT_FOUND: Status.NOT_FOUND,
    Kind.NOT_ALLOWED: Status.UNIMPLEMENTED,
    Kind.UNACCEPTABLE: Status.INVALID_ARGUMENT,
    Kind.UNSUPPORTED: Status.UNIMPLEMENTED,
    Kind.OVERLOADED: Status.RESOURCE_EXHAUSTED,
    Kind.EXPIRED: Status.DEADLINE_EXCEEDED,
    Kind.NOT_READY: Status.UNAVAILABLE,
    Kind.FAILED: Status.INTERNAL,
    Kind.TOKENIZER: Status.INVALID_ARGUMENT,
}


def handlers(service: Service) -> Any:
    """Return the handlers of the methods."""
    methods = Methods(service, CODES)
    works = {
        "ServerLive": server_live,
        "ServerReady": server_ready,
        "ModelReady": model_ready,
        "ServerMetadata": server_metadata,
        "ModelMetadata": model_metadata,
        "ModelInfer": model_infer,
    }
    return grpc.method_handlers_generic_handler(
        NAME,
        {name: methods.unary(f"inference.{name}Request", work) for name, work in works.items()},
    )


def _reply(method: str, /, **fields: Any) -> bytes:
    written: bytes = messages.kind(f"inference.{method}Response")(**fields).SerializeToString()
    return written


async def server_live(call: Call) -> bytes:
    """Tell whether the server lives."""
    return _reply("ServerLive", live=call.service.live)


async def server_ready(call: Call) -> bytes:
    """Tell whether requests are answered."""
    return _reply("ServerReady", ready=call.service.ready)


async def model_ready(call: Call) -> bytes:
    """Tell whether a model's requests are answered; those of one that is not there are not."""
    try:
        tensors.check_model(call.service, call.request.name, call.request.version)
    except RefusedError:
        return _reply("ModelReady", ready=False)
    return _reply("ModelReady", ready=call.service.ready)


async def server_metadata(call: Call) -> bytes:
    """Name the server, its version and the extensions of the protocol that it has."""
    return _reply(
        "ServerMetadata",
        name="m3rt",
        version=m3rt.__version__,
        extensions=[one for one in tensors.EXTENSIONS if one != "binary_tensor_data"],
    )


async def model_metadata(call: Call) -> bytes:
    """Describe the model's tensors."""
    tensors.check_model(call.service, call.request.name, call.request.version)
    form = messages.kind("inference.ModelMetadataResponse.TensorMetadata")
    return _reply(
        "ModelMetadata",
        name=call.request.name,
        versions=[tensors.VERSION],
        platform=tensors.PLATFORM,
        inputs=[form(name=tensors.INPUT, datatype="BYTES", shape=[-1])],
        outputs=[
            form(name=one.name, datatype=one.datatype, shape=one.shape)
            for one in tensors.known(call.service.model).values()
        ],
    )


async def model_infer(call: Call) -> bytes:
    """Embed texts: dense, sparse and ColBERT vectors from one pass."""
    service, request = call.service, call.request
    tensors.check_model(service, request.model_name, request.model_version)

    def understand() -> tuple[Ask, Sender, list[str]]:
        return tensors.understood(service, _asked(request), call.sender)

    small = request.ByteSize() <= SMALL
    ask, sender, outputs = understand() if small else await service.off(understand)
    answer = await service.embed(ask, sender)
    return await service.finish(answer, written, request, outputs, answer)


def _asked(request: Any) -> Asked:
    """Put the raw contents of a request to its inputs."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        message = (
            f"expected tensor data for {len(request.inputs)} inputs in raw_input_contents, "
            f"got {len(raw)}"
        )
        raise RefusedError(Kind.INVALID, message, param="raw_input_contents")
    inputs = []
    for place, one in enumerate(request.inputs):
        if "shared_memory_region" in one.parameters:
            message = f"tensor '{tensors.clip(one.name)}': shared memory is not supported"
            raise RefusedError(Kind.INVALID, message, param="inputs")
        if raw and one.HasField("contents"):
            message = (
                f"contents and raw_input_contents are both set, for '{tensors.clip(one.name)}'"
            )
            raise RefusedError(Kind.INVALID, message, param="inputs")
        content = memoryview(raw[place]) if raw else one.contents.bytes_contents
        inputs.append(Given(one.name, one.datatype, one.shape, content))
    for output in request.outputs:
        for name in ("shared_memory_region", "classification"):
            if name in output.parameters:
                message = f"output '{tensors.clip(output.name)}': {name} is not supported"
                raise RefusedError(Kind.INVALID, message, param="outputs")
    parameters = {
        name: getattr(value, choice)
        for name, value in request.parameters.items()
        if (choice := value.WhichOneof("parameter_choice"))
    }
    names = [output.name for output in request.outputs]
    return Asked(request.model_name, inputs, names, parameters)


def written(request: Any, outputs: list[str], answer: Answer) -> bytes:
    """Write an answer, with its tensors as raw contents."""
    reply = messages.kind("inference.ModelInferResponse")(
        model_name=request.model_name, model_version=tensors.VERSION, id=request.id
    )
    for name in outputs:
        made = tensors.array(name, answer.embeddings, half=True)
        reply.outputs.add(name=name, datatype=tensors.datatype(made), shape=made.shape)
        reply.raw_output_contents.append(made.tobytes())
    raw: bytes = reply.SerializeToString()
    return raw
