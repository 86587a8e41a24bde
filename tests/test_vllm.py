"""vLLM's requests, against the direct result, and by mteb's clients of it."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any, cast

import datasets
import httpx
import mteb
import numpy as np
import pytest
import torch
from mteb._create_dataloaders import create_dataloader
from mteb.models.openai_wrappers import OpenAIAPIRerankWrapper, OpenAIAPITokenEmbedWrapper
from numpy.typing import NDArray

from m3rt import M3, score
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import pooled, vllm
from m3rt.server.http.surfaces import ROUTES
from m3rt.types import Heads
from tests.served import Served

TEXTS = ["Grüße aus Köln", "東京は日本の首都です", "the quick brown fox", ""]
QUERY = "where does the quick fox live?"


def post(served: Served, path: str, body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body)


def pool(served: Served, **body: Any) -> httpx.Response:
    return post(served, "/pooling", {"model": "m", "input": TEXTS, **body}).raise_for_status()


def expected_of(task: str, model: M3, texts: list[str]) -> list[NDArray[np.float32]]:
    """What a task gives for texts."""
    found = model.encode(texts, vllm.HEADS[task])
    if found.dense is not None:
        return list(found.dense)
    if found.colbert is not None:
        return found.colbert
    assert found.sparse is not None
    rows = enumerate(model.tokenize(texts).ids)
    return [
        np.array([found.sparse[i].get(t, 0.0) for t in ids.tolist()[1:-1]], np.float32)
        for i, ids in rows
    ]


TASKS = ["embed", "token_embed", "token_classify"]


@pytest.mark.parametrize("task", TASKS)
def test_pooling(served: Served, model: M3, task: str) -> None:
    content = pool(served, task=task, request_id="abc").json()
    assert content["id"] == "pool-abc"
    assert content["object"] == "list"
    assert content["model"] == served.service.name
    total = int(model.encode(TEXTS).n_tokens.sum())
    assert content["usage"] == {"prompt_tokens": total, "total_tokens": total}
    for row, expected in enumerate(expected_of(task, model, TEXTS)):
        item = content["data"][row]
        assert (item["index"], item["object"]) == (row, "pooling")
        np.testing.assert_array_equal(np.float32(item["data"]), expected)


def test_pooling_gives_colbert_vectors_if_no_task_is_given(served: Served, model: M3) -> None:
    (item,) = pool(served, input=TEXTS[0]).json()["data"]
    np.testing.assert_array_equal(
        np.float32(item["data"]), expected_of("token_embed", model, TEXTS[:1])[0]
    )


def decoded(raw: bytes, dtype: str, endianness: str) -> NDArray[np.float32]:
    """Read numbers with torch, which has bfloat16."""
    size = 4 if dtype == "float32" else 2
    whole = np.frombuffer(raw, f"u{size}")
    if endianness not in ("native", sys.byteorder):
        whole = whole.byteswap()
    read = torch.from_numpy(whole.view(f"i{size}").copy()).view(getattr(torch, dtype))
    return cast(NDArray[np.float32], read.float().numpy())


def rounded(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Round as torch does."""
    numbers = torch.from_numpy(values.copy()).to(getattr(torch, dtype))
    return cast(NDArray[np.float32], numbers.float().numpy())


