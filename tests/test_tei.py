"""TEI's requests, bare and by the clients that send them, against the direct result."""

from __future__ import annotations

import asyncio
import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray

import m3rt
from benchmarks.checkpoint import train_tokenizer
from m3rt import Heads, InputError, score
from m3rt.runtime import M3
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http.tei_forms import shape
from m3rt.server.http.tei_tokens import placed
from m3rt.server.service import Service
from m3rt.server.settings import Settings
from m3rt.server.work import Answer, Ask, Sender
from m3rt.tokenizer import Tokenizer
from m3rt.types import Tokens, ragged
from tests import fake
from tests.served import Served, serving

TEXTS = ["Grüße aus Köln", "東京は日本の首都です", "the quick brown fox 😀"]
LONG = "train water Paris " * 40  # of more than 64 tokens
EMBEDS = ("/embed", "/embed_sparse", "/embed_all", "/", "/invocations")
TIMES = (
    "x-compute-time",
    "x-total-time",
    "x-tokenization-time",
    "x-queue-time",
    "x-inference-time",
)


class Refusing(Service):
    """Refuses for the reason that the first text names; is not ready."""

    async def embed(self, ask: Ask, sender: Sender) -> Answer:
        assert isinstance(ask.inputs[0], str)
        raise RefusedError(Kind(ask.inputs[0]), "no", retry_after=2.4)

    @property
    def ready(self) -> bool:
        return False


