"""Cohere's requests by its own client, and those of rerankers, against the direct result."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import cohere
import httpx
import numpy as np
import pytest
from cohere.core.api_error import ApiError

from m3rt import M3, score
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import cohere as surface
from m3rt.types import Floats, Heads
from tests.served import Served

TEXTS = ["Grüße aus Köln", "東京は日本の首都です", "the quick brown fox", ""]
QUERY = "where does the quick fox live?"


@pytest.fixture(scope="module")
def dense(model: M3) -> Floats:
    """The dense vectors of TEXTS."""
    found = model.encode(TEXTS, Heads.DENSE).dense
    assert found is not None
    return found


@pytest.fixture(scope="module")
def client(served: Served) -> cohere.ClientV2:
    return cohere.ClientV2("key", base_url=served.url, max_retries=0)


def post(served: Served, path: str, body: Any) -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body)


def check_types(found: cohere.EmbedByTypeResponse, dense: Floats, model: M3) -> None:
    """Compare each type with the numbers that it stands for."""
    vectors = found.embeddings
    np.testing.assert_array_equal(np.array(vectors.float_, np.float32), dense)
    assert vectors.base64 is not None
    for text, row in zip(vectors.base64, dense, strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(text), "<f4"), row)
    bits = [
        [sum(128 >> i for i in range(8) if row[8 * b + i] > 0) for b in range(len(row) // 8)]
        for row in dense.tolist()
    ]
    assert vectors.ubinary == bits
    assert vectors.binary == [[byte - 128 for byte in row] for row in bits]
    assert found.texts == TEXTS
    assert found.id
    assert found.meta is not None
    assert found.meta.tokens is not None
    assert found.meta.tokens.input_tokens == model.encode(TEXTS).n_tokens.sum()


FORM: dict[str, Any] = {
    "model": "m",
    "input_type": "search_document",
    "embedding_types": ["float", "base64", "ubinary", "binary"],
}


def test_embed(client: cohere.ClientV2, dense: Floats, model: M3) -> None:
    check_types(client.embed(texts=TEXTS, **FORM), dense, model)


def test_embed_asynchronously(served: Served, dense: Floats, model: M3) -> None:
    async def ask() -> cohere.EmbedByTypeResponse:
        client = cohere.AsyncClientV2("key", base_url=served.url)
        return await client.embed(texts=TEXTS, **FORM)

    check_types(asyncio.run(ask()), dense, model)


def test_embed_inputs(client: cohere.ClientV2, dense: Floats) -> None:
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    found = client.embed(model="m", input_type="search_query", inputs=inputs)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.array(found.embeddings.float_, np.float32), dense)
    assert found.embeddings.base64 is None


def test_embed_in_the_first_version(served: Served, dense: Floats) -> None:
    client = cohere.Client("key", base_url=served.url)
    found = client.embed(texts=TEXTS, model="m", input_type="clustering")
    assert isinstance(found, cohere.EmbeddingsFloatsEmbedResponse)
    np.testing.assert_array_equal(np.array(found.embeddings, np.float32), dense)
    typed = client.embed(texts=TEXTS, model="m", embedding_types=["float"])
    assert isinstance(typed, cohere.EmbeddingsByTypeEmbedResponse)
    np.testing.assert_array_equal(np.array(typed.embeddings.float_, np.float32), dense)


@pytest.mark.parametrize(
    "form",
    [
        {"texts": []},
        {"texts": ["a"], "inputs": []},
        {"texts": ["a"] * 2049},
        {"images": ["data:image/png;base64,AAAA"]},
        {"texts": ["a"], "embedding_types": ["int8"]},
        {"texts": ["a"], "embedding_types": ["uint8", "float"]},
        {"texts": ["a"], "embedding_types": []},
        {"texts": ["a"], "output_dimension": 7},
        {"texts": ["a"], "max_tokens": 1},
        {"inputs": [{"content": []}]},
        {"inputs": [{"content": [{"type": "image_url"}]}]},
    ],
)
def test_refused_embed(client: cohere.ClientV2, form: dict[str, Any]) -> None:
    with pytest.raises(cohere.BadRequestError) as error:
        client.embed(model="m", input_type="search_query", **form)
    assert set(error.value.body) == {"message"}


@pytest.mark.parametrize("body", [{}, [], {"texts": "a"}, {"texts": [1]}, {"texts": None}])
def test_malformed_embed(served: Served, body: Any) -> None:
    for path in ("/v1/embed", "/v2/embed"):
        answer = post(served, path, body)
        assert answer.status_code == 400, answer.text
        assert set(answer.json()) == {"message"}


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_a_status(kind: Kind) -> None:
    reply = surface.shape(RefusedError(kind, "why"))
    assert json.loads(reply.body) == {"message": "why"}
    assert 400 <= reply.status < 600


def test_the_models_own_width_is_taken(client: cohere.ClientV2, model: M3) -> None:
    width = model.manifest.hidden
    found = client.embed(
        model="m", input_type="search_query", texts=["a"], output_dimension=width, priority=2
    )
    assert found.embeddings.float_ is not None
    assert len(found.embeddings.float_[0]) == width


@pytest.mark.parametrize("truncate", ["START", "END", "NONE"])
def test_truncation(served: Served, client: cohere.ClientV2, model: M3, truncate: Any) -> None:
    text = "one two three four five six seven eight nine ten"
    form: dict[str, Any] = {"model": "m", "input_type": "search_query", "max_tokens": 6}
    if truncate == "NONE":
        with pytest.raises(cohere.BadRequestError):
            client.embed(texts=[text], truncate=truncate, **form)
        return
    found = client.embed(texts=[text], truncate=truncate, **form)
    assert found.meta is not None
    assert found.meta.tokens is not None
    assert found.meta.tokens.input_tokens == 6
    ids = model.tokenize([text]).ids[0].tolist()
    cut = ids[:5] + ids[-1:] if truncate == "END" else ids[:1] + ids[-5:]
    answer = post(served, "/pooling", {"input": [cut], "task": "embed"}).raise_for_status()
    assert found.embeddings.float_ is not None
    assert answer.json()["data"][0]["data"] == found.embeddings.float_[0]


def test_rerank_by_the_client(client: cohere.ClientV2, served: Served, model: M3) -> None:
    expected = combined(model, QUERY, TEXTS, served.service.settings.weights)
    found = client.rerank(model="m", query=QUERY, documents=TEXTS, top_n=3)
    assert [item.index for item in found.results] == np.argsort(-expected)[:3].tolist()
    scores = [item.relevance_score for item in found.results]
    np.testing.assert_allclose(scores, np.sort(expected)[::-1][:3], atol=1e-6)

    async def ask() -> Any:
        mine = cohere.AsyncClientV2("key", base_url=served.url)
        return await mine.rerank(model="m", query=QUERY, documents=TEXTS, top_n=3)

    assert [item.index for item in asyncio.run(ask()).results] == [i.index for i in found.results]
    with pytest.raises(ApiError) as error:
        client.rerank(model="m", query=QUERY, documents=[])
    assert error.value.status_code == 400
    assert set(error.value.body) == {"message"}


def combined(model: M3, query: str, texts: list[str], weights: tuple[float, ...]) -> Any:
    """The weighted scores of texts."""
    found = score.matrix(model.encode([query]), model.encode(texts), score.Weights(*weights))
    return found.combined[0]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank(served: Served, model: M3, path: str) -> None:
    documents = [TEXTS[0], {"text": TEXTS[1]}, *TEXTS[2:]]
    answer = post(served, path, {"query": QUERY, "documents": documents, "model": "m"})
    content = answer.raise_for_status().json()
    expected = combined(model, QUERY, TEXTS, served.service.settings.weights)
    order = np.argsort(-expected)
    assert [item["index"] for item in content["results"]] == order.tolist()
    scores = [item["relevance_score"] for item in content["results"]]
    np.testing.assert_allclose(scores, expected[order], atol=1e-6)
    for item in content["results"]:
        assert item["document"] == {"text": TEXTS[item["index"]]}
    assert content["usage"]["total_tokens"] == model.encode([QUERY, *TEXTS]).n_tokens.sum()
    assert content["model"] == served.service.name
    assert content["id"]


def test_rerank_by_other_weights(served: Served, model: M3) -> None:
    body = {"query": {"text": QUERY}, "documents": TEXTS, "top_n": 2, "return_documents": False}
    answer = post(served, "/v1/rerank", {**body, "weights": [1, 0, 0], "priority": 1})
    results = answer.raise_for_status().json()["results"]
    queries, documents = model.encode([QUERY], Heads.DENSE), model.encode(TEXTS, Heads.DENSE)
    assert queries.dense is not None
    assert documents.dense is not None
    expected = score.dense(queries.dense, documents.dense)[0]
    assert [item["index"] for item in results] == np.argsort(-expected)[:2].tolist()
    assert results[0]["relevance_score"] == pytest.approx(expected.max(), abs=1e-6)
    assert all("document" not in item for item in results)


def test_equal_documents_keep_their_order(served: Served) -> None:
    body = {"query": QUERY, "documents": ["a fox", "b", "a fox", "b"], "top_n": 0}
    results = post(served, "/v1/rerank", body).raise_for_status().json()["results"]
    assert sorted(results, key=lambda r: (-r["relevance_score"], r["index"])) == results


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
@pytest.mark.parametrize(
    "body",
    [
        {"documents": ["a"]},
        {"query": "a"},
        {"query": "a", "documents": []},
        {"query": "a", "documents": [{"content": []}]},
        {"query": "a", "documents": ["a"], "top_n": -1},
        {"query": "a", "documents": ["a"], "weights": [0, 0, 0]},
        {"query": "a", "documents": ["a"], "weights": [0, 0]},
        {"query": ["a"], "documents": ["a"]},
        [],
    ],
)
def test_refused_rerank(served: Served, path: str, body: Any) -> None:
    answer = post(served, path, body)
    assert answer.status_code == 400, answer.text
    content = answer.json()
    told = content["message"] if path == "/v2/rerank" else content["error"]["message"]
    assert told


def test_texts_beside_documents_are_teis(served: Served) -> None:
    """Until TEI's half is there; then its own tests say more."""
    answer = post(served, "/rerank", {"query": "a", "texts": ["a"], "documents": ["b"]})
    if answer.status_code != 200:
        assert answer.status_code == 422
        assert set(answer.json()) == {"error", "error_type"}
