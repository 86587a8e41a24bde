"""int8: ranges, smoothing, the sweep, and the graphs that come out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from safetensors.torch import load_file, save_file

import m3rt
from benchmarks.checkpoint import TINY, make
from m3rt import artifact, build, export, parity
from m3rt.export import calibrate, quantize, scales, sensitivity
from m3rt.export.calibrate import Observed, Site
from m3rt.parity import Reference
from m3rt.types import Floats, Ragged, ragged
from tests import contract
from tests.conftest import copied

INT8 = ("cpu:int8", "openvino:int8")
SITE = Site("a", "x", ("a",))


def observed(sample: Floats) -> Observed:
    return Observed(SITE, sample.min(0), sample.max(0), sample)


@pytest.fixture
def gaussian() -> Floats:
    return np.random.default_rng(0).normal(size=(200, 32)).astype(np.float32)


@pytest.fixture
def weight() -> Floats:
    return np.random.default_rng(1).normal(size=(32, 48)).astype(np.float32)


def test_weights_round_to_half_a_step(weight: Floats) -> None:
    levels, steps = scales.quantized(weight)
    assert levels.dtype == np.int8
    assert np.abs(levels.astype(int)).max() == 127  # -128 is not used: scales are symmetric
    assert (np.abs(levels * steps - weight) <= steps / 2 + 1e-6).all()


def test_a_column_of_zeros() -> None:
    levels, steps = scales.quantized(np.zeros((4, 3), np.float32))
    assert not levels.any()
    assert np.isfinite(steps).all()


def test_tame_activations_are_not_smoothed(gaussian: Floats, weight: Floats) -> None:
    scale = scales.fit(observed(gaussian), weight)
    assert scale.smooth is None
    assert scale.error < 0.02


def test_outlier_channels_are_smoothed(gaussian: Floats, weight: Floats) -> None:
    gaussian[:, 5] *= 60
    plain = scales.measured(observed(gaussian), weight, gaussian @ weight, None)
    scale = scales.fit(observed(gaussian), weight)
    assert scale.smooth is not None
    assert scale.smooth.argmax() == 5
    assert scale.error < scales.WORTH * plain.error


def test_zero_is_exact(gaussian: Floats, weight: Floats) -> None:
    for shift in (-9, 0, 9):
        scale = scales.fit(observed(gaussian + np.float32(shift)), weight)
        assert not scale.round(np.zeros((1, 32), np.float32)).any()


def test_what_is_constant_is_survived(weight: Floats) -> None:
    scale = scales.fit(observed(np.zeros((9, 32), np.float32)), weight)
    assert np.isfinite(scale.error)
    assert scale.step > 0


def test_the_worst_sites() -> None:
    even = {f"site {i}": 1.0 for i in range(96)}
    assert quantize.worst(even) == ()
    assert quantize.worst(even | {"a": 20.0, "b": 30.0}) == ("b", "a")
    many = {f"bad {i}": 90.0 for i in range(quantize.KEPT + 2)}
    assert len(quantize.worst(even | many)) == quantize.KEPT
    assert quantize.worst({"a": 0.0}) == ()


def test_long_texts_are_cut() -> None:
    ids = ragged([np.arange(5, dtype=np.int32), np.arange(2, dtype=np.int32)], np.int32)
    assert [row.tolist() for row in quantize.cut(ids, 3)] == [[0, 1, 2], [0, 1]]
    assert len(quantize.least(ids, 1)) == 1
    assert len(quantize.least(ids, 100)) == 2


def reference_ids(model_dir: Path) -> Ragged[np.int32]:
    return Reference.read(model_dir / parity.REFERENCE).ids


def test_the_sweep_finds_the_site_that_is_rounded_worst(model_dir: Path) -> None:
    packed = artifact.read(model_dir).graph("packed")
    ids = quantize.least(reference_ids(model_dir), 100)
    fine = scales.ranged(-6, 6, None)
    names = [site.name for site in calibrate.sites(ir.load(packed))]
    coarse = scales.Scale(np.float32(4), np.uint8(128), np.full(128, 2, np.float32), 0.0)
    bad = "encoder.layer.0.output.dense.weight"
    done: list[int] = []
    rounding = {name: coarse if name == bad else fine for name in names}
    harm = sensitivity.sweep(packed, rounding, ids, done.append)
    assert max(harm, key=lambda name: harm[name]) == bad
    assert harm[bad] > 3 * sorted(harm.values())[-2] > 0
    assert len(done) == len(names)


def test_nothing_large_stays_in_float32(built_dir: Path) -> None:
    graph = onnx.load(built_dir / "cpu-int8.onnx", load_external_data=False).graph
    kinds: dict[int, int] = {}
    for tensor in graph.initializer:
        size = int(np.prod(tensor.dims))
        kinds[tensor.data_type] = kinds.get(tensor.data_type, 0) + size
    manifest = artifact.read(built_dir).manifest
    heads = 64 * 64 + 64 + 64 + 1
    assert kinds[onnx.TensorProto.INT8] >= manifest.vocab * 64 + 2 * (4 * 64 * 64 + 2 * 64 * 128)
    assert kinds[onnx.TensorProto.FLOAT] < heads + manifest.vocab + 40 * 128
    linear = [node for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    assert len(linear) == 2 * 6
    assert all(len(node.input) == 7 for node in linear)  # the bias is inside


@pytest.fixture(scope="module")
def spiky_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with channels far larger than the rest after each LayerNorm, as trained ones have."""
    folder = tmp_path_factory.mktemp("spiky")
    checkpoint = make(folder / "checkpoint", TINY, seed=3)
    state = load_file(checkpoint / "model.safetensors")
    last = f"encoder.layer.{TINY.layers - 1}.output."  # feeds the heads, no linear layer
    for name, tensor in state.items():
        if name.endswith("LayerNorm.weight") and not name.startswith(last):
            tensor[[3, 17]] *= 7
    save_file(state, checkpoint / "model.safetensors", metadata={"format": "pt"})
    out = folder / "model"
    export.run(str(checkpoint), out, export.Recipe(max_length=512))
    return out


