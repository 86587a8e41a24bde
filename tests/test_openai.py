"""OpenAI's requests, by OpenAI's clients and those built on them, against the direct result."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import SecretStr

from benchmarks.checkpoint import train_tokenizer
from m3rt import Heads
from m3rt.runtime import M3
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.service import Service
from m3rt.server.settings import Settings
from m3rt.server.work import Answer, Ask, Sender
from m3rt.types import Tokens, ragged
from tests import fake
from tests.served import Served, serving

TEXTS = ["Grüße aus Köln", "東京は日本の首都です", "the quick brown fox 😀"]
ROUTES = ("/v1/embeddings", "/embeddings")


class Refusing(Service):
    """Refuses for the reason that the first text names; any other is embedded at the second try."""

    tries = 0

    async def embed(self, ask: Ask, sender: Sender) -> Answer:
        if ask.inputs[0] in list(Kind):
            raise RefusedError(Kind(ask.inputs[0]), "no", retry_after=0.2)
        self.tries += 1
        if self.tries == 1:
            raise RefusedError(Kind.OVERLOADED, "too much to do", retry_after=0.2)
        return await super().embed(ask, sender)


@pytest.fixture(scope="module")
def refusing(model_dir: Path, model: M3) -> Iterator[Served]:
    with serving(Settings(model_dir), model, Refusing) as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Of 64 tokens at most, under a name with a slash; takes ids, refuses what is too long."""
    folder = tmp_path_factory.mktemp("model")
    train_tokenizer(folder)
    fake.write(folder)
    settings = Settings(folder, allow_token_ids=True, auto_truncate=False, max_client_batch_size=3)
    with serving(settings, fake.load(folder)) as found:
        yield found


def client(served: Served, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{served.url}/v1", api_key="none", **({"max_retries": 0} | options)
    )


def direct(served: Served, texts: list[str] = TEXTS) -> NDArray[np.float32]:
    dense = served.model.encode(texts, Heads.DENSE).dense
    assert dense is not None
    return dense


def of_ids(served: Served, ids: list[list[int]]) -> NDArray[np.float32]:
    rows = ragged([np.array(row, np.int32) for row in ids], np.int32)
    tokens = Tokens(rows, np.zeros(len(ids), np.bool_))
    dense = served.model.encode_tokens(tokens, Heads.DENSE).dense
    assert dense is not None
    return dense


def vectors(reply: Any) -> NDArray[np.float32]:
    assert [item.index for item in reply.data] == list(range(len(reply.data)))
    return np.array([item.embedding for item in reply.data], np.float32)


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": 64}])
def test_the_client_gets_the_direct_vectors(served: Served, options: dict[str, Any]) -> None:
    name = served.service.name
    reply = client(served).embeddings.create(model=name, input=TEXTS, **options)
    np.testing.assert_array_equal(vectors(reply), direct(served))
    tokens = int(served.model.tokenizer.lengths(TEXTS).sum())
    assert (reply.object, reply.model, reply.data[0].object) == ("list", name, "embedding")
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (tokens, tokens)


def test_one_text_alone(served: Served) -> None:
    reply = client(served).embeddings.create(model=served.service.name, input=TEXTS[0])
    np.testing.assert_array_equal(vectors(reply), direct(served, TEXTS[:1]))


