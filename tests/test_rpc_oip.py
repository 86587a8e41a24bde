"""The Open Inference Protocol over gRPC, by Triton's client, against the direct result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from m3rt import M3, Heads
from m3rt.server.faults import Kind
from m3rt.server.rpc import messages, oip
from m3rt.server.settings import Settings
from m3rt.server.work import Cut, Lane
from tests.called import Called, calling, close, refused
from tests.test_oip import OUTPUTS, expected
from tests.watched import REFUSE, WAIT

TEXTS = ["Grüße aus Köln", "東京は日本の首都です", "the quick brown fox", "a\0b 😀"]
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def called(model: M3, model_dir: Path) -> Iterator[Called]:
    with calling(model, Settings(model_dir, request_timeout=30.0)) as found:
        yield found


def test_the_messages_of_oip_are_tritons() -> None:
    service = messages.POOL.FindServiceByName(oip.NAME)
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    seen: set[str] = set()
    waiting = []
    for method in service.methods:
        other = theirs[method.name]
        waiting += [(method.input_type, other.input_type), (method.output_type, other.output_type)]
    while waiting:
        ours, other = waiting.pop()
        assert ours.full_name == other.full_name
        if ours.full_name in seen:
            continue
        seen.add(ours.full_name)
        fields = {field.name: field for field in other.fields}
        assert fields.keys() == {field.name for field in ours.fields}
        for field in ours.fields:
            mirror = fields[field.name]
            assert (field.number, field.type) == (mirror.number, mirror.type)
            if field.message_type:
                waiting.append((field.message_type, mirror.message_type))
    assert len(seen) > 12


def text(texts: Sequence[str], column: bool = False) -> Any:
    content = np.array([one.encode() for one in texts], np.object_)
    content = content[:, None] if column else content
    tensor = triton.InferInput("TEXT", content.shape, "BYTES")
    return tensor.set_data_from_numpy(content)


def infer(client: Any, texts: Sequence[str], model: str = "tiny", **more: Any) -> Any:
    return client.infer(model, [text(texts)], **more)


@pytest.fixture
def client(called: Called) -> Iterator[Any]:
    with triton.InferenceServerClient(called.address) as found:
        yield found


def test_oip_metadata(called: Called, client: Any) -> None:
    name = called.service.name
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(name, "1")
    assert not client.is_model_ready(name, "2")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata().name == "m3rt"
    found = json_format.MessageToDict(client.get_model_metadata(name))
    assert (found["name"], found["versions"]) == (name, ["1"])
    assert found["inputs"] == [{"name": "TEXT", "datatype": "BYTES", "shape": ["-1"]}]
    assert [one["name"] for one in found["outputs"]] == list(OUTPUTS)


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_oip_outputs_are_the_direct_result(
    client: Any, called: Called, model: M3, column: bool, named: bool
) -> None:
    outputs = [triton.InferRequestedOutput(name) for name in OUTPUTS] if named else None
    found = client.infer(
        called.service.name, [text(TEXTS, column)], outputs=outputs, request_id="an id"
    )
    for name, want in expected(model.encode(TEXTS)).items():
        got = found.as_numpy(name)
        assert got.dtype == (np.float16 if name == "colbert" else f"{want.dtype.kind}4")
        np.testing.assert_allclose(got, want, atol=1e-3 if name == "colbert" else 1e-6)
    head = found.get_response()
    assert (head.model_name, head.model_version, head.id) == (called.service.name, "1", "an id")


def test_oip_contents_that_are_not_raw(called: Called, model: M3) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(called.channel)
    message = service_pb2.ModelInferRequest(model_name=called.service.name)
    tensor = message.inputs.add(name="TEXT", datatype="BYTES", shape=[len(TEXTS), 1])
    tensor.contents.bytes_contents.extend(one.encode() for one in TEXTS)
    message.outputs.add(name="dense")
    found = triton.InferResult(stub.ModelInfer(message))
    close(found.as_numpy("dense"), model.encode(TEXTS).dense)
    assert called.last()[0].heads == Heads.DENSE
    message.raw_input_contents.append(b"")
    assert refused(lambda: stub.ModelInfer(message)).code() == Code.INVALID_ARGUMENT
    del message.raw_input_contents[:]
    tensor.contents.bytes_contents[0] = b"\xff"
    error = refused(lambda: stub.ModelInfer(message))
    assert "element 0 of inference input 'TEXT' is not UTF-8" in error.details()


def test_oip_parameters(called: Called, client: Any) -> None:
    infer(client, ["a"], priority=2, parameters={"max_length": 5, "truncate": "left"})
    ask, sender = called.last()
    assert (sender.lane, ask.max_length, ask.cut) == (Lane.BULK, 5, Cut.LEFT)
    infer(client, ["a"], priority=1, parameters={"truncate": False})
    assert (called.last()[0].cut, called.last()[1].lane) == (Cut.NONE, Lane.INTERACTIVE)
    infer(client, ["a"], timeout=5_000_000)
    assert called.last()[1].deadline < time.monotonic() + 6
    infer(client, ["a"], client_timeout=4.0)
    assert called.last()[1].deadline < time.monotonic() + 5
    with pytest.raises(InferenceServerException) as found:
        infer(client, [WAIT], timeout=50_000)
    assert found.value.status() == str(Code.DEADLINE_EXCEEDED)


def test_oip_requests_at_the_same_time_and_compressed(
    called: Called, client: Any, model: M3
) -> None:
    direct = model.encode(TEXTS).dense
    assert direct is not None
    found: list[Any] = [None] * 12
    done = threading.Semaphore(0)

    def keep(row: int, result: Any, error: Any) -> None:
        found[row] = error or result.as_numpy("dense")
        done.release()

    for row in range(12):
        client.async_infer(
            called.service.name,
            [text([TEXTS[row % 4]])],
            lambda result, error, row=row: keep(row, result, error),
            compression_algorithm=("gzip", "deflate", None)[row % 3],
        )
    for _ in range(12):
        assert done.acquire(timeout=30)
    for row, got in enumerate(found):
        close(got[0], direct[row % 4])


@pytest.mark.parametrize("kind", list(Kind))
def test_every_oip_refusal_has_its_status(called: Called, client: Any, kind: Kind) -> None:
    with pytest.raises(InferenceServerException) as found:
        infer(client, [REFUSE + kind])
    assert found.value.status() == str(oip.CODES[kind])


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda m: setattr(m, "model_name", "nope"), Code.NOT_FOUND, "'nope' is not found"),
        (lambda m: setattr(m, "model_name", "n" * 9999), Code.NOT_FOUND, "nnn...' is not found"),
        (lambda m: setattr(m, "model_version", "2"), Code.NOT_FOUND, "version 2 is not found"),
        (lambda m: m.ClearField("inputs"), None, "expected tensor data for 0 inputs"),
        (lambda m: m.ClearField("raw_input_contents"), None, "expected 1 string elements"),
        (lambda m: setattr(m.inputs[0], "name", "X"), None, "unexpected inference input 'X'"),
        (lambda m: setattr(m.inputs[0], "datatype", "FP32"), None, "data-type is 'FP32'"),
        (lambda m: m.inputs[0].shape.append(3), None, "got [1, 3]"),
        (lambda m: m.inputs[0].contents.SetInParent(), None, "are both set"),
        (lambda m: m.outputs.add(name="X"), None, "unexpected inference output 'X'"),
        (
            lambda m: setattr(m.parameters["priority"], "string_param", "1"),
            None,
            "'priority' is a whole number",
        ),
        (
            lambda m: setattr(m.parameters["timeout"], "double_param", float("nan")),
            None,
            "'timeout' is a whole number",
        ),
    ],
)
def test_wrong_oip_requests(
    called: Called, change: Callable[[Any], Any], code: Any, message: str
) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(called.channel)
    found = service_pb2.ModelInferRequest(
        model_name=called.service.name, raw_input_contents=[b"\6\0\0\0a text"]
    )
    found.inputs.add(name="TEXT", datatype="BYTES", shape=[1])
    assert stub.ModelInfer(found).raw_output_contents
    change(found)
    error = refused(lambda: stub.ModelInfer(found))
    assert error.code() == (code or Code.INVALID_ARGUMENT)
    assert message in error.details()
    assert "a text" not in error.details()


def test_large_requests_in_another_thread(called: Called, client: Any, model: M3) -> None:
    texts = ["a text of some words " * 20 + str(i) for i in range(100)]
    found = model.encode(texts)
    got = infer(client, texts, called.service.name)
    close(got.as_numpy("dense"), found.dense)
    np.testing.assert_array_equal(got.as_numpy("n_tokens"), found.n_tokens)
