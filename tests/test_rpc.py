"""gRPC: tei.v1 by stubs made from its protos, OIP by Triton's client, against the direct result."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import trustme
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import proto_reflection_descriptor_database as reflection
from grpc_tools import protoc
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

import m3rt
from m3rt import M3, Heads, UnavailableError, score
from m3rt.server.faults import Kind
from m3rt.server.rpc import messages, oip, server, tei
from m3rt.server.settings import Settings
from m3rt.server.work import Cut, Lane
from tests.called import Called, calling, close, refused, until
from tests.watched import REFUSE, WAIT

TEXTS = ["Grüße aus Köln", "東京は日本の首都です", "the quick brown fox", "a\0b 😀"]
PROTOS = Path(tei.__file__).parent / "protos"
SERVICES = {"tei.v1.Info", "tei.v1.Embed", "tei.v1.Rerank", "tei.v1.Tokenize", "tei.v1.Predict"}
MOST = 1 << 18  # bytes of a message
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def settings(model_dir: Path) -> Settings:
    return Settings(model_dir, max_body_bytes=MOST, request_timeout=30.0)


@pytest.fixture(scope="module")
def called(model: M3, settings: Settings) -> Iterator[Called]:
    with calling(model, settings) as found:
        yield found


@dataclass(frozen=True, slots=True)
class Stubs:
    """What a client makes of the protos."""

    pb: Any
    rpc: Any


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stubs]:
    folder = str(tmp_path_factory.mktemp("stubs"))
    out = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    assert protoc.main(["", f"-I{PROTOS}", *out, "tei.proto"]) == 0
    sys.path.insert(0, folder)
    yield Stubs(importlib.import_module("tei_pb2"), importlib.import_module("tei_pb2_grpc"))
    sys.path.remove(folder)


def request(stubs: Stubs, text: str, form: str = "EmbedRequest", **more: Any) -> Any:
    return getattr(stubs.pb, form)(inputs=text, **{"truncate": True} | more)


# the files


def test_the_messages_are_made_from_the_protos(tmp_path: Path) -> None:
    out = tmp_path / "protos.binpb"
    files = [path.name for path in sorted(PROTOS.glob("*.proto"))]
    assert protoc.main(["", f"-I{PROTOS}", f"--descriptor_set_out={out}", *files]) == 0
    made, kept = (
        descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes()).file
        for path in (out, PROTOS.parent / "protos.binpb")
    )
    assert list(made) == list(kept)


def test_numbers_are_written_as_protobuf_writes_them() -> None:
    rng = np.random.default_rng(0)
    for width in (1, 31, 32, 33, 1024, 5000):
        values = rng.standard_normal((3, width), np.float32)
        found = messages.kind("tei.v1.EmbedResponse").FromString(messages.floats(1, values[0]))
        np.testing.assert_array_equal(np.float32(found.embeddings), values[0])
        assert found.SerializeToString() == messages.floats(1, values[0])
        found = messages.kind("tei.v1.EmbedAllResponse").FromString(messages.rows(1, values))
        got = [row.embeddings for row in found.token_embeddings]
        np.testing.assert_array_equal(np.array(got, np.float32), values)
        assert found.SerializeToString() == messages.rows(1, values)


# tei.v1


def test_info(called: Called, stubs: Stubs) -> None:
    found = stubs.rpc.InfoStub(called.channel).Info(stubs.pb.InfoRequest())
    assert (found.version, found.model_id) == (m3rt.__version__, called.service.name)
    assert found.model_type == stubs.pb.MODEL_TYPE_EMBEDDING
    assert found.max_input_length == called.service.model.max_length
    assert found.max_client_batch_size == called.service.settings.max_client_batch_size
    assert found.model_dtype == "float32"


def test_every_head_is_the_direct_result(called: Called, stubs: Stubs, model: M3) -> None:
    stub = stubs.rpc.EmbedStub(called.channel)
    for text in TEXTS:
        direct = model.encode([text])
        assert direct.dense is not None
        assert direct.sparse is not None
        assert direct.colbert is not None
        dense = stub.Embed(request(stubs, text))
        close(dense.embeddings, direct.dense[0])
        assert called.last()[0].heads == Heads.DENSE
        sparse = stub.EmbedSparse(request(stubs, text, "EmbedSparseRequest"))
        assert [one.index for one in sparse.sparse_embeddings] == list(direct.sparse[0])
        close([one.value for one in sparse.sparse_embeddings], list(direct.sparse[0].values()))
        assert called.last()[0].heads == Heads.SPARSE
        every = stub.EmbedAll(request(stubs, text, "EmbedAllRequest"))
        close([one.embeddings for one in every.token_embeddings], direct.colbert[0])
        assert called.last()[0].heads == Heads.COLBERT
        for found in (dense, sparse, every):
            assert found.metadata.compute_tokens == direct.n_tokens[0]
            assert found.metadata.compute_chars == len(text)
            assert found.metadata.total_time_ns > 0


def test_dimensions(called: Called, stubs: Stubs, model: M3) -> None:
    stub = stubs.rpc.EmbedStub(called.channel)
    dense = model.encode(TEXTS[:1]).dense
    assert dense is not None
    first = dense[0, :8]
    found = stub.Embed(request(stubs, TEXTS[0], dimensions=8))
    close(found.embeddings, first / np.linalg.norm(first))
    found = stub.Embed(request(stubs, TEXTS[0], dimensions=8, normalize=False))
    close(found.embeddings, first)


def test_long_texts_are_cut_only_if_that_is_asked_for(called: Called, stubs: Stubs) -> None:
    stub = stubs.rpc.EmbedStub(called.channel)
    left = stubs.pb.TRUNCATION_DIRECTION_LEFT
    for more, cut in (
        ({}, Cut.RIGHT),
        ({"truncation_direction": left}, Cut.LEFT),
        ({"truncate": False}, Cut.NONE),
    ):
        stub.Embed(request(stubs, "a text", **more))
        assert called.last()[0].cut == cut


@pytest.mark.parametrize(
    "more",
    [
        {"text": ""},
        {"prompt_name": "query"},
        {"dimensions": 0},
        {"dimensions": 65},
        {"truncation_direction": 7},
    ],
)
def test_wrong_requests(called: Called, stubs: Stubs, more: dict[str, Any]) -> None:
    stub = stubs.rpc.EmbedStub(called.channel)
    error = refused(lambda: stub.Embed(request(stubs, **{"text": "a text"} | more)))
    assert error.code() == Code.INVALID_ARGUMENT
    assert "a text" not in error.details()


@pytest.mark.parametrize("kind", list(Kind))
def test_every_refusal_has_its_status(called: Called, stubs: Stubs, kind: Kind) -> None:
    stub = stubs.rpc.EmbedStub(called.channel)
    error = refused(lambda: stub.Embed(request(stubs, REFUSE + kind)))
    assert error.code() == tei.CODES[kind]
    after = dict(error.trailing_metadata())
    assert len(after["x-request-id"]) == 32
    if kind == Kind.OVERLOADED:
        assert (after["retry-after"], after["grpc-retry-pushback-ms"]) == ("3", "2500")
    else:
        assert not {"retry-after", "grpc-retry-pushback-ms"} & set(after)


def test_classes_are_refused(called: Called, stubs: Stubs) -> None:
    stub = stubs.rpc.PredictStub(called.channel)
    pair = stubs.pb.PredictPairRequest(inputs=["a", "b"])
    for call in (
        lambda: stub.Predict(stubs.pb.PredictRequest(inputs="a")),
        lambda: stub.PredictPair(pair),
        lambda: list(stub.PredictPairStream(iter([pair]))),
    ):
        error = refused(call)
        assert error.code() == Code.FAILED_PRECONDITION
        assert "not a classifier" in error.details()


def test_rerank(called: Called, stubs: Stubs, model: M3) -> None:
    stub = stubs.rpc.RerankStub(called.channel)
    texts = [*TEXTS, TEXTS[0]]
    query = "the brown fox"
    found = stub.Rerank(stubs.pb.RerankRequest(query=query, texts=texts, return_text=True))
    direct = model.encode([query, *texts])
    weights = score.Weights(*called.service.settings.weights)
    want = score.matrix(direct.take([0]), direct.take(range(1, 6)), weights).combined[0]
    order = np.argsort(-want, kind="stable").tolist()
    assert [rank.index for rank in found.ranks] == order
    assert [rank.text for rank in found.ranks] == [texts[row] for row in order]
    close([rank.score for rank in found.ranks], want[order])
    assert found.metadata.compute_tokens == direct.n_tokens.sum()

    pairs = [
        stubs.pb.RerankStreamRequest(query=query, text=text, return_text=row < 2)
        for row, text in enumerate(texts)
    ]
    streamed = stub.RerankStream(iter(pairs))
    got = {rank.index: rank for rank in streamed.ranks}
    assert [rank.score for rank in streamed.ranks] == sorted(
        (rank.score for rank in streamed.ranks), reverse=True
    )
    for row, text in enumerate(texts):
        close(got[row].score, want[row])
        assert got[row].HasField("text") == (row < 2)
        assert got[row].text == (text if row < 2 else "")


@pytest.mark.parametrize(
    ("texts", "message"),
    [([], "`texts` cannot be empty"), (["a"] * 2049, "batch size 2049 > maximum allowed")],
)
def test_wrong_reranks(called: Called, stubs: Stubs, texts: list[str], message: str) -> None:
    stub = stubs.rpc.RerankStub(called.channel)
    error = refused(lambda: stub.Rerank(stubs.pb.RerankRequest(query="q", texts=texts)))
    assert error.code() == Code.INVALID_ARGUMENT
    assert message in error.details()
    error = refused(lambda: stub.RerankStream(iter([])))
    assert error.code() == Code.INVALID_ARGUMENT


def test_a_stream_to_rerank_holds_no_more_than_a_request(called: Called, stubs: Stubs) -> None:
    large = " " * (MOST // 12) + "x"
    pairs = [stubs.pb.RerankStreamRequest(query="q", text=large, truncate=True, return_text=True)]
    stub = stubs.rpc.RerankStub(called.channel)
    assert len(stub.RerankStream(iter(pairs * 2)).ranks) == 2
    error = refused(lambda: stub.RerankStream(iter(pairs * 4)))
    assert error.code() == Code.INVALID_ARGUMENT
    assert "which are the most taken" in error.details()


@pytest.mark.parametrize("special", [False, True])
def test_tokens_and_their_places(called: Called, stubs: Stubs, model: M3, special: bool) -> None:
    stub = stubs.rpc.TokenizeStub(called.channel)
    for text in TEXTS:
        found = stub.Tokenize(stubs.pb.EncodeRequest(inputs=text, add_special_tokens=special))
        ids = [one.id for one in found.tokens]
        whole = model.tokenize([text]).ids[0].tolist()
        assert ids == (whole if special else whole[1:-1])
        for one in found.tokens:
            assert one.special == (one.id in (whole[0], whole[-1]))
            assert one.HasField("start") == one.HasField("stop") == (not one.special)
            if not one.special:
                assert text.encode()[one.start : one.stop].decode() == one.text
        for skip in (False, True):
            back = stub.Decode(stubs.pb.DecodeRequest(ids=ids, skip_special_tokens=skip))
            assert back.text == model.tokenizer.decode(ids, skip)


def test_wrong_tokens(called: Called, stubs: Stubs) -> None:
    stub, pb = stubs.rpc.TokenizeStub(called.channel), stubs.pb
    for call in (
        lambda: stub.Tokenize(pb.EncodeRequest(inputs="")),
        lambda: stub.Tokenize(pb.EncodeRequest(inputs="a", prompt_name="query")),
        lambda: stub.Decode(pb.DecodeRequest(ids=[])),
        lambda: stub.Decode(pb.DecodeRequest(ids=[2**32 - 1])),
    ):
        assert refused(call).code() == Code.INVALID_ARGUMENT


# streams


def test_streams_answer_in_order_and_work_together(called: Called, stubs: Stubs, model: M3) -> None:
    stub = stubs.rpc.EmbedStub(called.channel)
    texts = [f"number {i} " * (1 + i * 7 % 5) for i in range(200)]
    direct = model.encode(texts)
    assert direct.dense is not None
    assert direct.sparse is not None
    called.service.most_at_work = 0
    found = list(stub.EmbedStream(request(stubs, text) for text in texts))
    close([one.embeddings for one in found], direct.dense)
    assert 2 < called.service.most_at_work <= tei.PARALLEL
    lanes = [sender.lane for _, sender in called.service.asks[-200:]]
    most = called.service.settings.interactive_texts
    assert lanes == [None] * most + [Lane.BULK] * (200 - most)
    sparse = list(
        stub.EmbedSparseStream(request(stubs, text, "EmbedSparseRequest") for text in texts)
    )
    for row, one in enumerate(sparse):
        assert {i.index for i in one.sparse_embeddings} == direct.sparse[row].keys()
    called.service.most_at_work = 0
    every = list(
        stub.EmbedAllStream(request(stubs, text, "EmbedAllRequest") for text in texts[:40])
    )
    assert [len(one.token_embeddings) for one in every] == (direct.n_tokens[:40] - 1).tolist()
    assert called.service.most_at_work <= tei.LARGE


def test_a_stream_of_requests_for_tokens(called: Called, stubs: Stubs) -> None:
    stub, pb = stubs.rpc.TokenizeStub(called.channel), stubs.pb
    found = list(stub.TokenizeStream(pb.EncodeRequest(inputs=text) for text in TEXTS))
    assert [one.tokens[0].text for one in found] == [
        stub.Tokenize(pb.EncodeRequest(inputs=text)).tokens[0].text for text in TEXTS
    ]
    ids = ([token.id for token in one.tokens] for one in found)
    back = list(stub.DecodeStream(pb.DecodeRequest(ids=row) for row in ids))
    assert len(back) == len(TEXTS)


def test_a_refused_text_ends_a_stream_at_its_turn(called: Called, stubs: Stubs) -> None:
    texts = ["one", "two", REFUSE + Kind.OVERLOADED, "four", REFUSE + Kind.FAILED]
    stub = stubs.rpc.EmbedStub(called.channel)
    answers = stub.EmbedStream(request(stubs, text) for text in texts)
    assert len(next(answers).embeddings) == len(next(answers).embeddings) > 0
    error = refused(lambda: next(answers))
    assert error.code() == Code.RESOURCE_EXHAUSTED
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "2500"


def test_a_stream_answers_while_it_is_open(called: Called, stubs: Stubs) -> None:
    sent = threading.Semaphore(0)

    def texts() -> Iterator[Any]:
        for text in TEXTS:
            yield request(stubs, text)
            assert sent.acquire(timeout=30)

    answers = stubs.rpc.EmbedStub(called.channel).EmbedStream(texts())
    for _ in TEXTS:
        assert next(answers).embeddings
        sent.release()
    assert list(answers) == []


def test_a_client_that_takes_no_answers_is_given_up(
    model: M3, model_dir: Path, stubs: Stubs
) -> None:
    with calling(model, Settings(model_dir, write_timeout=0.3)) as found:
        long = request(stubs, "some words " * 400, "EmbedAllRequest")
        answers = stubs.rpc.EmbedStub(found.channel).EmbedAllStream(iter([long] * 500))
        asked = -1
        while asked != len(found.service.asks) or not asked:  # until nothing is done any more
            asked = len(found.service.asks)
            time.sleep(1.0)
        assert asked < 100
        error = refused(lambda: list(answers))
        assert error.code() == Code.DEADLINE_EXCEEDED
        assert "took no answer" in error.details()


def test_an_empty_stream(called: Called, stubs: Stubs) -> None:
    assert list(stubs.rpc.EmbedStub(called.channel).EmbedStream(iter([]))) == []


# who calls, and by when


def test_a_cancelled_call_is_given_up(called: Called, stubs: Stubs) -> None:
    service = called.service
    service.cancelled.clear()
    call = stubs.rpc.EmbedStub(called.channel).Embed.future(request(stubs, WAIT))
    until(lambda: service.at_work == 1)
    call.cancel()
    assert service.cancelled.wait(30)
    until(lambda: service.at_work == 0)


def test_a_cancelled_stream_is_given_up(called: Called, stubs: Stubs) -> None:
    service = called.service
    service.cancelled.clear()
    answers = stubs.rpc.EmbedStub(called.channel).EmbedStream(
        request(stubs, WAIT) for _ in range(20)
    )
    until(lambda: service.at_work == 20)
    answers.cancel()
    assert service.cancelled.wait(30)
    until(lambda: service.at_work == 0)


def test_the_calls_deadline_is_the_works(called: Called, stubs: Stubs) -> None:
    stub = stubs.rpc.EmbedStub(called.channel)
    before = time.monotonic()
    stub.Embed(request(stubs, "a text"), timeout=20)
    deadline = called.last()[1].deadline
    assert before + 15 < deadline < time.monotonic() + 21
    stub.Embed(request(stubs, "a text"), timeout=90)  # the server's own is earlier
    assert called.last()[1].deadline < time.monotonic() + 30.001
    error = refused(lambda: stub.Embed(request(stubs, WAIT), timeout=0.2))
    assert error.code() == Code.DEADLINE_EXCEEDED
    until(lambda: called.service.at_work == 0)
    metadata = (("x-request-timeout-ms", "100"),)
    error = refused(lambda: stub.Embed(request(stubs, WAIT), metadata=metadata))
    assert (error.code(), error.details()) == (Code.DEADLINE_EXCEEDED, "it is over")


def test_metadata_says_whose_call_it_is(called: Called, stubs: Stubs) -> None:
    stub = stubs.rpc.EmbedStub(called.channel)
    metadata = (("x-priority", "bulk"), ("x-request-id", "mine"))
    _, call = stub.Embed.with_call(request(stubs, "a text"), metadata=metadata)
    assert dict(call.trailing_metadata()) == {"x-request-id": "mine"}
    sender = called.last()[1]
    assert (sender.lane, sender.request_id) == (Lane.BULK, "mine")
    assert sender.client == "ipv4:127.0.0.1"
    stub.Embed(request(stubs, "a text"))
    assert called.last()[1].lane is None
    assert len(called.last()[1].request_id) == 32
    for name, value in (("x-priority", "high"), ("x-request-timeout-ms", "soon")):
        error = refused(lambda: stub.Embed(request(stubs, "a"), metadata=((name, value),)))  # noqa: B023
        assert error.code() == Code.INVALID_ARGUMENT
        assert name in error.details()


def test_calls_without_a_key_are_refused(model: M3, settings: Settings, stubs: Stubs) -> None:
    def allowed(header: str | None) -> str | None:
        return "ann" if header == "Bearer secret" else None

    with calling(model, settings, allowed) as found:
        stub = stubs.rpc.EmbedStub(found.channel)
        for metadata in (None, (("authorization", "Bearer wrong"),)):
            for call in (
                lambda m=metadata: stub.Embed(request(stubs, "a"), metadata=m),
                lambda m=metadata: list(stub.EmbedStream(iter([]), metadata=m)),
                lambda m=metadata: stubs.rpc.RerankStub(found.channel).RerankStream(
                    iter([]), metadata=m
                ),
                lambda m=metadata: found.channel.unary_unary("/no/such")(b"", metadata=m),
                lambda: reflection.ProtoReflectionDescriptorDatabase(found.channel).get_services(),
            ):
                error = refused(call)
                assert error.code() == Code.UNAUTHENTICATED
        stub.Embed(request(stubs, "a"), metadata=(("authorization", "Bearer secret"),))
        assert found.last()[1].client == "ann"
        check = health_pb2_grpc.HealthStub(found.channel).Check
        assert check(health_pb2.HealthCheckRequest()).status == 1


def test_tls(model: M3, settings: Settings, stubs: Stubs) -> None:
    authority = trustme.CA()
    own = authority.issue_cert("localhost")
    pair = own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes()
    with calling(model, settings, credentials=grpc.ssl_server_credentials([pair])) as found:
        trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with grpc.secure_channel(f"localhost:{found.running.port}", trusted) as channel:
            assert stubs.rpc.EmbedStub(channel).Embed(request(stubs, "a text")).embeddings


# health, reflection, starting and stopping


def test_health_follows_the_service(called: Called) -> None:
    stub = health_pb2_grpc.HealthStub(called.channel)

    def status(name: str) -> str:
        found = stub.Check(health_pb2.HealthCheckRequest(service=name))
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(found.status))

    names = {"", oip.NAME} | SERVICES - {"tei.v1.Predict"}
    assert {status(name) for name in names} == {"SERVING"}
    assert status("tei.v1.Predict") == "NOT_SERVING"
    assert refused(lambda: status("nope")).code() == Code.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="tei.v1.Embed"))
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nope"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    called.service.is_ready = False
    try:
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert {status(name) for name in names} == {"NOT_SERVING"}
        with triton.InferenceServerClient(called.address) as client:
            assert not client.is_server_ready()
            assert not client.is_model_ready(called.service.name)
            assert client.is_server_live()
    finally:
        called.service.is_ready = True
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    unknown.cancel()


def test_reflection_tells_of_all_services(called: Called) -> None:
    database = reflection.ProtoReflectionDescriptorDatabase(called.channel)
    names = set(database.get_services())
    others = {oip.NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert names == SERVICES | others
    pool = descriptor_pool.DescriptorPool(database)
    for name in names:
        assert pool.FindServiceByName(name).methods
    assert pool.FindMessageTypeByName("tei.v1.EmbedRequest").fields_by_name["normalize"].number == 3


def test_stopping_waits_for_calls_and_ends_watches(
    model: M3, settings: Settings, stubs: Stubs
) -> None:
    with calling(model, settings) as found:
        watch = health_pb2_grpc.HealthStub(found.channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        metadata = (("x-request-timeout-ms", "500"),)
        call = stubs.rpc.EmbedStub(found.channel).Embed.future(
            request(stubs, WAIT), metadata=metadata
        )
        until(lambda: found.service.at_work == 1)
        found.do(found.running.stop(30))
        assert (call.code(), call.details()) == (Code.DEADLINE_EXCEEDED, "it is over")
        assert [one.status for one in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]
        assert watch.code() == Code.OK
        error = refused(lambda: stubs.rpc.EmbedStub(found.channel).Embed(request(stubs, "a")))
        assert error.code() == Code.UNAVAILABLE


def test_a_port_that_is_taken(called: Called) -> None:
    with pytest.raises(UnavailableError, match="cannot listen at"):
        called.do(server.start(called.service, called.address, lambda header: ""))


# hostile messages


def raw(called: Called, path: str, content: bytes, streamed: bool) -> Any:
    if streamed:
        return list(called.channel.stream_stream(path)(iter([content]), timeout=30))
    return called.channel.unary_unary(path)(content, timeout=30)


def test_large_and_malformed_messages(called: Called, stubs: Stubs) -> None:
    for streamed, path in ((False, "/tei.v1.Embed/Embed"), (True, "/tei.v1.Embed/EmbedStream")):
        large = request(stubs, "x" * MOST).SerializeToString()
        error = refused(lambda: raw(called, path, large, streamed))  # noqa: B023
        assert error.code() == Code.RESOURCE_EXHAUSTED
        for content in (b"\xff\xff", b"\x0a\x01\xff", b"\x0a\x09a"):
            error = refused(lambda: raw(called, path, content, streamed))  # noqa: B023
            assert error.code() == Code.INVALID_ARGUMENT
            assert error.details() == "the message is no tei.v1.EmbedRequest"
    bomb = request(stubs, "x" * 64 * MOST)
    stub = stubs.rpc.EmbedStub(called.channel)
    error = refused(lambda: stub.Embed(bomb, compression=grpc.Compression.Gzip))
    assert error.code() == Code.RESOURCE_EXHAUSTED
    text = request(stubs, "x" * (MOST // 2))
    assert stub.Embed(text, compression=grpc.Compression.Gzip).embeddings
    error = refused(lambda: called.channel.unary_unary("/tei.v1.Embed/Nope")(b""))
    assert error.code() == Code.UNIMPLEMENTED


METHODS = [
    (f"/{name}/{method.name}", method.client_streaming)
    for name in (*SERVICES, oip.NAME)
    for method in messages.methods(name)
]


@examples(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(METHODS)),
    st.binary(max_size=60)
    | st.lists(st.sampled_from([b"\x0a\x01a", b"\x10\x01", b"\x18\x01", b"\x20\x02"])).map(
        b"".join
    ),
)
def test_any_message_is_answered_or_refused(
    called: Called, method: tuple[str, bool], content: bytes
) -> None:
    path, streamed = method
    try:
        raw(called, path, content, streamed)
    except grpc.RpcError as error:
        codes = Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.NOT_FOUND
        assert error.code() in codes, error  # noqa: PT017