def test_many_requests_of_the_async_client(served: Served) -> None:
    async def run() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as found:
            asks = [
                found.embeddings.create(model=served.service.name, input=text) for text in TEXTS
            ]
            return await asyncio.gather(*asks)

    found = np.concatenate([vectors(reply) for reply in asyncio.run(run())])
    np.testing.assert_allclose(found, direct(served), rtol=0, atol=1e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_the_answer_on_the_wire(served: Served, route: str) -> None:
    body = {"input": TEXTS, "encoding_format": "base64", "user": None, "extra": [1]}
    reply = httpx.post(served.url + route, json=body).raise_for_status()
    found = reply.json()
    assert set(found) == {"object", "data", "model", "usage"}
    assert [set(item) for item in found["data"]] == [{"object", "index", "embedding"}] * 3
    raw = [base64.b64decode(item["embedding"]) for item in found["data"]]
    assert raw == [row.astype("<f4").tobytes() for row in direct(served)]
    assert int(reply.headers["openai-processing-ms"]) >= 0
    assert "inference;dur=" in reply.headers["server-timing"]


@pytest.mark.parametrize(
    "extra",
    [
        {"task": "retrieval.query", "input_type": "query", "normalized": False},
        {"late_chunking": False, "return_multivector": False, "truncate": True},
        {"truncate_prompt_tokens": -1},
        {"truncate_prompt_tokens": 10**9},
    ],
)
def test_fields_of_others_that_change_nothing(served: Served, extra: dict[str, Any]) -> None:
    body = {"input": TEXTS, "embedding_type": "float"} | extra
    data = httpx.post(f"{served.url}/v1/embeddings", json=body).raise_for_status().json()["data"]
    np.testing.assert_array_equal(
        np.array([item["embedding"] for item in data], np.float32), direct(served)
    )


def test_truncation_to_some_tokens(served: Served) -> None:
    body = {"input": TEXTS, "truncate_prompt_tokens": 4}
    found = httpx.post(f"{served.url}/v1/embeddings", json=body).raise_for_status().json()
    expected = served.model.encode(TEXTS, Heads.DENSE, max_length=4).dense
    np.testing.assert_array_equal(
        np.array([item["embedding"] for item in found["data"]], np.float32), expected
    )
    assert found["usage"]["prompt_tokens"] == 12


def test_the_models(served: Served, small: Served) -> None:
    for found, name in ((served, served.service.name), (small, "fake/m3")):
        models = client(found).models
        (listed,) = models.list().data
        assert (listed.id, listed.object, listed.owned_by) == (name, "model", "m3rt")
        assert models.retrieve(name) == listed
        assert httpx.get(f"{found.url}/models/{name}").json()["max_model_len"] == (
            found.model.max_length
        )
        with pytest.raises(openai.NotFoundError) as error:
            models.retrieve("other")
        assert error.value.code == "model_not_found"


def test_the_checkpoint_s_name_is_known_beside_the_served_one(model_dir: Path, model: M3) -> None:
    with serving(Settings(model_dir, served_model_name="m3"), model) as found:
        for name in ("m3", model.manifest.source.checkpoint):
            assert client(found).embeddings.create(model=name, input="a").model == "m3"
        with pytest.raises(openai.NotFoundError, match="'m3'"):
            client(found).embeddings.create(model="text-embedding-3-small", input="a")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["a", None]}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"input": [[1, 2]]}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": "a", "dimensions": 32}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "extra_body": {"embedding_type": "ubinary"}}, "embedding_type"),
        ({"input": "a", "extra_body": {"late_chunking": True}}, "late_chunking"),
        ({"input": "a", "extra_body": {"return_multivector": True}}, "return_multivector"),
    ],
)
def test_what_is_refused(served: Served, options: dict[str, Any], param: str) -> None:
    options = {"encoding_format": "float"} | options
    with pytest.raises(openai.BadRequestError) as error:
        client(served).embeddings.create(model=served.service.name, **options)
    assert error.value.type == "invalid_request_error"
    if options["input"] != [[]]:  # which may be no ids, or no text
        assert error.value.param == param


def test_too_many_texts(small: Served) -> None:
    with pytest.raises(openai.BadRequestError, match=r"batch size 4 > .* 3") as error:
        client(small).embeddings.create(model="fake/m3", input=["a"] * 4)
    assert (error.value.param, error.value.code) == ("input", "array_above_max_length")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"input": "\\ud800"}', b"[" * 9999])