@pytest.mark.parametrize("endianness", ["native", "little", "big"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("task", TASKS)
def test_encodings(served: Served, model: M3, task: str, dtype: str, endianness: str) -> None:
    form = {"task": task, "embed_dtype": dtype, "endianness": endianness}
    expected = [rounded(row, dtype) for row in expected_of(task, model, TEXTS)]
    for item in pool(served, **form, encoding_format="base64").json()["data"]:
        row = expected[item["index"]]
        numbers = decoded(base64.b64decode(item["data"]), dtype, endianness)
        np.testing.assert_array_equal(numbers.reshape(row.shape), row)
    answer = pool(served, **form, encoding_format="bytes")
    assert answer.headers["content-type"] == "application/octet-stream"
    metadata = json.loads(answer.headers["metadata"])
    assert metadata["usage"]["prompt_tokens"] == model.encode(TEXTS).n_tokens.sum()
    assert [item["index"] for item in metadata["data"]] == [0, 1, 2, 3]
    for item in metadata["data"]:
        assert (item["embed_dtype"], item["endianness"]) == (dtype, endianness)
        numbers = decoded(answer.content[item["start"] : item["end"]], dtype, endianness)
        np.testing.assert_array_equal(numbers.reshape(item["shape"]), expected[item["index"]])
    only = pool(served, **form, encoding_format="bytes_only")
    assert only.content == answer.content
    assert "metadata" not in only.headers


def test_a_header_that_no_client_would_read(served: Served) -> None:
    body = {"input": ["a"] * 800, "task": "embed", "encoding_format": "bytes"}
    answer = post(served, "/pooling", body)
    assert answer.status_code == 413
    assert "base64" in answer.json()["error"]["message"]


@pytest.mark.parametrize("numbers", [[1.0, -0.0, 1e-40, 3.14159, -2.71828, 65504.0, 1 + 2**-8]])
def test_bfloat16_is_rounded_as_torch_does(numbers: list[float]) -> None:
    values = np.array([*numbers, 1 + 3 * 2**-8, *np.linspace(-1, 1, 999)], np.float32)
    raw = pooled.encoded(values, "bfloat16", "native")
    np.testing.assert_array_equal(decoded(raw, "bfloat16", "native"), rounded(values, "bfloat16"))


@pytest.mark.parametrize("embed_task", ["dense", "sparse", "dense&sparse"])
def test_the_plugin_for_both(served: Served, model: M3, embed_task: str) -> None:
    data = {"input": TEXTS, "embed_task": embed_task, "return_tokens": True}
    answer = post(served, "/pooling", {"task": "plugin", "data": data, "request_id": "x"})
    content = answer.raise_for_status().json()
    assert content["request_id"] == "x"
    assert isinstance(content["created_at"], int)
    found = model.encode(TEXTS, vllm.PLUGIN_HEADS[embed_task])
    assert content["data"]["usage"]["prompt_tokens"] == found.n_tokens.sum()
    for row, item in enumerate(content["data"]["data"]):
        assert (item["index"], item["object"]) == (row, embed_task)
        if found.dense is not None:
            np.testing.assert_array_equal(np.float32(item["dense_embedding"]), found.dense[row])
        else:
            assert item["dense_embedding"] is None
        if found.sparse is None:
            assert item["sparse_embedding"] is None
            continue
        entries = item["sparse_embedding"]
        weights = {e["token_id"]: float(np.float32(e["weight"])) for e in entries}
        assert weights == found.sparse[row]
        assert [e["token"] for e in entries] == [model.tokenizer.piece(i) for i in weights]


def test_the_plugin_by_its_data_alone(served: Served) -> None:
    content = post(served, "/pooling", {"data": {"input": "fox"}}).raise_for_status().json()
    (item,) = content["data"]["data"]
    assert item["object"] == "dense&sparse"
    assert item["dense_embedding"]
    assert {entry["token"] for entry in item["sparse_embedding"]} <= {None}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [1, "a"]}, "input"),
        ({"input": [[1], 2]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [2**40]}, "input"),
        ({"input": [2**31 - 1]}, "input"),
        ({"input": [["a"]]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [1.5]}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": None}, "input"),
        ({"task": "plugin", "input": "a"}, "data"),
        ({"task": "embed", "data": {"input": "a"}}, "input"),
        ({"task": "classify", "input": "a"}, "task"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": "a", "embed_dtype": "fp8_e4m3"}, "embed_dtype"),
        ({"input": "a", "encoding_format": "json"}, "encoding_format"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"input": "a", "truncate_prompt_tokens": 10**6}, "truncate_prompt_tokens"),
        ({"input": "a", "truncation_side": "middle"}, "truncation_side"),
        ({"input": "a", "add_special_tokens": False}, "add_special_tokens"),
        ({"input": "a", "use_activation": False}, "use_activation"),
        ({"data": {"input": "a"}, "encoding_format": "bytes"}, "encoding_format"),
    ],
)
def test_refused(served: Served, body: dict[str, Any], param: str | None) -> None:
    answer = post(served, "/pooling", body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (400, param)


def test_the_models_own_width_is_taken(served: Served, model: M3) -> None:
    for task, width in (
        ("embed", model.manifest.hidden),
        ("token_embed", model.manifest.colbert_dim),
    ):
        assert pool(served, task=task, dimensions=width, priority=3).json()["data"]


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_a_status(kind: Kind) -> None:
    reply = vllm.shape(RefusedError(kind, "why"))
    assert json.loads(reply.body)["error"]["code"] == reply.status


@pytest.mark.parametrize("whole", [True, False])
def test_token_ids(served: Served, model: M3, whole: bool) -> None:
    rows = [ids.tolist() for ids in model.tokenize(TEXTS).ids]
    ids = rows if whole else [row[1:-1] for row in rows]
    content = pool(served, input=ids, task="embed").json()
    np.testing.assert_array_equal(
        np.array([item["data"] for item in content["data"]], np.float32),
        expected_of("embed", model, TEXTS),
    )
    (item,) = pool(served, input=ids[0], task="embed").json()["data"]
    np.testing.assert_array_equal(
        np.float32(item["data"]), expected_of("embed", model, TEXTS[:1])[0]
    )


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation(served: Served, model: M3, side: str) -> None:
    text = "one two three four five six seven eight nine ten"
    form = {"truncate_prompt_tokens": 6, "truncation_side": side}
    content = pool(served, input=text, task="token_classify", **form).json()
    assert content["usage"]["prompt_tokens"] == 6
    ids = model.tokenize([text]).ids[0].tolist()
    cut = ids[:5] + ids[-1:] if side == "right" else ids[:1] + ids[-5:]
    answer = pool(served, input=[cut], task="token_classify").json()
    assert content["data"] == answer["data"]


def combined(model: M3, query: str, texts: list[str], weights: tuple[float, ...]) -> Any:
    """The weighted scores of texts."""
    found = score.matrix(model.encode([query]), model.encode(texts), score.Weights(*weights))
    return found.combined[0]


@pytest.mark.parametrize(
    "names",
    [
        ("text_1", "text_2"),
        ("queries", "documents"),
        ("queries", "items"),
        ("data_1", "data_2"),
    ],
)
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_score(served: Served, model: M3, names: tuple[str, str], path: str) -> None:
    weights = served.service.settings.weights
    expected = combined(model, QUERY, TEXTS, weights)
    content = post(served, path, {names[0]: QUERY, names[1]: TEXTS}).raise_for_status().json()
    assert [item["index"] for item in content["data"]] == [0, 1, 2, 3]
    scores = [item["score"] for item in content["data"]]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    body = {names[0]: TEXTS[::-1], names[1]: TEXTS}
    content = post(served, path, body).raise_for_status().json()
    pairs = score.pairs(model.encode(TEXTS[::-1]), model.encode(TEXTS), score.Weights(*weights))
    scores = [item["score"] for item in content["data"]]
    np.testing.assert_allclose(scores, pairs.combined, atol=1e-6)
    one = post(served, path, {names[0]: QUERY, names[1]: TEXTS[0]}).raise_for_status().json()
    assert one["data"][0]["score"] == pytest.approx(expected[0], abs=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text_1": "a"},
        {"text_1": "a", "documents": "b"},
        {"text_1": [], "text_2": []},
        {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]},
        {"text_1": ["a", "b"], "text_2": "a"},
        {"text_1": "a", "text_2": 1},
    ],
)
def test_refused_score(served: Served, body: dict[str, Any]) -> None:
    answer = post(served, "/score", body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == 400


@pytest.fixture
def _any_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the route that the wrappers look at first, they take the server as it is."""
    if "/v1/models" not in {route.path for route in ROUTES}:
        for wrapper in (OpenAIAPITokenEmbedWrapper, OpenAIAPIRerankWrapper):
            monkeypatch.setattr(wrapper, "_verify_server", lambda self: None)


def loaded(texts: list[str]) -> Any:
    """Return texts as mteb gives them to a model."""
    rows = datasets.Dataset.from_dict({"text": texts})
    return create_dataloader(rows, task_metadata=task_metadata(), batch_size=3, num_proc=None)


def task_metadata() -> Any:
    """What mteb tells a model of a task; any with texts does."""
    return mteb.get_task("STS12").metadata


@pytest.mark.usefixtures("_any_models")
def test_mteb_takes_colbert_vectors(served: Served, model: M3) -> None:
    wrapper = OpenAIAPITokenEmbedWrapper(served.url, "BAAI/bge-m3", use_chat_template=False)
    found = wrapper._encode(
        loaded(TEXTS),
        task_metadata=task_metadata(),
        hf_split="test",
        hf_subset="default",
        batch_size=3,
        show_progress_bar=False,
    )
    expected = model.encode(TEXTS, Heads.COLBERT).colbert
    assert expected is not None
    for mine, theirs in zip(expected, found, strict=True):
        np.testing.assert_allclose(theirs, mine, atol=1e-6)


@pytest.mark.usefixtures("_any_models")
def test_mteb_takes_scores(served: Served, model: M3) -> None:
    wrapper = OpenAIAPIRerankWrapper(served.url, "BAAI/bge-m3", modalities=["text"])
    queries = [QUERY, TEXTS[0], "tokyo"]
    found = wrapper.predict(
        loaded(queries),
        loaded(TEXTS[:3]),
        task_metadata=task_metadata(),
        hf_split="test",
        hf_subset="default",
        show_progress_bar=False,
    )
    weights = score.Weights(*served.service.settings.weights)
    expected = score.pairs(model.encode(queries), model.encode(TEXTS[:3]), weights)
    np.testing.assert_allclose(np.asarray(found), expected.combined, atol=1e-6)
