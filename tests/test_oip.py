"""The Open Inference Protocol over HTTP, by Triton's client, against the direct result."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

import m3rt
from m3rt import M3, Embeddings, Heads
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import oip, tensors
from m3rt.server.settings import Settings
from m3rt.server.work import Cut, Lane
from m3rt.types import offsets
from tests.served import Served, serving
from tests.watched import REFUSE, WAIT, Watched

TEXTS = ["Grüße aus Köln", "東京は日本の首都です", "the quick brown fox", "", "a\0b"]
NAMES = ("dense", "sparse_indices", "sparse_values", "sparse_offsets", "colbert")
OUTPUTS = (*NAMES, "colbert_offsets", "n_tokens")
MOST = 1 << 20  # bytes of a body, of the server that is watched
HUB = "BAAI/bge-m3"


@pytest.fixture(scope="module")
def watched(model_dir: Path, model: M3) -> Iterator[Served]:
    settings = Settings(model_dir, served_model_name=HUB, max_body_bytes=MOST, request_timeout=30.0)
    with serving(settings, model, Watched) as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[Any]:
    found = triton.InferenceServerClient(served.url.removeprefix("http://"), concurrency=4)
    yield found
    found.close()


@pytest.fixture(scope="module")
def direct(model: M3) -> Embeddings:
    return model.encode(TEXTS)


def text(texts: Sequence[str], column: bool = False, binary: bool = True) -> Any:
    content = np.array([one.encode() for one in texts], np.object_)
    content = content[:, None] if column else content
    tensor = triton.InferInput("TEXT", content.shape, "BYTES")
    return tensor.set_data_from_numpy(content, binary_data=binary)


def expected(direct: Embeddings) -> dict[str, NDArray[Any]]:
    assert direct.dense is not None
    assert direct.sparse is not None
    assert direct.colbert is not None
    return {
        "dense": direct.dense,
        "sparse_indices": direct.sparse.ids.values,
        "sparse_values": direct.sparse.weights.values,
        "sparse_offsets": direct.sparse.ids.starts,
        "colbert": np.concatenate(direct.colbert),
        "colbert_offsets": offsets(list(map(len, direct.colbert))),
        "n_tokens": direct.n_tokens,
    }


def asked(served: Served) -> Any:
    assert isinstance(served.service, Watched)
    return served.service.asks[-1]


def post(served: Served, body: Any, headers: dict[str, str] | None = None, path: str = "") -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{served.url}/v2/models/{path or served.service.name}/infer"
    return httpx.post(url, content=content, headers=headers, timeout=30)


def request(**more: Any) -> dict[str, Any]:
    tensor = {"name": "TEXT", "shape": [1], "datatype": "BYTES", "data": ["a text"]}
    return {"inputs": [tensor | more]}


def test_health_and_metadata(served: Served, client: Any) -> None:
    name = served.service.name
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(name, "1")
    assert not client.is_model_ready(name, "2")
    server = client.get_server_metadata()
    assert server["name"] == "m3rt"
    assert server["version"] == m3rt.__version__
    assert "binary_tensor_data" in server["extensions"]
    found = client.get_model_metadata(name, "1")
    assert found == client.get_model_metadata(name)
    assert (found["name"], found["versions"]) == (name, ["1"])
    assert found["inputs"] == [{"name": "TEXT", "datatype": "BYTES", "shape": [-1]}]
    manifest = served.model.manifest
    shapes = {one["name"]: (one["datatype"], one["shape"]) for one in found["outputs"]}
    assert tuple(shapes) == OUTPUTS
    assert shapes["dense"] == ("FP32", [-1, manifest.hidden])
    assert shapes["colbert"] == ("FP16", [-1, manifest.colbert_dim])
    assert shapes["sparse_offsets"] == ("INT32", [-1])


def test_not_ready(watched: Served) -> None:
    assert isinstance(watched.service, Watched)
    watched.service.is_ready = False
    try:
        for path in ("health/ready", f"models/{HUB}/ready"):
            found = httpx.get(f"{watched.url}/v2/{path}")
            assert found.status_code == 400
            assert found.json()["ready"] is False
        assert httpx.get(f"{watched.url}/v2/health/live").json() == {"live": True}
    finally:
        watched.service.is_ready = True


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_binary_outputs_are_the_direct_result(
    served: Served, client: Any, direct: Embeddings, column: bool, named: bool
) -> None:
    outputs = [triton.InferRequestedOutput(name) for name in OUTPUTS] if named else None
    found = client.infer(
        served.service.name, [text(TEXTS, column)], "1", outputs, request_id="an id"
    )
    for name, want in expected(direct).items():
        half = name == "colbert"
        got = found.as_numpy(name)
        assert found.get_output(name)["parameters"]["binary_data_size"] == got.nbytes
        assert got.dtype == (np.float16 if half else np.float32 if want.dtype.kind == "f" else "i4")
        np.testing.assert_array_equal(got, want.astype(np.float16) if half else want)
    head = found.get_response()
    assert (head["model_name"], head["model_version"]) == (served.service.name, "1")
    assert head["id"] == "an id"


def test_json_outputs_are_the_direct_result(
    served: Served, client: Any, direct: Embeddings
) -> None:
    outputs = [triton.InferRequestedOutput(name, binary_data=False) for name in OUTPUTS]
    found = client.infer(served.service.name, [text(TEXTS, True, False)], outputs=outputs)
    for name, want in expected(direct).items():
        one = found.get_output(name)
        assert "parameters" not in one
        assert one["datatype"] == ("FP32" if want.dtype.kind == "f" else "INT32")
        np.testing.assert_array_equal(found.as_numpy(name), want)
    assert "id" not in found.get_response()


def test_json_and_binary_outputs_beside_each_other(
    served: Served, client: Any, direct: Embeddings
) -> None:
    outputs = [
        triton.InferRequestedOutput("colbert", binary_data=True),
        triton.InferRequestedOutput("n_tokens", binary_data=False),
        triton.InferRequestedOutput("dense", binary_data=True),
    ]
    found = client.infer(served.service.name, [text(TEXTS)], outputs=outputs)
    assert [one["name"] for one in found.get_response()["outputs"]] == [
        "colbert",
        "n_tokens",
        "dense",
    ]
    want = expected(direct)
    np.testing.assert_array_equal(found.as_numpy("dense"), want["dense"])
    np.testing.assert_array_equal(found.as_numpy("n_tokens"), want["n_tokens"])
    np.testing.assert_array_equal(found.as_numpy("colbert"), want["colbert"].astype(np.float16))


@pytest.mark.parametrize(
    ("names", "heads"),
    [
        (["sparse_values"], Heads.SPARSE),
        (["colbert_offsets", "dense"], Heads.DENSE | Heads.COLBERT),
        (["n_tokens"], Heads.DENSE),
        ([], Heads.ALL),
    ],
)
def test_only_what_is_asked_for_is_computed(
    watched: Served, names: list[str], heads: Heads
) -> None:
    body = request() | {"outputs": [{"name": name} for name in [*names, *names]]}
    found = post(watched, body).raise_for_status().json()
    assert [one["name"] for one in found["outputs"]] == (names or list(OUTPUTS))
    assert asked(watched)[0].heads == heads


def test_a_name_with_a_slash_and_its_last_part(watched: Served) -> None:
    for name in (HUB, "bge-m3", "BAAI%2Fbge-m3"):
        for version in ("", "/versions/1"):
            found = post(watched, request(), path=name + version).raise_for_status().json()
            assert found["model_name"] in (HUB, "bge-m3")
            url = f"{watched.url}/v2/models/{name}{version}"
            assert httpx.get(url).raise_for_status().json()["outputs"]
            assert httpx.get(f"{url}/ready").raise_for_status().json()["ready"]


def test_parameters_say_how_to_embed_and_for_whom(watched: Served) -> None:
    with triton.InferenceServerClient(watched.url.removeprefix("http://")) as client:

        def infer(**more: Any) -> Any:
            client.infer(HUB, [text(["a text"])], **more)
            return asked(watched)

        ask, sender = infer()
        assert (ask.cut, ask.max_length, sender.lane) == (Cut.RIGHT, None, None)
        assert infer(priority=1)[1].lane == Lane.INTERACTIVE
        assert infer(priority=7)[1].lane == Lane.BULK
        assert infer(priority=1, headers={"x-priority": "bulk"})[1].lane == Lane.INTERACTIVE
        assert infer(headers={"x-priority": "bulk"})[1].lane == Lane.BULK
        before = time.monotonic()
        deadline = infer(timeout=9_000_000)[1].deadline
        assert before + 8 < deadline < time.monotonic() + 9.001
        deadline = infer(timeout=90_000_000)[1].deadline  # the server's own is earlier
        assert deadline < time.monotonic() + 30.001
        assert infer(parameters={"max_length": 3})[0].max_length == 3
        for given, cut in (("left", Cut.LEFT), ("none", Cut.NONE), (False, Cut.NONE)):
            assert infer(parameters={"truncate": given})[0].cut == cut
        assert infer(headers={"x-request-id": "mine"})[1].request_id == "mine"


def test_max_length_cuts(served: Served, client: Any) -> None:
    found = client.infer(served.service.name, [text(TEXTS)], parameters={"max_length": 3})
    want = served.model.encode(TEXTS, max_length=3)
    np.testing.assert_array_equal(found.as_numpy("dense"), want.dense)
    assert found.as_numpy("n_tokens").max() == 3


def test_an_expired_request_is_told_as_triton_tells_it(watched: Served) -> None:
    with triton.InferenceServerClient(watched.url.removeprefix("http://")) as client:
        with pytest.raises(InferenceServerException) as found:
            client.infer(HUB, [text([WAIT])], timeout=50_000)
        assert (found.value.status(), found.value.message()) == ("503", "Request timeout expired")


@pytest.mark.parametrize("kind", list(Kind))
def test_every_refusal_has_its_status(watched: Served, kind: Kind) -> None:
    found = post(watched, request(data=[REFUSE + kind]))
    assert found.status_code == oip.STATUS[kind]
    assert list(found.json()) == ["error"]
    assert ("retry-after" in found.headers) == (kind == Kind.OVERLOADED)


def test_an_unknown_model_is_told_as_triton_tells_it(served: Served, client: Any) -> None:
    name = served.service.name
    for method, more in ((client.infer, [[text(TEXTS)]]), (client.get_model_metadata, [])):
        with pytest.raises(InferenceServerException) as found:
            method("nope", *more)
        assert found.value.status() == "404"
        assert found.value.message() == "Request for unknown model: 'nope' is not found"
    with pytest.raises(InferenceServerException) as found:
        client.infer(name, [text(TEXTS)], "2")
    assert found.value.message() == f"Request for unknown model: '{name}' version 2 is not found"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(
    served: Served, client: Any, direct: Embeddings, algorithm: str
) -> None:
    found = client.infer(
        served.service.name,
        [text(TEXTS)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_array_equal(found.as_numpy("dense"), direct.dense)


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzip.compress(bytes(MOST + 1)), 413),
        ("deflate", zlib.compress(bytes(64 * MOST)), 413),
        ("gzip", gzip.compress(b"{}" * 99)[:-9], 400),
        ("gzip", gzip.compress(b"{}") * 2, 400),
        ("gzip", b"{}", 400),
        ("deflate", b"", 400),
        ("br", b"{}", 400),
        ("identity", b"{}", 400),
    ],
)
def test_bad_compression(watched: Served, encoding: str, body: bytes, status: int) -> None:
    found = post(watched, body, {"content-encoding": encoding})
    assert found.status_code == status
    assert found.json()["error"]


def test_requests_at_the_same_time(served: Served, client: Any, direct: Embeddings) -> None:
    assert direct.dense is not None
    waiting = [
        client.async_infer(served.service.name, [text([TEXTS[i % len(TEXTS)]])]) for i in range(16)
    ]
    for i, one in enumerate(waiting):
        got = one.get_result().as_numpy("dense")
        np.testing.assert_allclose(got[0], direct.dense[i % len(TEXTS)], atol=1e-6)


def test_the_asynchronous_client(served: Served, direct: Embeddings) -> None:
    async def infer() -> Any:
        async with triton_aio.InferenceServerClient(served.url.removeprefix("http://")) as client:
            return await client.infer(served.service.name, [text(TEXTS)])

    np.testing.assert_array_equal(asyncio.run(infer()).as_numpy("dense"), direct.dense)


ONE = {"name": "TEXT", "shape": [1], "datatype": "BYTES"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b'{"inputs": [NaN]}', "is not JSON"),
        (b"[" * 100_000, "Expected `object`"),
        (b'{"inputs":[{"name":"TEXT","shape":' + b"[" * 100_000, "Expected `int`"),
        (b'{"id":"","parameters":{"x":' + b"[" * 100_000, "recursion"),
        ([], "Expected `object`"),
        ({}, "missing required field `inputs`"),
        ({"inputs": []}, "expected 1 inputs but got 0 inputs for model 'BAAI/bge-m3'"),
        ({"inputs": [ONE | {"data": ["a"]}] * 2}, "expected 1 inputs but got 2"),
        (request(name="text"), "unexpected inference input 'text' for model 'BAAI/bge-m3'"),
        (request(name="x" * 5000), "unexpected inference input 'xxx"),
        (request(datatype="INT32"), "data-type is 'INT32', but model 'BAAI/bge-m3' expects"),
        (request(shape=[1, 2]), "Expected [-1] or [-1,1], got [1, 2]"),
        (request(shape=[]), "Expected [-1] or [-1,1], got []"),
        (request(shape=[1, 1, 1]), "got [1, 1, 1]"),
        (request(shape=[-1]), "got [-1]"),
        (request(shape=[0], data=[]), "has no elements"),
        (request(shape=[2**60]), "at most 2048 are taken"),
        (request(shape=[10**400]), "at most 2048 are taken"),
        (request(shape=[10**4000, 10**4000]), "Expected [-1] or [-1,1], got [1000"),
        (request(shape=[True]), "Expected `int`"),
        (request(shape=[2]), "expected 2 string elements for inference input 'TEXT', got 1"),
        (request(data=[3]), "element 0 of inference input 'TEXT' is not a string"),
        (request(data=[["a", "b"]]), "element 0 of inference input 'TEXT' is not a string"),
        (request(data=[None]), "is not a string"),
        (request(data="a text"), "Expected `array | null`"),
        (request(data=None), "neither data nor binary_data_size"),
        (
            b'{"inputs":[{"name":"TEXT","shape":[1],"datatype":"BYTES","data":["\\ud800"]}]}',
            "is not JSON",
        ),
        (request(parameters={"binary_data_size": 4}), "both data and binary_data_size"),
        (request(parameters={"shared_memory_region": "x"}), "shared memory is not supported"),
        (request() | {"id": 3}, "Expected `str`"),
        (request() | {"outputs": [{"name": "DENSE"}]}, "unexpected inference output 'DENSE'"),
        (
            request() | {"outputs": [{"name": "dense", "parameters": {"binary_data": 1}}]},
            "'binary_data' is a boolean",
        ),
        (
            request() | {"outputs": [{"name": "dense", "parameters": {"classification": 1}}]},
            "classification",
        ),
        (request() | {"parameters": {"binary_data_output": "yes"}}, "is a boolean"),
        (request() | {"parameters": {"priority": -1}}, "'priority' is a whole number"),
        (request() | {"parameters": {"priority": True}}, "'priority' is a whole number"),
        (request() | {"parameters": {"timeout": 1.5}}, "'timeout' is a whole number"),
        (request() | {"parameters": {"max_length": "9"}}, "'max_length' is a whole number"),
        (request() | {"parameters": {"max_length": 0}}, "max_length is 0, expected"),
        (request() | {"parameters": {"max_length": 10**30}}, "max_length is 1000"),
        (request() | {"parameters": {"truncate": "middle"}}, "'truncate' is a boolean"),
        (request() | {"parameters": {"truncate": []}}, "'truncate' is a boolean"),
    ],
)
def test_wrong_requests(watched: Served, body: Any, message: str) -> None:
    found = post(watched, body)
    assert found.status_code == 400, found.text
    assert message in found.json()["error"]
    assert len(found.content) < 400
    assert "a text" not in found.text


def parts(content: bytes, size: int | None = None, shape: Sequence[int] = (1,)) -> bytes:
    size = len(content) if size is None else size
    tensor = ONE | {"shape": shape, "parameters": {"binary_data_size": size}}
    return json.dumps({"inputs": [tensor]}).encode() + content


def element(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (parts(b""), "expected 1 string elements for inference input 'TEXT', got 0"),
        (parts(b"\1\0"), "incomplete string length indicator for inference input 'TEXT'"),
        (parts(b"\xff\xff\xff\xffab"), "expecting string of length 4294967295 but only 2 bytes"),
        (parts(element(b"a") * 2), "more than 1, which its shape says"),
        (parts(element(b"a"), shape=[2]), "expected 2 string elements"),
        (parts(element(b"\xff")), "element 0 of inference input 'TEXT' is not UTF-8"),
        (parts(element(b"a"), 4), "unexpected additional input data: 1 bytes"),
        (parts(element(b"a"), 6), "binary_data_size says more"),
        (parts(element(b"a"), 10**18), "binary_data_size says more"),
        (parts(element(b"a"), -1), "'binary_data_size' is a whole number"),
    ],
)
def test_wrong_binary_data(watched: Served, body: bytes, message: str) -> None:
    end = body.index(b"}]}") + 3
    found = post(watched, body, {"inference-header-content-length": str(end)})
    assert found.status_code == 400
    assert message in found.json()["error"]


@pytest.mark.parametrize("header", ["", "-1", "x", "1e3", "9" * 40, "1000000", "²", "0"])
def test_wrong_header_length(watched: Served, header: str) -> None:
    found = post(watched, request(), {"inference-header-content-length": header.encode()})  # type: ignore[dict-item]
    assert found.status_code == 400
    assert found.json()["error"]


def test_large_requests_in_either_form(served: Served, client: Any) -> None:
    texts = ["a text of some words " * 20 + str(i) for i in range(100)]
    want = served.model.encode(texts)
    for binary in (True, False):
        found = client.infer(served.service.name, [text(texts, binary=binary)])
        np.testing.assert_array_equal(found.as_numpy("dense"), want.dense)
        np.testing.assert_array_equal(found.as_numpy("n_tokens"), want.n_tokens)


@examples(deadline=None, max_examples=300)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_binary_texts_are_read_back(texts: list[str]) -> None:
    content = b"".join(element(one.encode()) for one in texts)
    assert tensors.strings(memoryview(content), len(texts)) == texts


@examples(deadline=None, max_examples=300)
@given(st.binary(max_size=40), st.integers(1, 4))
def test_any_bytes_are_texts_or_refused(content: bytes, count: int) -> None:
    try:
        texts = tensors.strings(memoryview(content), count)
    except RefusedError:
        return
    assert len(texts) == count
    assert b"".join(element(one.encode()) for one in texts) == content


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["priority", "timeout", "max_length", "truncate", "binary_data_size", "binary_data"]
    ),
    JSON,
    max_size=2,
)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["TEXT", "text"]),
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "datatype": st.sampled_from(["BYTES", "FP32"]),
    },
    optional={"data": st.lists(JSON, max_size=3) | JSON, "parameters": PARAMETERS},
)


@examples(deadline=None, max_examples=150)
@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(TENSOR, max_size=2) | JSON},
        optional={
            "outputs": st.lists(
                st.fixed_dictionaries({"name": st.sampled_from([*OUTPUTS, "x"])}), max_size=2
            ),
            "parameters": PARAMETERS,
            "id": JSON,
        },
    ),
    st.binary(max_size=20),
    st.integers(-3, 3),
)
def test_whatever_is_sent_is_answered_or_refused(
    served: Served, http: httpx.Client, body: dict[str, Any], rest: bytes, shift: int
) -> None:
    head = json.dumps(body).encode()
    url = f"{served.url}/v2/models/{served.service.name}/infer"
    headers = {"inference-header-content-length": str(len(head) + shift)}
    found = http.post(url, content=head + rest, headers=headers)
    assert found.status_code in (200, 400, 503), found.text  # 503: a timeout of some microseconds
    if found.status_code == 503:
        assert found.json() == {"error": "Request timeout expired"}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as found:
        yield found