def test_what_is_no_json(served: Served, body: bytes) -> None:
    reply = httpx.post(f"{served.url}/v1/embeddings", content=body)
    assert reply.status_code == 400
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_an_error_has_the_request_s_id(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client(served, default_headers={"x-request-id": "mine"}).embeddings.create(
            model=served.service.name, input=""
        )
    assert error.value.request_id == "mine"
    with pytest.raises(openai.BadRequestError) as error:
        client(served).embeddings.create(model=served.service.name, input="")
    assert error.value.request_id


@pytest.mark.parametrize(
    ("kind", "expected", "code"),
    [
        (Kind.TOO_LONG, openai.BadRequestError, "context_length_exceeded"),
        (Kind.TOO_LARGE, openai.APIStatusError, None),
        (Kind.UNSUPPORTED, openai.BadRequestError, None),
        (Kind.TOKENIZER, openai.BadRequestError, None),
        (Kind.TOO_SLOW, openai.APIStatusError, None),
        (Kind.UNAUTHORISED, openai.AuthenticationError, "invalid_api_key"),
        (Kind.NOT_FOUND, openai.NotFoundError, "model_not_found"),
        (Kind.OVERLOADED, openai.RateLimitError, "rate_limit_exceeded"),
        (Kind.EXPIRED, openai.InternalServerError, "timeout"),
        (Kind.NOT_READY, openai.InternalServerError, "service_unavailable"),
        (Kind.FAILED, openai.InternalServerError, None),
    ],
)
def test_what_the_core_refuses(
    refusing: Served, kind: Kind, expected: type[openai.APIStatusError], code: str | None
) -> None:
    with pytest.raises(expected, match="no") as error:
        client(refusing).embeddings.create(model=refusing.service.name, input=kind.value)
    assert error.value.code == code
    assert ("retry-after" in error.value.response.headers) == (kind == Kind.OVERLOADED)


def test_the_client_tries_again_when_there_was_too_much_to_do(refusing: Served) -> None:
    found = client(refusing, max_retries=1)
    reply = found.embeddings.create(model=refusing.service.name, input=TEXTS)
    np.testing.assert_array_equal(vectors(reply), direct(refusing))
    assert isinstance(refusing.service, Refusing)
    assert refusing.service.tries == 2


def test_token_ids_are_taken_where_that_was_chosen(small: Served) -> None:
    bare = [5, 9, 7]
    whole = [[0, 5, 9, 7, 2], [0, 11, 2]]
    create = client(small).embeddings.create
    reply = create(model="fake/m3", input=bare)
    np.testing.assert_array_equal(vectors(reply), of_ids(small, whole[:1]))
    assert reply.usage.prompt_tokens == 5
    reply = create(model="fake/m3", input=whole)
    np.testing.assert_array_equal(vectors(reply), of_ids(small, whole))


@pytest.mark.parametrize("ids", [[-1], [10**5], [[5], [2**70]], [[5], []], [[5], [[6]]], [5, "a"]])
def test_ids_that_are_none_are_refused(small: Served, ids: list[Any]) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client(small).embeddings.create(model="fake/m3", input=ids)
    assert error.value.param == "input"


def test_what_is_too_long_is_refused_or_cut(small: Served) -> None:
    text = "train " * 90
    with pytest.raises(openai.BadRequestError) as error:
        client(small).embeddings.create(model="fake/m3", input=text)
    assert (error.value.code, error.value.param) == ("context_length_exceeded", "input")
    for extra in ({"truncate": True}, {"truncate_prompt_tokens": -1}):
        reply = client(small).embeddings.create(model="fake/m3", input=text, extra_body=extra)
        np.testing.assert_array_equal(vectors(reply), direct(small, [text]))


def langchain(served: Served, **options: Any) -> Any:
    from langchain_openai import OpenAIEmbeddings

    key = SecretStr("none")
    return OpenAIEmbeddings(
        model=served.service.name, base_url=f"{served.url}/v1", api_key=key, **options
    )


def test_langchain_sends_text_if_told_to(served: Served) -> None:
    found = langchain(served, check_embedding_ctx_length=False)
    np.testing.assert_array_equal(np.float32(found.embed_documents(TEXTS)), direct(served))
    query = asyncio.run(found.aembed_query(TEXTS[0]))
    np.testing.assert_array_equal(np.float32(query), direct(served, TEXTS[:1])[0])


def test_langchain_sends_foreign_ids_by_default_and_is_told(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken

    # Its own ranks are downloaded; any ranks show what is sent.
    ranks = {bytes([byte]): byte for byte in range(256)}
    local = tiktoken.Encoding("local", pat_str=r".+", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: local)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        langchain(served).embed_documents(TEXTS)


def test_mteb_evaluates_what_is_served(served: Served) -> None:
    from mteb.models import OpenAIAPIEncodeWrapper

    found = OpenAIAPIEncodeWrapper(served.url, served.service.name, use_chat_template=False)
    assert found.max_length == served.model.max_length
    batches = [{"text": TEXTS[:2]}, {"text": TEXTS[2:]}]
    encoded = found.encode(
        batches, task_metadata=None, hf_split="", hf_subset="", show_progress_bar=False
    )
    np.testing.assert_array_equal(encoded, direct(served))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.floats(width=32),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = (
    *("model", "encoding_format", "dimensions", "truncate_prompt_tokens", "truncate"),
    *("embedding_type", "late_chunking", "return_multivector", "inputs"),
)
BODIES = JSON | st.fixed_dictionaries(
    {"input": JSON | st.lists(st.text(min_size=1), min_size=1, max_size=3)},
    optional=dict.fromkeys(FIELDS, JSON),
)


def test_no_body_is_a_fault_of_the_server(served: Served, small: Served) -> None:
    with httpx.Client() as sender:

        @examples(max_examples=100, deadline=None)
        @given(st.sampled_from([served, small]), BODIES)
        def post(found: Served, body: Any) -> None:
            reply = sender.post(f"{found.url}/v1/embeddings", json=finite(body))
            assert reply.status_code in (200, 400, 404), reply.text
            assert ("error" in reply.json()) == (reply.status_code != 200)

        post()


def finite(body: Any) -> Any:
    """Replace what JSON cannot hold."""
    if isinstance(body, float):
        return body if math.isfinite(body) else 0.5
    if isinstance(body, list):
        return [finite(item) for item in body]
    return {k: finite(v) for k, v in body.items()} if isinstance(body, dict) else body
