"""BGEM3FlagModel against FlagEmbedding's own, on a small random checkpoint."""

from __future__ import annotations

import inspect
import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import FlagEmbedding
import numpy as np
import pytest
import tokenizers

from benchmarks import checkpoint
from m3rt import M3, BGEM3FlagModel, EngineError, InputError, flag, pairs
from m3rt.tokenizer import Tokenizer
from tests.torch_engine import TorchEngine, open_checkpoint

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Welcher Zug fährt nach Berlin? Der Zug, der Zug!",
    "",
    "水在海平面的沸点是一百摄氏度。",
    "   \n ",
    "When does the train to Berlin leave?",
    "When does the train to Berlin leave?",
    "naïve 🙂 <mask> text with </s>, <s> and <unk> in it ⁂",
    "Как сбросить пароль? كيف أعيد تعيين كلمة المرور؟",
    "To change your password, open the settings and choose a new one. " * 60,
]
SCORES = ["colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense"]
WIDTH = 24


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = checkpoint.Shape(hidden=32, layers=2, heads=4, ffn=64, colbert_dim=WIDTH)
    # the wide std spreads the vectors, and gives weights of zero
    return checkpoint.make(tmp_path_factory.mktemp("flag") / "checkpoint", shape, std=0.2)


@pytest.fixture(scope="module")
def m3(directory: Path) -> M3:
    return open_checkpoint(directory)


@pytest.fixture(scope="module")
def ours(m3: M3) -> BGEM3FlagModel:
    return BGEM3FlagModel(m3)


