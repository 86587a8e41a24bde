"""m3rt's own requests, against the direct result."""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from m3rt import M3, Embeddings, score
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import binary, native
from m3rt.types import Heads
from tests.served import Served

TEXTS = ["Grüße aus Köln", "東京は日本の首都です", "the quick brown fox", ""]
QUERY = "where does the quick fox live?"


@pytest.fixture(scope="module")
def direct(served: Served) -> Embeddings:
    """What the model gives for TEXTS."""
    return served.model.encode(TEXTS)


def post(served: Served, path: str, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body, headers=headers)


def embed(served: Served, **body: Any) -> dict[str, Any]:
    answer = post(served, "/v1/m3/embed", {"inputs": TEXTS, **body})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def dense_of(found: Embeddings) -> NDArray[np.float32]:
    assert found.dense is not None
    return found.dense


def unpacked(item: dict[str, Any]) -> NDArray[Any]:
    numbers = np.frombuffer(base64.b64decode(item["data"]), np.dtype(item["dtype"]))
    return numbers.reshape(item["shape"])


def test_all_heads_in_one_answer(served: Served, direct: Embeddings) -> None:
    content = embed(served)
    assert [item["index"] for item in content["data"]] == [0, 1, 2, 3]
    for row, item in enumerate(content["data"]):
        assert direct.sparse is not None
        assert direct.colbert is not None
        np.testing.assert_array_equal(np.float32(item["dense"]), dense_of(direct)[row])
        np.testing.assert_array_equal(np.float32(item["colbert"]), direct.colbert[row])
        values = np.array(item["sparse"]["values"], np.float32)
        entries = zip(item["sparse"]["indices"], values.tolist(), strict=True)
        assert dict(entries) == direct.sparse[row]
        assert item["n_tokens"] == direct.n_tokens[row]
        assert not item["truncated"]
    total = int(direct.n_tokens.sum())
    assert content["usage"] == {"prompt_tokens": total, "total_tokens": total}
    assert content["model"] == served.service.name
    assert set(content["timings"]) == {"tokenise", "queue", "engine", "total"}
    assert content["timings"]["total"] > 0


def test_one_text_and_one_head(served: Served) -> None:
    (item,) = embed(served, inputs="the quick", outputs=["dense"], input_type="query")["data"]
    assert set(item) == {"index", "n_tokens", "truncated", "dense"}
    direct = served.model.encode(["the quick"], Heads.DENSE)
    np.testing.assert_array_equal(np.float32(item["dense"]), dense_of(direct)[0])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_base64(served: Served, direct: Embeddings, dtype: str) -> None:
    for row, item in enumerate(embed(served, format="base64", dtype=dtype)["data"]):
        assert direct.colbert is not None
        for name, expected in (("dense", dense_of(direct)[row]), ("colbert", direct.colbert[row])):
            assert item[name]["dtype"] == dtype
            np.testing.assert_array_equal(unpacked(item[name]), expected.astype(dtype))


def test_three_forms_of_lexical_weights(served: Served, direct: Embeddings) -> None:
    csr, pairs, dicts = (
        [item["sparse"] for item in embed(served, sparse_format=form)["data"]]
        for form in ("csr", "pairs", "dict")
    )
    assert direct.sparse is not None
    assert any(len(item["indices"]) > 1 for item in csr)
    for row in range(len(TEXTS)):
        expected = direct.sparse[row]
        assert csr[row]["indices"] == sorted(expected)
        assert [i for i, _ in pairs[row]] == sorted(expected)
        assert {i: float(np.float32(w)) for i, w in pairs[row]} == expected
        assert {int(i): float(np.float32(w)) for i, w in dicts[row].items()} == expected


