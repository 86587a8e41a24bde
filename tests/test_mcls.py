"""MCLS pooling equals its definition, on every engine and in every form of the graph."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import m3rt
from m3rt import (
    ArtifactError,
    BGEM3FlagModel,
    Heads,
    InputError,
    artifact,
    build,
    cli,
    export,
    mcls,
    mixes,
)
from m3rt.export import Recipe, samples
from m3rt.tokenizer import Tokenizer
from tests import contract
from tests.conftest import copied
from tests.mcls import Oracle, layout, unit
from tests.test_engines import TOLERANCES

Words = Callable[[int], str]
LONG = "The capital of France is Paris, and the Seine <s> flows </s> through it. " * 20
TEXTS = [*samples.sentences()[:20], "", "a", LONG, LONG[:900], "<s> " * 300, "water " * 700]


@pytest.fixture(scope="module")
def mcls_dir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of checkpoint with mcls pooling."""
    out = tmp_path_factory.mktemp("mcls") / "model"
    return export.run(str(checkpoint), out, Recipe(pooling="mcls")).path


@pytest.fixture(scope="module")
def built(mcls_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, built for every engine."""
    folder = copied(mcls_dir, tmp_path_factory.mktemp("built") / "model").path
    for spec in TOLERANCES:
        build.run(folder, spec)
    return folder


@pytest.fixture(scope="module")
def m3(mcls_dir: Path) -> m3rt.M3:
    return m3rt.load(mcls_dir, "cpu")


@pytest.fixture(scope="module")
def oracle(checkpoint: Path) -> Oracle:
    return Oracle(checkpoint)


@pytest.fixture(scope="module")
def words(m3: m3rt.M3) -> Words:
    """A word of one token, however often it comes; as many of it as asked for."""
    pieces = map(m3.tokenizer.piece, range(5, m3.tokenizer.vocab_size))
    found = (piece[1:] for piece in pieces if re.fullmatch(r"▁\w+", piece))
    one = next(word for word in found if m3.tokenizer.lengths([" ".join([word] * 700)])[0] == 704)
    return lambda count: " ".join([one] * count)


# Where the CLS tokens are


@given(st.integers(0, 60), st.integers(2, 40), st.integers(1, 9))
def test_ids_are_laid_out_by_the_definition(count: int, max_length: int, interval: int) -> None:
    content = list(range(10, 10 + count))
    expected = layout(content, max_length, interval)
    tokenizer = Tokenizer(Counting(content), interval)
    found = tokenizer(["text"], max_length)
    assert found.ids[0].tolist() == expected.ids
    whole = layout(content, 1000, interval).ids
    assert tokenizer.lengths(["text"]).tolist() == [len(whole)]
    assert found.truncated.tolist() == [len(whole) > max_length]
    rows = np.arange(len(expected.ids), dtype=np.float32)[:, None]
    kept = mcls.without(rows, interval)[:, 0].astype(int).tolist()
    assert [place for place in range(len(rows)) if place not in kept] == [
        place for place, cls in enumerate(expected.cls) if cls
    ]


class Counting:
    """A tokenizers.Tokenizer of one text."""

    def __init__(self, content: list[int]) -> None:
        self.ids = [0, *content, 2]

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        assert add_special_tokens
        return [self for _ in texts]

    def encode(self, text: str) -> Any:
        return Counting([])

    def no_truncation(self) -> None: ...

    def no_padding(self) -> None: ...


@pytest.mark.parametrize(("count", "places"), [(256, [0]), (257, [0, 257]), (600, [0, 257, 514])])
def test_a_cls_token_stands_before_every_256_tokens(
    count: int, places: list[int], m3: m3rt.M3, words: Words
) -> None:
    ids = m3.tokenize([words(count)]).ids[0]
    assert len(ids) == count + len(places) + 1
    assert np.flatnonzero(ids == 0).tolist() == places
    assert np.flatnonzero(ids == 2).tolist() == [len(ids) - 1]


def test_a_cut_ends_with_a_token_of_the_text(m3: m3rt.M3, words: Words) -> None:
    for max_length, n_tokens in ((258, 258), (259, 258), (260, 260), (515, 515), (516, 515)):
        tokens = m3.tokenize([words(700)], max_length=max_length)
        assert tokens.ids.lengths.tolist() == [n_tokens]
        assert tokens.truncated.tolist() == [True]
        assert tokens.ids[0][-2] not in (0, 2)


# Values


@pytest.mark.parametrize(
    ("spec", "cosine"), [("cpu", 0.999999), ("cpu-padded", 0.999999), ("openvino:fp32", 0.999999)]
)
def test_every_head_is_as_defined(spec: str, cosine: float, mcls_dir: Path, oracle: Oracle) -> None:
    model = m3rt.load(mcls_dir, spec)
    found = model.encode(TEXTS)
    assert found.dense is not None
    assert found.sparse is not None
    assert found.colbert is not None
    for i, text in enumerate(TEXTS):
        expected = oracle.encode(text, model.max_length)
        assert found.n_tokens[i] == expected.n_tokens
        assert (unit(found.dense[i]) * unit(expected.dense)).sum() >= cosine, text[:40]
        assert found.colbert[i].shape == expected.colbert.shape
        if len(expected.colbert):
            product = (unit(found.colbert[i]) * unit(expected.colbert)).sum(1)
            assert product.min() >= 0.99999, text[:40]
        ours, theirs = found.sparse[i], expected.lexical
        for key in ours.keys() | theirs.keys():
            error = abs(ours.get(key, 0) - theirs.get(key, 0))
            assert error <= (1e-5 if key in ours and key in theirs else 1e-6), (text[:40], key)


def test_a_text_of_8192_tokens(m3: m3rt.M3, oracle: Oracle) -> None:
    text = "eins zwei drei vier fünf sechs sieben acht neun zehn " * 1200
    expected = oracle.encode(text)
    found = m3.encode([text])
    assert found.truncated.tolist() == [True]
    assert found.n_tokens.tolist() == [expected.n_tokens] == [8192]
    assert found.dense is not None
    assert found.colbert is not None
    assert (unit(found.dense[0]) * unit(expected.dense)).sum() >= 0.999999
    assert found.colbert[0].shape == (8192 - 32, 64)
    assert (unit(found.colbert[0]) * unit(expected.colbert)).sum(1).min() >= 0.99999


def test_more_cls_tokens_are_another_vector(m3: m3rt.M3, model: m3rt.M3) -> None:
    # the checks above could tell
    ours, cls = m3.encode([LONG]).dense, model.encode([LONG]).dense
    assert ours is not None
    assert cls is not None
    assert (ours * cls).sum() < 0.9999


def test_a_text_of_at_most_256_tokens_is_as_with_cls(m3: m3rt.M3, model: m3rt.M3) -> None:
    short = [text for text in TEXTS if model.tokenize([text]).ids.lengths[0] <= 258]
    assert len(short) > 20
    for heads in (Heads.ALL, Heads.DENSE):
        found, expected = m3.encode(short, heads), model.encode(short, heads)
        for i in range(len(short)):
            contract.same(found, i, expected, i, 0)


# Engines


def test_the_engine_that_is_exact(m3: m3rt.M3) -> None:
    contract.check(m3, tolerance=0)


def test_the_portable_graph(mcls_dir: Path) -> None:
    contract.check(m3rt.load(mcls_dir, "cpu-padded"), tolerance=1e-6)


@pytest.mark.parametrize("spec", TOLERANCES)
def test_built_engines(spec: str, built: Path) -> None:
    contract.check(m3rt.load(built, spec), *TOLERANCES[spec])


def test_mean_pooling_beside_the_other_heads(checkpoint: Path, tmp_path: Path) -> None:
    out = export.run(str(checkpoint), tmp_path / "mean", Recipe(pooling="mean", max_length=1024))
    contract.check(m3rt.load(out.path, "cpu"), tolerance=0)
    contract.check(m3rt.load(out.path, "openvino:fp32"), tolerance=1e-5)


def test_dense_alone(checkpoint: Path, m3: m3rt.M3, tmp_path: Path) -> None:
    recipe = Recipe(Heads.DENSE, pooling="mcls", max_length=1024)
    made = export.run(str(checkpoint), tmp_path / "out", recipe)
    for spec in ("cpu", "openvino:fp32"):
        found, expected = (
            m3rt.load(made.path, spec).encode(TEXTS),
            m3.encode(TEXTS, Heads.DENSE, max_length=1024),
        )
        for i in range(len(TEXTS)):
            contract.same(found, i, expected, i, 1e-6 if spec == "cpu" else 1e-5)


def test_dense_alone_computes_the_cls_tokens_last_layer(mcls_dir: Path, tmp_path: Path) -> None:
    graph = artifact.read(mcls_dir).graph("packed")
    dense = contract.rows_computed(graph, contract.batch_of(4, 600), Heads.DENSE, tmp_path)
    every = contract.rows_computed(graph, contract.batch_of(4, 600), Heads.ALL, tmp_path)
    assert set(every.values()) == {604}
    # 1 and 3 CLS tokens
    assert sorted(dense.values()) == [0, 0, 4, 4, 4, 4, *[604] * (len(every) - 6)]


# The directory


def test_the_manifest_says_it(mcls_dir: Path) -> None:
    manifest = artifact.read(mcls_dir).manifest
    assert (manifest.pooling, manifest.cls_interval) == ("mcls", 256)
    assert manifest.parity["longest"] == 8192
    shown = CliRunner().invoke(cli.app, ["inspect", str(mcls_dir)]).stdout
    assert "every 256 tokens" in shown


def test_the_command_line_exports_and_verifies(checkpoint: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    options = ["--pooling", "mcls", "--max-length", "600"]
    done = CliRunner().invoke(cli.app, ["export", str(checkpoint), out, *options])
    assert done.exit_code == 0, done.stderr
    for options in ([], ["--against", str(checkpoint)], ["--engine", "openvino:fp32"]):
        done = CliRunner().invoke(cli.app, ["verify", out, *options, "--json"])
        assert done.exit_code == 0, done.stderr
        figures = json.loads(done.stdout)["parity"]
        assert (figures["ok"], figures["longest"]) == (True, 600)


def test_a_graph_of_another_pooling_does_not_pass(
    mcls_dir: Path, model_dir: Path, tmp_path: Path
) -> None:
    mine = copied(mcls_dir, tmp_path / "mine").path
    for name in ("packed.onnx", "model.onnx"):
        shutil.copy(model_dir / name, mine / name)
    manifest = json.loads((mine / artifact.MANIFEST).read_text())
    manifest["files"] |= {
        name: {"bytes": file.bytes, "sha256": file.sha256}
        for name in ("packed.onnx", "model.onnx")
        for file in [artifact.describe(mine / name)]
    }
    (mine / artifact.MANIFEST).write_text(json.dumps(manifest))
    done = CliRunner().invoke(cli.app, ["verify", str(mine), "--engine", "cpu"])
    assert done.exit_code == 4
    assert "dense cosine_min" in done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling": "max"},
        {"pooling": 3},
        {"cls_interval": None},
        {"cls_interval": 0},
        {"cls_interval": "256"},
        {"cls_interval": 1.5},
        {"pooling": "cls"},
    ],
)
def test_a_damaged_pooling(changes: dict[str, Any], mcls_dir: Path, tmp_path: Path) -> None:
    mine = copied(mcls_dir, tmp_path / "mine").path
    manifest = json.loads((mine / artifact.MANIFEST).read_text())
    (mine / artifact.MANIFEST).write_text(json.dumps(manifest | changes))
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged.*run: m3rt export"):
        artifact.read(mine)


def test_an_older_manifest_has_no_interval(model_dir: Path, tmp_path: Path) -> None:
    mine = copied(model_dir, tmp_path / "mine").path
    manifest = json.loads((mine / artifact.MANIFEST).read_text())
    del manifest["cls_interval"]
    (mine / artifact.MANIFEST).write_text(json.dumps(manifest))
    assert artifact.read(mine).manifest.cls_interval is None


def test_unknown_pooling(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pooling is 'max', expected cls, mean, mcls"):
        export.run(str(checkpoint), tmp_path / "out", Recipe(pooling="max"))
    done = CliRunner().invoke(cli.app, ["export", "x", "y", "--pooling", "max"])
    assert done.exit_code == 2
    assert "'mcls'" in done.stderr


def test_verify_against_needs_the_same_interval(
    mcls_dir: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcls, "INTERVAL", 128)
    done = CliRunner().invoke(cli.app, ["verify", str(mcls_dir), "--against", str(checkpoint)])
    assert done.exit_code == 4
    assert "its cls_interval is 256, the checkpoint's 128" in done.stderr


# FlagEmbedding's interface


def test_flag_embedding_s_interface(m3: m3rt.M3) -> None:
    with pytest.raises(InputError, match="is 'cls', but this model gives only 'mcls'"):
        BGEM3FlagModel(m3)
    flag = BGEM3FlagModel(m3, pooling_method="mcls")
    found = flag.encode(TEXTS, max_length=8192, return_sparse=True, return_colbert_vecs=True)
    expected = m3.encode(TEXTS)
    assert expected.dense is not None
    assert expected.sparse is not None
    assert expected.colbert is not None
    np.testing.assert_array_equal(found["dense_vecs"], expected.dense)
    for i in range(len(TEXTS)):
        np.testing.assert_array_equal(found["colbert_vecs"][i], expected.colbert[i])
        lexical = {int(token): float(w) for token, w in found["lexical_weights"][i].items()}
        assert lexical == expected.sparse[i]


def test_texts_are_made_to_length(m3: m3rt.M3) -> None:
    # bench does; none has 259 tokens, with a CLS token right before the closing one
    made = list(mixes.of_lengths(m3.tokenizer, [258, 259, 600]))
    assert m3.tokenizer.lengths(made).tolist() == [258, 258, 600]


def test_texts_of_many_lengths_are_alike_alone_and_together(m3: m3rt.M3, words: Words) -> None:
    texts = [words(n) for n in (*range(250, 262), *range(508, 518), 1, 0)]
    whole = m3.encode(texts)
    for i, text in enumerate(texts):
        contract.same(whole, i, m3.encode([text]), 0, 0)
    assert whole.dense is not None
    for a, b in itertools.pairwise(whole.dense):
        assert not np.array_equal(a, b)