def reference(directory: Path, **options: Any) -> Any:
    return FlagEmbedding.BGEM3FlagModel(
        str(directory), use_fp16=False, devices="cpu", colbert_dim=WIDTH, **options
    )


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Any:
    return reference(directory)


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same keys, types, shapes, order of ids and, within 1e-5, numbers."""
    assert list(found) == list(expected) == ["dense_vecs", "lexical_weights", "colbert_vecs"]
    same_array(found["dense_vecs"], expected["dense_vecs"])
    for key, compare in (("lexical_weights", same_lexical), ("colbert_vecs", same_array)):
        assert type(found[key]) is type(expected[key])
        if isinstance(expected[key], list):
            assert len(found[key]) == len(expected[key])
            for text in zip(found[key], expected[key], strict=True):
                compare(*text)
        else:
            compare(found[key], expected[key])


def same_array(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if expected is not None:
        assert found.dtype == expected.dtype == np.float32
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5)


def same_lexical(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if expected is not None:
        assert list(found) == list(expected)
        assert {type(weight) for weight in found.values()} <= {np.float32}
        assert found.default_factory is expected.default_factory is int
        np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=1e-5)


@pytest.mark.parametrize("flags", [f for f in itertools.product((True, False), repeat=3) if any(f)])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], tuple(TEXTS[:3]), TEXTS[0], ""])
def test_encode(ours: BGEM3FlagModel, theirs: Any, texts: Any, flags: tuple[bool, ...]) -> None:
    dense, sparse, colbert = flags
    options: dict[str, Any] = {
        "return_dense": dense,
        "return_sparse": sparse,
        "return_colbert_vecs": colbert,
    }
    same(ours.encode(texts, **options), theirs.encode(texts, **options))


@pytest.mark.parametrize("max_length", [2, 3, 8, 512, None])
@pytest.mark.parametrize("method", ["encode", "encode_queries", "encode_corpus"])
def test_max_length(ours: BGEM3FlagModel, theirs: Any, method: str, max_length: int | None) -> None:
    options = {"return_sparse": True, "return_colbert_vecs": True, "max_length": max_length}
    found = getattr(ours, method)(TEXTS, **options)
    same(found, getattr(theirs, method)(TEXTS, **options))
    assert max(map(len, found["colbert_vecs"])) == (max_length or 512) - 1


def test_options_of_the_constructor(m3: M3, directory: Path) -> None:
    options: dict[str, Any] = {
        "query_instruction_for_retrieval": "Represent this",
        "query_instruction_format": "{}:\\n{}",
        "passage_instruction_for_retrieval": "passage",
        "passage_instruction_format": "{} -> {}",
        "query_max_length": 7,
        "passage_max_length": 9,
        "return_dense": False,
        "return_sparse": True,
        "return_colbert_vecs": True,
        "truncate_dim": 6,
        "batch_size": 3,
    }
    ours = BGEM3FlagModel(m3, **options)
    theirs = reference(directory, **options)
    for method in ("encode", "encode_queries", "encode_corpus"):
        for texts in (TEXTS, TEXTS[0]):
            same(getattr(ours, method)(texts), getattr(theirs, method)(texts))
            found = getattr(ours, method)(texts, return_dense=True, return_sparse=False)
            same(found, getattr(theirs, method)(texts, return_dense=True, return_sparse=False))
    options = {"instruction": "Read", "instruction_format": "{}\\n{}", "max_length": 20}
    same(ours.encode(TEXTS, **options), theirs.encode(TEXTS, **options))
    same_scores(
        ours.compute_score(list(itertools.pairwise(TEXTS))),
        theirs.compute_score(list(itertools.pairwise(TEXTS)), batch_size=1),
    )


def test_nothing_to_encode(ours: BGEM3FlagModel, m3: M3) -> None:
    found = ours.encode([], return_sparse=True, return_colbert_vecs=True)
    assert found["dense_vecs"].shape == (0, 32)
    assert found["lexical_weights"] == found["colbert_vecs"] == []
    assert ours.encode([], return_dense=False, return_sparse=True)["dense_vecs"] is None
    assert BGEM3FlagModel(m3, truncate_dim=6).encode([])["dense_vecs"].shape == (0, 6)


def test_ids_stand_in_the_order_in_which_they_first_weigh_something() -> None:
    ids = np.array([0, 9, 7, 9, 5, 7, 3, 2], np.int32)
    weights = np.array([9, 0, 1, 2, 3, 0.5, 9, 9], np.float32)
    found = flag._lexical(ids, weights, (0, 1, 2, 3))
    assert list(found) == ["7", "9", "5"]
    assert list(found.values()) == [1, 2, 3]
    assert found["missing"] == 0


def same_scores(found: Any, expected: Any) -> None:
    assert list(found) == list(expected) == SCORES
    for name in SCORES:
        assert type(found[name]) is type(expected[name])
        assert found[name] == pytest.approx(expected[name], abs=1e-5)
        assert isinstance(found[name], float) or all(type(x) is float for x in found[name])


PAIRS = [(query, passage) for query in TEXTS[:4] for passage in TEXTS]


@pytest.mark.parametrize("weights", [None, [0.4, 0.2, 0.4], [1, 0, 0], (0.0, 3.0, 1.0)])
def test_compute_score(ours: BGEM3FlagModel, theirs: Any, weights: Any) -> None:
    options = {"weights_for_different_modes": weights}
    # one pair at a time: in a batch of theirs, padding scores
    same_scores(
        ours.compute_score(PAIRS, **options), theirs.compute_score(PAIRS, batch_size=1, **options)
    )
    pair = (TEXTS[1], TEXTS[5])
    same_scores(ours.compute_score(pair, **options), theirs.compute_score(pair, **options))


def test_compute_score_of_equal_lengths_in_a_batch(ours: BGEM3FlagModel, theirs: Any) -> None:
    options: dict[str, Any] = {"max_query_length": 6, "max_passage_length": 8}
    long = [TEXTS[i] for i in (0, 1, 5, 8, 9)]
    pairs = [list(pair) for pair in itertools.product(long, long)]
    same_scores(ours.compute_score(pairs, **options), theirs.compute_score(pairs, **options))


def test_compute_score_of_no_pairs(ours: BGEM3FlagModel, theirs: Any) -> None:
    assert ours.compute_score([]) == theirs.compute_score([]) == []


def test_hybrid_without_weights_is_nan_as_in_flagembedding(
    ours: BGEM3FlagModel, theirs: Any
) -> None:
    options: dict[str, Any] = {"weights_for_different_modes": [0.0, 0.0, 1.0]}
    found, expected = (
        ours.compute_score(PAIRS[0], **options),
        theirs.compute_score(PAIRS[0], **options),
    )
    assert isinstance(found, dict)
    assert np.isnan([found["sparse+dense"], expected["sparse+dense"]]).all()
    assert found["colbert+sparse+dense"] == pytest.approx(found["colbert"])


@pytest.mark.parametrize("held", [1, 20 * 512, pairs.HELD])
def test_compute_score_encodes_a_text_once(
    ours: BGEM3FlagModel, m3: M3, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ours.compute_score(PAIRS)
    assert isinstance(m3.engine, TorchEngine)
    before = m3.engine.texts
    monkeypatch.setattr(pairs, "HELD", held)
    assert ours.compute_score(PAIRS) == expected
    distinct = len(set(TEXTS))
    if held == 1:  # a pair at a time
        assert m3.engine.texts - before == sum(len(set(pair)) for pair in PAIRS)
    else:
        assert m3.engine.texts - before == distinct
        ours.compute_score(PAIRS, max_query_length=20)
        assert m3.engine.texts - before == 2 * distinct + len(set(TEXTS[:4]))


def test_scores_of_vectors(ours: BGEM3FlagModel, theirs: Any) -> None:
    outputs = ours.encode(TEXTS, return_sparse=True, return_colbert_vecs=True)
    lexical, colbert = outputs["lexical_weights"], outputs["colbert_vecs"]
    for one, other in ((lexical, lexical[:3]), (lexical[0], lexical[5]), (lexical[2], lexical[0])):
        found = ours.compute_lexical_matching_score(one, other)
        expected = theirs.compute_lexical_matching_score(one, other)
        assert type(found) is type(expected)
        np.testing.assert_array_equal(found, expected)
    for one, other in itertools.product(colbert[:4], colbert):
        found = ours.colbert_score(one, other)
        assert type(found) is np.float32
        assert found == pytest.approx(theirs.colbert_score(one, other).item(), abs=1e-6)
    with pytest.raises(ValueError, match="two dicts or two lists"):
        ours.compute_lexical_matching_score(lexical, lexical[0])


def test_convert_id_to_token(ours: BGEM3FlagModel, theirs: Any) -> None:
    lexical = ours.encode(TEXTS, return_sparse=True)["lexical_weights"]
    for found, text in zip(ours.convert_id_to_token(lexical), lexical, strict=True):
        # theirs keeps the last of the ids that decode to one token: put the heaviest last
        ascending = dict(sorted(text.items(), key=lambda item: item[1]))
        assert found == theirs.convert_id_to_token(ascending)
    for one in (lexical[0], lexical[:1]):
        assert list(ours.convert_id_to_token(one)) == list(theirs.convert_id_to_token(one))
    assert ours.convert_id_to_token([]) == theirs.convert_id_to_token([]) == []


def test_every_id_decodes_as_in_flagembedding(ours: BGEM3FlagModel, theirs: Any) -> None:
    ids = defaultdict(int, {str(i): 1.0 for i in range(ours.tokenizer.vocab_size)})
    assert list(ours.convert_id_to_token(ids)) == list(theirs.convert_id_to_token(ids))


def test_ids_of_one_token_keep_the_greatest_weight(m3: M3, directory: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.decoder = tokenizers.decoders.Metaspace()
    model = BGEM3FlagModel(M3(m3.manifest, Tokenizer(backend), m3.engine))
    # with the mark of a word's start, and without
    first, second = (str(backend.token_to_id(piece)) for piece in ("▁d", "d"))
    for weights in ((2.0, 1.0), (1.0, 2.0)):
        found = model.convert_id_to_token({first: weights[0], second: weights[1]})
        assert found == {"d": 2.0}


@pytest.mark.parametrize(
    "method",
    [
        "__init__",
        "encode",
        "encode_queries",
        "encode_corpus",
        "compute_score",
        "compute_lexical_matching_score",
        "colbert_score",
        "convert_id_to_token",
    ],
)
def test_signature(method: str) -> None:
    def parameters(model: type) -> list[tuple[str, Any]]:
        return [
            (parameter.name, parameter.default)
            for parameter in inspect.signature(getattr(model, method)).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]

    assert parameters(BGEM3FlagModel) == parameters(FlagEmbedding.BGEM3FlagModel)
    assert getattr(BGEM3FlagModel, method).__doc__ or method == "__init__"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize_embeddings": False}, "is False, but this model gives only True"),
        ({"devices": "cuda:0"}, "choose an engine instead"),
        ({"devices": ["cuda:0", "cuda:1"]}, "choose an engine instead"),
        ({"devices": 0}, "choose an engine instead"),
        ({"pooling_method": "mean"}, "is 'mean', but this model gives only 'cls'"),
        ({"colbert_dim": 8}, "is 8, but this model gives only 24"),
    ],
)
def test_refused_options(m3: M3, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BGEM3FlagModel(m3, **options)


def test_accepted_options(m3: M3) -> None:
    ignored: dict[str, Any] = {"use_fp16": False, "use_bf16": True, "cache_dir": "x", "other": 1}
    for devices in (None, "cpu", ["cpu"]):
        model = BGEM3FlagModel(m3, devices=devices, colbert_dim=WIDTH, **ignored)
        assert model.encode("text")["dense_vecs"].shape == (32,)


def test_refused_requests(ours: BGEM3FlagModel) -> None:
    with pytest.raises(InputError, match="no head was asked for"):
        ours.encode("text", return_dense=False)
    with pytest.raises(InputError, match="text 1 is NoneType"):
        ours.encode(["text", None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="max_length is 8193"):
        ours.encode("text", max_length=8193)
    with pytest.raises(InputError, match="expected 3"):
        ours.compute_score(PAIRS, weights_for_different_modes=[1, 1])
    with pytest.raises(InputError, match="more than 0"):
        ours.compute_score(PAIRS, weights_for_different_modes=[0, 0, 0])


def test_lacking_heads(directory: Path) -> None:
    model = BGEM3FlagModel(open_checkpoint(directory, heads=("dense",)))
    assert model.encode("text")["dense_vecs"].shape == (32,)
    with pytest.raises(InputError, match="no sparse head, only dense"):
        model.encode("text", return_sparse=True)
    lacking = "no sparse and no colbert head, only dense"
    with pytest.raises(InputError, match=lacking):
        model.encode("text", return_sparse=True, return_colbert_vecs=True)
    with pytest.raises(InputError, match=lacking):
        model.compute_score(PAIRS)


def test_nan_is_an_error(directory: Path) -> None:
    m3 = open_checkpoint(directory)
    assert isinstance(m3.engine, TorchEngine)
    m3.engine._colbert["bias"][0] = float("nan")
    with pytest.raises(EngineError, match="colbert output is NaN"):
        BGEM3FlagModel(m3).encode("text", return_colbert_vecs=True)


@pytest.mark.parametrize("options", [{}, {"engine": "cuda"}])
def test_opens_a_directory(
    m3: M3, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: str, engine: str) -> M3:
        assert (path, engine) == ("model", options.get("engine", "auto"))
        return m3

    monkeypatch.setattr(flag, "load", load)
    assert BGEM3FlagModel("model", **options).model is m3