def test_tokens_and_their_weights(served: Served, model: M3) -> None:
    twice = "fox and fox"
    (item,) = embed(served, inputs=[twice], tokens=True)["data"]
    ids = model.tokenize([twice]).ids[0].tolist()
    assert item["tokens"] == [model.tokenizer.piece(i) for i in ids]
    sparse = model.encode([twice], Heads.SPARSE).sparse
    assert sparse is not None
    expected = [sparse[0].get(i, 0.0) for i in ids]
    assert [float(np.float32(w)) for w in item["token_weights"]] == expected
    (item,) = embed(served, inputs=[twice], tokens=True, outputs=["dense"])["data"]
    assert "token_weights" not in item


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_safetensors(served: Served, direct: Embeddings, dtype: str) -> None:
    answer = post(
        served, "/v1/m3/embed", {"inputs": TEXTS, "dtype": dtype}, accept=binary.SAFETENSORS
    )
    assert answer.headers["content-type"] == binary.SAFETENSORS
    found = safetensors.numpy.load(answer.content)
    assert direct.sparse is not None
    assert direct.colbert is not None
    expected: dict[str, NDArray[Any]] = {
        "dense": dense_of(direct).astype(dtype),
        "sparse_indices": direct.sparse.ids.values,
        "sparse_values": direct.sparse.weights.values,
        "sparse_offsets": direct.sparse.ids.starts,
        "colbert": np.concatenate(direct.colbert).astype(dtype),
        "colbert_offsets": np.cumsum([0, *map(len, direct.colbert)]),
        "n_tokens": direct.n_tokens.astype(np.int32),
        "truncated": direct.truncated,
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_safetensors_names_the_model(served: Served, tmp_path: Any) -> None:
    answer = post(
        served,
        "/v1/m3/embed",
        {"inputs": "a", "outputs": ["sparse"]},
        accept=f"text/html, {binary.SAFETENSORS};q=0.9",
    )
    (tmp_path / "found").write_bytes(answer.content)
    with safetensors.safe_open(tmp_path / "found", "np") as file:
        assert file.metadata()["model"] == served.service.name
        assert not {"dense", "colbert"} & set(file.keys())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arrow(served: Served, direct: Embeddings, dtype: str) -> None:
    pa = pytest.importorskip("pyarrow")
    answer = post(served, "/v1/m3/embed", {"inputs": TEXTS, "dtype": dtype}, accept=binary.ARROW)
    assert answer.headers["content-type"] == binary.ARROW
    with pa.ipc.open_stream(io.BytesIO(answer.content)) as stream:
        table = stream.read_all()
    number = pa.float32() if dtype == "float32" else pa.float16()
    width = dense_of(direct).shape[1]
    assert direct.colbert is not None
    assert table.schema.field("dense").type == pa.list_(number, width)
    assert table.schema.field("colbert").type == pa.list_(
        pa.list_(number, direct.colbert[0].shape[1])
    )
    assert table.schema.metadata[b"model"].decode() == served.service.name
    for row, item in enumerate(table.to_pylist()):
        assert direct.sparse is not None
        np.testing.assert_array_equal(
            np.array(item["dense"], dtype), dense_of(direct)[row].astype(dtype)
        )
        np.testing.assert_array_equal(
            np.array(item["colbert"], dtype), direct.colbert[row].astype(dtype)
        )
        pairs = zip(item["sparse"]["indices"], item["sparse"]["values"], strict=True)
        assert dict(pairs) == direct.sparse[row]
        assert (item["n_tokens"], item["truncated"]) == (direct.n_tokens[row], False)


def test_arrow_without_its_package(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    answer = post(served, "/v1/m3/embed", {"inputs": "a"}, accept=binary.ARROW)
    assert answer.status_code == 406
    assert "m3rt[parquet]" in answer.json()["error"]["message"]
    both = f"{binary.ARROW}, application/json;q=0.1"
    answer = post(served, "/v1/m3/embed", {"inputs": "a"}, accept=both)
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/html, application/*;q=0.2", "application/json"),
        (f"application/json;q=0.5, {binary.SAFETENSORS}", binary.SAFETENSORS),
        ("Application/X-Safetensors", binary.SAFETENSORS),
        (f"*/*, {binary.SAFETENSORS};q=0.1", "application/json"),
        ("application/json;q=0, */*;q=0.1", binary.ARROW),
    ],
)
def test_what_is_accepted(accept: str, expected: str) -> None:
    pytest.importorskip("pyarrow")
    assert binary.chosen(accept, native.MEDIA) == expected


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "*/*;q=0", "nonsense"])
def test_what_cannot_be_made(served: Served, accept: str) -> None:
    answer = post(served, "/v1/m3/embed", {"inputs": "a"}, accept=accept)
    assert answer.status_code == 406
    assert answer.json()["error"]["type"] == "unacceptable"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"inputs": []}, 400),
        ({"inputs": [1]}, 400),
        ({"inputs": ["a"], "outputs": []}, 400),
        ({"inputs": ["a"], "outputs": ["score"]}, 400),
        ({"inputs": ["a"], "unknown": 1}, 400),
        ({"inputs": ["a"], "max_length": 0}, 400),
        ({"inputs": ["a"], "max_length": 1}, 422),
        ({"inputs": ["a"], "max_length": 2**40}, 422),
        ({"inputs": ["a"], "max_length": 2**80}, 422),
        ({"inputs": ["a"], "truncate": "middle"}, 400),
        ({"inputs": ["a"], "sparse_format": "coo"}, 400),
        ({"inputs": ["a"] * 2049}, 413),
    ],
)
def test_refused_embeddings(served: Served, body: dict[str, Any], status: int) -> None:
    answer = post(served, "/v1/m3/embed", body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"type", "message", "param"}


def test_tokens_are_not_in_binary_answers(served: Served) -> None:
    body = {"inputs": "a", "tokens": True}
    answer = post(served, "/v1/m3/embed", body, accept=binary.SAFETENSORS)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "tokens"


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff", b'{"inputs": "\xff"}', b'{"inputs": "\\ud800"}', b"[" * 9000, b"NaN"],
)
def test_a_body_that_is_no_json(served: Served, raw: bytes) -> None:
    for path in ("/v1/m3/embed", "/v1/m3/score"):
        answer = httpx.post(f"{served.url}{path}", content=raw)
        assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_a_status(kind: Kind) -> None:
    assert 400 <= native.shape(RefusedError(kind, "why")).status < 600