@pytest.fixture(scope="module")
def refusing(model_dir: Path, model: M3) -> Iterator[Served]:
    with serving(Settings(model_dir), model, Refusing) as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Of 64 tokens at most and a dense head only; refuses what is too long."""
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer(folder)
    fake.write(folder, Heads.DENSE)
    settings = Settings(
        folder,
        served_model_name="m3",
        auto_truncate=False,
        max_client_batch_size=3,
        max_request_tokens=1000,
    )
    with serving(settings, fake.load(folder)) as found:
        yield found


def post(served: Served, path: str, **body: Any) -> httpx.Response:
    return httpx.post(served.url + path, json=body)


def got(served: Served, path: str, **body: Any) -> Any:
    return post(served, path, **body).raise_for_status().json()


def refused(reply: httpx.Response) -> tuple[int, str]:
    error = reply.json()
    assert set(error) == {"error", "error_type"}
    return reply.status_code, error["error_type"]


def floats(values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def direct(served: Served, texts: list[str] = TEXTS) -> NDArray[np.float32]:
    """Only the dense vectors: an engine that computes more may round apart."""
    dense = served.model.encode(texts, Heads.DENSE).dense
    assert dense is not None
    return dense


def of_ids(model: M3, ids: list[list[int]]) -> NDArray[np.float32]:
    rows = ragged([np.array(row, np.int32) for row in ids], np.int32)
    tokens = Tokens(rows, np.zeros(len(ids), np.bool_))
    dense = model.encode_tokens(tokens, Heads.DENSE).dense
    assert dense is not None
    return dense


@pytest.mark.parametrize("path", ["/embed", "/", "/invocations"])
@pytest.mark.parametrize("extra", [{}, {"normalize": False}, {"truncate": True}, {"unknown": 1}])
def test_dense_vectors(served: Served, path: str, extra: dict[str, Any]) -> None:
    dense = direct(served)
    np.testing.assert_array_equal(floats(got(served, path, inputs=TEXTS, **extra)), dense)
    one = direct(served, TEXTS[:1])
    np.testing.assert_array_equal(floats(got(served, path, inputs=TEXTS[0], **extra)), one)


@pytest.mark.parametrize("dimensions", [1, 16, 64])
def test_dense_vectors_of_fewer_dimensions(served: Served, dimensions: int) -> None:
    dense = direct(served)
    kept = dense[:, :dimensions]
    raw = got(served, "/embed", inputs=TEXTS, dimensions=dimensions, normalize=False)
    np.testing.assert_array_equal(floats(raw), kept)
    unit = floats(got(served, "/embed", inputs=TEXTS, dimensions=dimensions))
    expected = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected, rtol=0, atol=1e-6)


def test_lexical_weights(served: Served) -> None:
    sparse = served.model.encode(TEXTS, Heads.SPARSE).sparse
    assert sparse is not None
    found = got(served, "/embed_sparse", inputs=TEXTS)
    assert len(found) == 3
    for row, items in enumerate(found):
        assert [item["index"] for item in items] == sparse.ids[row].tolist()
        np.testing.assert_array_equal(floats([i["value"] for i in items]), sparse.weights[row])
    text = post(served, "/embed_sparse", inputs=TEXTS[0]).text
    assert len(text) < 45 * len(found[0])  # float32's digits, not float64's


def test_colbert_vectors(served: Served) -> None:
    colbert = served.model.encode(TEXTS, Heads.COLBERT).colbert
    assert colbert is not None
    found = got(served, "/embed_all", inputs=TEXTS)
    for vectors, expected in zip(found, colbert, strict=True):
        np.testing.assert_array_equal(floats(vectors), expected)


@pytest.mark.parametrize("path", ["/similarity", "/"])
def test_similarity(served: Served, path: str) -> None:
    dense = direct(served)
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}
    found = got(served, path, inputs=inputs, parameters={"truncate": True})
    np.testing.assert_allclose(floats(found), dense[1:] @ dense[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", EMBEDS)
def test_the_headers_tell_where_time_went(served: Served, path: str) -> None:
    reply = post(served, path, inputs=TEXTS).raise_for_status()
    assert reply.headers["x-compute-type"] == "cpu+optimized"
    assert int(reply.headers["x-compute-characters"]) == sum(map(len, TEXTS))
    tokens = int(served.model.tokenizer.lengths(TEXTS).sum())
    assert int(reply.headers["x-compute-tokens"]) == tokens
    assert all(int(reply.headers[name]) >= 0 for name in TIMES)
    parts = dict(part.split(";dur=") for part in reply.headers["server-timing"].split(", "))
    assert list(parts) == ["tokenize", "queue", "inference", "total"]
    assert 0 < float(parts["inference"]) <= float(parts["total"])


def ranked(served: Served, **body: Any) -> Any:
    return post(served, "/rerank", **body).raise_for_status().json()


@pytest.mark.parametrize("raw", [False, True])
def test_reranking_is_by_the_weighted_scores(served: Served, raw: bool) -> None:
    query, texts = "東京", [*TEXTS, TEXTS[1]]
    left, right = served.model.encode([query]), served.model.encode(texts)
    scores = score.matrix(left, right, score.Weights(0.4, 0.2, 0.4)).combined[0]
    found = ranked(served, query=query, texts=texts, raw_scores=raw)
    assert [item["index"] for item in found] == np.argsort(-scores, kind="stable").tolist()
    np.testing.assert_allclose(
        [item["score"] for item in found], sorted(scores, reverse=True), rtol=0, atol=1e-6
    )
    assert all(set(item) == {"index", "score"} for item in found)
    found = ranked(served, query=query, texts=texts, return_text=True)
    assert [item["text"] for item in found] == [texts[item["index"]] for item in found]


def test_reranking_by_the_only_head(small: Served) -> None:
    dense = direct(small)
    found = ranked(small, query=TEXTS[0], texts=TEXTS)
    assert found[0]["index"] == 0
    np.testing.assert_allclose(
        [item["score"] for item in found], sorted(dense @ dense[0])[::-1], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("query", "texts", "status", "kind"),
    [
        ("a", [], 400, "Empty"),
        ("", ["a", ""], 400, "Empty"),
        ("a", ["a"] * 4, 422, "Validation"),
        ("a", [1], 422, "Validation"),
    ],
)
def test_what_reranking_refuses(
    small: Served, query: str, texts: list[Any], status: int, kind: str
) -> None:
    reply = post(small, "/rerank", query=query, texts=texts)
    assert reply.status_code == status
    assert reply.json()["error_type"] == kind


@pytest.mark.parametrize("path", ["/embed", "/"])
def test_token_ids(served: Served, path: str) -> None:
    bare, whole = [5, 9, 7], [0, 11, 2]
    expected = of_ids(served.model, [[0, *bare, 2], whole])
    found = got(served, path, inputs=[bare, whole])
    np.testing.assert_array_equal(floats(found), expected)
    reply = post(served, path, inputs=bare).raise_for_status()
    np.testing.assert_allclose(floats(reply.json()), expected[:1], rtol=0, atol=1e-6)
    assert reply.headers["x-compute-characters"] == "3"  # TEI counts ids
    mixed = got(served, path, inputs=[bare, TEXTS[0]])
    text = direct(served, TEXTS[:1])[0]
    np.testing.assert_allclose(floats(mixed)[1], text, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [None, "right", "Right", "left", "Left"])
def test_a_long_text_is_cut_at_the_side_that_was_asked_for(small: Served, side: str | None) -> None:
    ids = small.model.tokenizer([LONG], 1000).ids[0].tolist()
    kept = [0, *ids[-63:]] if side in ("left", "Left") else [*ids[:63], 2]
    assert len(ids) > 64 == len(kept)
    extra = {"truncation_direction": side} if side else {}
    found = got(small, "/embed", inputs=LONG, truncate=True, **extra)
    np.testing.assert_array_equal(floats(found), of_ids(small.model, [kept]))


@pytest.mark.parametrize("truncate", [None, False])
def test_a_long_text_is_refused_where_it_is_not_to_be_cut(
    small: Served, truncate: bool | None
) -> None:
    assert refused(post(small, "/embed", inputs=LONG, truncate=truncate)) == (422, "Validation")


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/embed", {"inputs": []}, (400, "Empty")),
        ("/embed", {"inputs": ""}, (400, "Empty")),
        ("/embed", {"inputs": ["a", ""]}, (400, "Empty")),
        ("/embed", {"inputs": [[]]}, (400, "Empty")),
        ("/embed", {"inputs": [[0], []]}, (400, "Empty")),
        ("/embed", {"inputs": ["a"] * 4}, (422, "Validation")),
        ("/embed", {"inputs": [1, "a"]}, (422, "Validation")),
        ("/embed", {"inputs": ["a", 1]}, (422, "Validation")),
        ("/embed", {"inputs": [-1]}, (422, "Validation")),
        ("/embed", {"inputs": [10**6]}, (422, "Validation")),
        ("/embed", {"inputs": [[1], [2**80]]}, (422, "Validation")),
        ("/embed", {"inputs": [1.5]}, (422, "Validation")),
        ("/embed", {"inputs": None}, (422, "Validation")),
        ("/embed", {}, (422, "Validation")),
        ("/embed", {"inputs": "a", "prompt_name": "query"}, (422, "Validation")),
        ("/embed", {"inputs": "a", "dimensions": 0}, (422, "Validation")),
        ("/embed", {"inputs": "a", "dimensions": 5}, (422, "Validation")),
        ("/embed", {"inputs": "a", "dimensions": -1}, (422, "Validation")),
        ("/embed", {"inputs": "a", "truncation_direction": "up"}, (422, "Validation")),
        ("/embed_sparse", {"inputs": "a"}, (424, "Backend")),  # the model has no such head
        ("/embed_all", {"inputs": "a"}, (424, "Backend")),
        ("/", {"inputs": {"source_sentence": "a"}}, (422, "Validation")),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, (400, "Empty")),
        (
            "/similarity",  # TEI counts the source
            {"inputs": {"source_sentence": "a", "sentences": ["a"] * 3}},
            (422, "Validation"),
        ),
        ("/similarity", {"inputs": "a"}, (422, "Validation")),
        ("/predict", {"inputs": "a"}, (424, "Backend")),
        ("/predict", {"inputs": [["a", "b"]]}, (424, "Backend")),
        ("/predict", {"inputs": 3}, (422, "Validation")),
        ("/tokenize", {"inputs": []}, (400, "Empty")),
        ("/tokenize", {"inputs": ["a", ""]}, (400, "Empty")),
        ("/tokenize", {"inputs": ["a"] * 4}, (422, "Validation")),
        ("/tokenize", {"inputs": [1]}, (422, "Validation")),
        ("/tokenize", {"inputs": "a", "prompt_name": ""}, (422, "Validation")),
        ("/tokenize", {"inputs": "a" * (64 * 250 + 1)}, (422, "Validation")),
        ("/tokenize", {"inputs": ["train " * 500] * 3}, (413, "Validation")),
        ("/decode", {"ids": []}, (400, "Empty")),
        ("/decode", {"ids": [[0], []]}, (400, "Empty")),
        ("/decode", {"ids": [[0]] * 4}, (422, "Validation")),
        ("/decode", {"ids": [[0], 0]}, (422, "Validation")),
        ("/decode", {"ids": [0, [0]]}, (422, "Validation")),
        ("/decode", {"ids": [-1]}, (422, "Validation")),
        ("/decode", {"ids": "a"}, (422, "Validation")),
    ],
)
def test_what_is_refused(
    small: Served, path: str, body: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert refused(post(small, path, **body)) == expected


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"inputs": "\\ud800"}'])
def test_what_is_no_json(served: Served, body: bytes) -> None:
    assert refused(httpx.post(f"{served.url}/embed", content=body)) == (400, "Validation")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.TOO_LONG, (422, "Validation")),
        (Kind.INVALID, (422, "Validation")),
        (Kind.TOO_LARGE, (413, "Validation")),
        (Kind.TOO_SLOW, (408, "Validation")),
        (Kind.UNSUPPORTED, (424, "Backend")),
        (Kind.OVERLOADED, (429, "Overloaded")),
        (Kind.EXPIRED, (504, "Overloaded")),
        (Kind.NOT_READY, (503, "Unhealthy")),
        (Kind.FAILED, (424, "Backend")),
        (Kind.TOKENIZER, (422, "Tokenizer")),
    ],
)
def test_what_the_core_refuses(refusing: Served, kind: Kind, expected: tuple[int, str]) -> None:
    reply = post(refusing, "/embed", inputs=kind.value)
    assert refused(reply) == expected
    assert reply.json()["error"] == "no"
    assert reply.headers.get("retry-after") == ("2" if kind == Kind.OVERLOADED else None)


def test_every_kind_has_its_words() -> None:
    for kind in Kind:
        assert 400 <= shape(RefusedError(kind, "no")).status < 600
    assert shape(RefusedError(Kind.UNAUTHORISED, "no")).body == b""


def test_health(served: Served, refusing: Served) -> None:
    for path in ("/health", "/ping"):
        reply = httpx.get(served.url + path)
        assert (reply.status_code, reply.content) == (200, b"")
        reply = httpx.get(refusing.url + path)
        assert refused(reply) == (503, "Unhealthy")
        assert reply.json()["error"] == "unhealthy"


def test_info(small: Served) -> None:
    found = httpx.get(f"{small.url}/info").json()
    assert found.pop("tokenization_workers") >= 1
    assert found == {
        "model_id": "fake/m3",
        "model_sha": "0123abc",
        "model_dtype": "float32",
        "served_model_name": "m3",
        "model_type": {"embedding": {"pooling": "cls"}},
        "max_concurrent_requests": 3,
        "max_input_length": 64,
        "max_batch_tokens": 32,
        "max_batch_requests": None,
        "max_client_batch_size": 3,
        "auto_truncate": False,
        "version": m3rt.__version__,
        "sha": None,
        "docker_label": None,
    }


def test_tokens_are_those_of_tei_s_own_test(data: Path) -> None:
    tokenizer = Tokenizer.from_file(data / "tokenizer" / "tokenizer.json")
    text = "这是一个文本向量化的测试句子"
    (found,) = tokenizer.located([text])
    tokens = list(placed(text, found))
    special = {"special": True, "start": None, "stop": None}
    assert tokens[0] == {"id": 0, "text": "<s>"} | special
    assert tokens[-1] == {"id": 2, "text": "</s>"} | special
    assert [tuple(token.values()) for token in tokens[1:-1]] == [
        (6, "这", False, 0, 3),
        (100013, "这是一个", False, 0, 12),
        (189061, "文本", False, 12, 18),
        (2110, "向", False, 18, 21),
        (3272, "量", False, 21, 24),
        (41904, "化的", False, 24, 30),
        (49125, "测试", False, 30, 36),
        (27683, "句", False, 36, 39),
        (1344, "子", False, 39, 42),
    ]


def test_what_has_no_tokens(served: Served) -> None:
    for texts, found in ((["a", "b \ud83d"], "text 1 holds a lone surrogate"), ([3], "is int")):
        with pytest.raises(InputError, match=found):
            list(served.model.tokenizer.located(texts))  # type: ignore[arg-type]


@pytest.mark.parametrize("special", [None, True, False])
def test_tokens(served: Served, special: bool | None) -> None:
    texts = [*TEXTS, "plain words <s>", "train " * 5000]
    extra = {} if special is None else {"add_special_tokens": special}
    found = got(served, "/tokenize", inputs=texts, **extra)
    whole = [row.tolist() for row in served.model.tokenizer(texts, 10**6).ids]
    for text, expected, row in zip(texts, whole, found, strict=True):
        ids = [token["id"] for token in row]
        assert ids == (expected[1:-1] if special is False else expected)
        places = [i for i, token in enumerate(row) if token["special"]]
        assert places == ([] if special is False else [0, len(row) - 1])
        for token in (token for token in row if not token["special"]):
            part = text.encode()[token["start"] : token["stop"]]
            assert part.decode() == token["text"]
    assert got(served, "/tokenize", inputs=texts[0], **extra) == found[:1]


def test_decode(served: Served) -> None:
    ids = [row.tolist() for row in served.model.tokenizer(["the train", "Paris"], 99).ids]
    assert got(served, "/decode", ids=ids) == ["the train", "Paris"]
    assert got(served, "/decode", ids=ids[0]) == ["the train"]
    found = got(served, "/decode", ids=ids, skip_special_tokens=False)
    assert found == [served.model.tokenizer.decode(row) for row in ids]
    assert found[0].startswith("<s>")


def test_hugging_face_s_client(served: Served) -> None:
    client = InferenceClient(model=served.url)
    dense = direct(served)
    found = client.feature_extraction(
        TEXTS[0], normalize=True, truncate=True, truncation_direction="Right"
    )
    np.testing.assert_allclose(found, dense[:1], rtol=0, atol=1e-6)
    many: Any = TEXTS  # its type says one text; its documents, a list
    np.testing.assert_array_equal(client.feature_extraction(many), dense)
    scores = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:])
    np.testing.assert_allclose(scores, dense[1:] @ dense[0], rtol=0, atol=1e-6)
    with pytest.raises(HfHubHTTPError, match="422"):
        client.feature_extraction(TEXTS[0], prompt_name="query")


def test_llama_index_s_client(served: Served) -> None:
    module = importlib.import_module("llama_index.embeddings.text_embeddings_inference")
    client = module.TextEmbeddingsInference(model_name=served.service.name, base_url=served.url)
    dense = direct(served)
    np.testing.assert_array_equal(floats(client.get_text_embedding_batch(TEXTS)), dense)
    query = floats(client.get_query_embedding(TEXTS[0]))
    np.testing.assert_allclose(query, dense[0], rtol=0, atol=1e-6)
    found = asyncio.run(client.aget_text_embedding_batch(TEXTS))
    np.testing.assert_array_equal(floats(found), dense)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.floats(width=32),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
GIVEN = JSON | st.lists(st.text(min_size=1) | st.integers(0, 3), min_size=1, max_size=3)
NAMES = (
    *("truncate", "truncation_direction", "prompt_name", "normalize", "dimensions", "parameters"),
    *("add_special_tokens", "skip_special_tokens", "raw_scores"),
)
BODIES = JSON | st.fixed_dictionaries(
    {"inputs": GIVEN | st.fixed_dictionaries({"source_sentence": JSON, "sentences": GIVEN})},
    optional=dict.fromkeys(NAMES, JSON),
)
PATHS = (*EMBEDS, "/similarity", "/predict", "/tokenize", "/decode")


def test_no_body_is_a_fault_of_the_server(served: Served) -> None:
    with httpx.Client() as sender:

        @examples(max_examples=200, deadline=None)
        @given(st.sampled_from(PATHS), BODIES)
        def send(path: str, body: Any) -> None:
            if path == "/decode" and isinstance(body, dict) and "inputs" in body:
                body = body | {"ids": body["inputs"]}
            reply = sender.post(served.url + path, json=finite(body))
            if reply.status_code != 200:  # 424 is what TEI says of a failure, too
                expected = (400, 422, 424) if path == "/predict" else (400, 422)
                assert refused(reply)[0] in expected, reply.text

        send()


def finite(body: Any) -> Any:
    """Replace what JSON cannot hold."""
    if isinstance(body, float):
        return body if math.isfinite(body) else 0.5
    if isinstance(body, list):
        return [finite(item) for item in body]
    return {k: finite(v) for k, v in body.items()} if isinstance(body, dict) else body