@pytest.mark.parametrize("spec", INT8)
def test_outliers_are_smoothed_and_the_engines_agree(
    spec: str, spiky_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # two layers of width 64 with such channels have lexical weights of another scale than M3's
    loose = parity.Tolerances(0.98, 0.9, weight_error=1.0, near_zero=1.0, maxsim_error=0.5)
    monkeypatch.setattr(parity, "TOLERANCES", {**parity.TOLERANCES, "int8": loose})
    _, made = build.run(spiky_dir, spec)
    entry = made.manifest.builds[spec]
    assert entry.recipe["smoothed"]
    assert entry.parity["ok"] is True
    exact = m3rt.load(spiky_dir, "cpu").encode(contract.TEXTS, max_length=512)
    found = m3rt.load(spiky_dir, spec).encode(contract.TEXTS, max_length=512)
    assert exact.dense is not None
    assert found.dense is not None
    assert parity.cosines(exact.dense, found.dense)["cosine_min"] > 0.98


@pytest.mark.parametrize("spec", INT8)
def test_kept_sites_are_more_exact(
    spec: str, built_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the rounded words would hide what the linear layers lose
    monkeypatch.setattr(quantize.Rewriter, "embeddings", lambda self: None)
    mine = copied(built_dir, tmp_path / "mine").path
    before = build.run(mine, spec, force=True)[1].manifest.builds[spec]
    monkeypatch.setattr(quantize, "OUTSIZED", -1e6)  # a harm may be a rounding below zero
    monkeypatch.setattr(quantize, "KEPT", 99)
    after = build.run(mine, spec, force=True)[1].manifest.builds[spec]
    assert before.recipe["kept"] == {}
    assert len(after.recipe["kept"]) == after.recipe["sites"]
    assert (
        1 - after.parity["dense"]["cosine_mean"] < (1 - before.parity["dense"]["cosine_mean"]) / 2
    )
    contract.check(m3rt.load(mine, spec), *((0, 5e-2) if spec == "cpu:int8" else (5e-2, 5e-2)))


def test_a_calibration_of_ones_own(model_dir: Path, tmp_path: Path) -> None:
    mine = copied(model_dir, tmp_path / "mine").path
    ids = ragged([np.array([0, 9, 8, 7, 2], np.int32)] * 3, np.int32)
    _, made = build.run(mine, "cpu:int8", ids)
    recipe = made.manifest.builds["cpu:int8"].recipe
    assert recipe["calibration"] == {"texts": 3, "tokens": 15}
    assert json.loads(artifact.dump(made.manifest))["builds"]["cpu:int8"]["recipe"] == recipe


def test_the_recipe_serves_every_engine(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = copied(model_dir, tmp_path / "mine").path
    first = build.run(mine, "cpu:int8")[1].manifest
    recipe = mine / quantize.RECIPE

    def again(*_: object) -> None:
        raise AssertionError("calibrated again")

    with monkeypatch.context() as patch:
        patch.setattr(quantize, "decide", again)
        second = build.run(mine, "openvino:int8")[1].manifest
        assert second.files[recipe.name] == first.files[recipe.name]
        assert second.builds["cpu:int8"] == first.builds["cpu:int8"]
        left, right = (second.builds[spec].recipe for spec in ("cpu:int8", "openvino:int8"))
        assert {**left, "storage": "int8"} == right
        other = ragged([np.array([0, 9, 2], np.int32)], np.int32)
        with pytest.raises(AssertionError, match="calibrated again"):
            build.run(mine, "cpu:int8", other, force=True)
    made = artifact.Artifact(mine, second)
    key = quantize.key_of(made, reference_ids(mine))
    read = quantize.Recipe.read(recipe, key)
    assert read is not None
    assert read.summary() == left
    assert quantize.Recipe.read(recipe, "another") is None
    recipe.write_bytes(recipe.read_bytes()[:100])
    assert quantize.Recipe.read(recipe, key) is None
    assert quantize.Recipe.read(tmp_path / "none", key) is None