def test_scores(served: Served, model: M3) -> None:
    answer = post(served, "/v1/m3/score", {"query": QUERY, "passages": TEXTS}).raise_for_status()
    weights = score.Weights(*served.service.settings.weights)
    expected = score.matrix(model.encode([QUERY]), model.encode(TEXTS), weights)
    content = answer.json()
    for head in ("dense", "sparse", "colbert", "combined"):
        # queries and passages ran in one batch there, in two here
        np.testing.assert_allclose(
            content["scores"][head], getattr(expected, head), atol=1e-6, err_msg=head
        )
    assert content["weights"] == list(served.service.settings.weights)
    assert content["explain"] is None
    total = int(model.encode([QUERY, *TEXTS]).n_tokens.sum())
    assert content["usage"]["prompt_tokens"] == total


def test_scores_of_several_queries_by_some_heads(served: Served, model: M3) -> None:
    queries = [QUERY, TEXTS[0]]
    body = {
        "queries": queries,
        "passages": TEXTS[:3],
        "outputs": ["dense", "colbert"],
        "weights": [3, 5, 1],
    }
    content = post(served, "/v1/m3/score", body).raise_for_status().json()["scores"]
    heads = Heads.DENSE | Heads.COLBERT
    left, right = model.encode(queries, heads), model.encode(TEXTS[:3], heads)
    expected = score.matrix(left, right, score.Weights(3, 5, 1))
    np.testing.assert_allclose(content["combined"], expected.combined, atol=1e-6)
    assert np.shape(content["combined"]) == (2, 3)
    assert content["sparse"] is None


def test_explained_scores(served: Served, model: M3) -> None:
    body = {"query": QUERY, "passages": TEXTS, "explain": True}
    content = post(served, "/v1/m3/score", body).raise_for_status().json()
    told = content["explain"]
    assert len(told["passages"]) == len(TEXTS)
    found = model.encode([QUERY, *TEXTS])
    assert found.colbert is not None
    assert found.sparse is not None
    for row, item in enumerate([told["query"], *told["passages"]]):
        ids = model.tokenize([[QUERY, *TEXTS][row]]).ids[0].tolist()
        assert item["tokens"] == [model.tokenizer.piece(i) for i in ids]
        expected = [found.sparse[row].get(i, 0.0) for i in ids]
        np.testing.assert_allclose(item["weights"], expected, atol=1e-6)
        assert item["weights"][0] == item["weights"][-1] == 0
    for row, item in enumerate(told["passages"]):
        alignment = np.array(item["alignment"])
        assert alignment.shape == (len(told["query"]["tokens"]) - 1, len(item["tokens"]) - 1)
        best = alignment.max(axis=1).mean()
        assert best == pytest.approx(content["scores"]["colbert"][0][row], abs=1e-5)


def test_explained_by_the_heads_that_count(served: Served) -> None:
    body = {"query": QUERY, "passages": TEXTS, "explain": True, "outputs": ["dense"]}
    told = post(served, "/v1/m3/score", body).raise_for_status().json()["explain"]
    assert told["query"]["weights"] is None
    assert told["passages"][0]["alignment"] is None


def test_an_explanation_has_a_limit(served: Served) -> None:
    long = "a b c d " * 500
    body = {"query": long, "passages": [long], "explain": True}
    answer = post(served, "/v1/m3/score", body)
    assert answer.status_code == 413
    assert post(served, "/v1/m3/score", {**body, "max_length": 16}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"passages": ["a"]}, 422),
        ({"query": "a", "queries": ["a"], "passages": ["a"]}, 422),
        ({"queries": [], "passages": ["a"]}, 400),
        ({"query": "a", "passages": []}, 400),
        ({"query": "a", "passages": ["a"], "weights": [1, 2]}, 400),
        ({"query": "a", "passages": ["a"], "weights": [0, 0, 0]}, 422),
        ({"query": "a", "passages": ["a"], "weights": [-1, 2, 2]}, 400),
        ({"query": "a", "passages": ["a"], "weights": [1, 0, 0], "outputs": ["sparse"]}, 422),
        ({"queries": ["a", "b"], "passages": ["a"], "explain": True}, 422),
        ({"query": "a", "passages": ["a"] * 2048}, 413),
    ],
)
def test_refused_scores(served: Served, body: dict[str, Any], status: int) -> None:
    answer = post(served, "/v1/m3/score", body)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("truncate", ["left", "right", "none", False])
def test_what_is_done_with_a_long_text(served: Served, model: M3, truncate: str | bool) -> None:
    text = "one two three four five six seven eight nine ten"
    body = {"inputs": [text], "max_length": 6, "truncate": truncate, "tokens": True}
    answer = post(served, "/v1/m3/embed", body)
    if truncate in ("none", False):
        assert answer.status_code == 422
        assert answer.json()["error"]["type"] == "too_long"
        return
    (item,) = answer.raise_for_status().json()["data"]
    ids = model.tokenize([text]).ids[0].tolist()
    kept = ids[:5] + ids[-1:] if truncate == "right" else ids[:1] + ids[-5:]
    assert item["tokens"] == [model.tokenizer.piece(i) for i in kept]
    assert item["truncated"]
