"""The graphs that TensorRT is given: right in every shape, and refused where they would be slow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime import InferenceSession
from rich.progress import Progress

from benchmarks.checkpoint import Shape, make
from m3rt import artifact, export, parity, tolerances
from m3rt.artifact import Artifact
from m3rt.engines import Choice, ort
from m3rt.engines.trt.profiles import Profile
from m3rt.errors import ParityError
from m3rt.export import edits, fusible, mixed, quantize, typed
from m3rt.export.passes import UnexpectedGraphError, operand, producer
from m3rt.graph import Graph
from m3rt.harm import WORDS
from m3rt.parity import Reference
from m3rt.trial import EIGHT_BITS
from m3rt.types import Batch, Heads, Limits, Raw, ragged

PRECISIONS = ("fp16", "bf16", "int8", "fp8")
BARS = Progress(disable=True)
# one head, for the scores of a text of 8192 tokens are 8192 x 8192 on ONNX Runtime
LONG = Shape(hidden=64, layers=2, heads=1, ffn=128)
PROFILES = (
    Profile((1, 1), (16, 32), (32, 128)),
    Profile((1, 129), (4, 512), (4, 2048)),
    Profile((1, 2049), (1, 4096), (1, 8192)),
)
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


@pytest.fixture(scope="session")
def long_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a checkpoint whose longest texts fit the memory of a test."""
    folder = tmp_path_factory.mktemp("long")
    made = make(folder / "checkpoint", LONG, std=0.1)
    return export.run(str(made), folder / "model").path


@pytest.fixture(scope="session")
def recipes(long_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, quantize.Recipe]:
    """How to quantise it, by precision."""
    made = artifact.read(long_dir)
    ids = Reference.read(long_dir / parity.REFERENCE).ids
    folder = tmp_path_factory.mktemp("recipes")
    return {
        precision: quantize.plan(made, quantize.grid("typed", precision), ids, folder, BARS)
        for precision in EIGHT_BITS
    }


@pytest.fixture
def graph(long_dir: Path, recipes: dict[str, quantize.Recipe]) -> Callable[..., Graph]:
    def written(precision: str, kept: tuple[str, ...] = ()) -> Graph:
        made = artifact.read(long_dir)
        return typed.write(made, precision, recipes.get(precision), kept, BARS)

    return written


def shapes() -> set[tuple[int, int]]:
    """Every corner of every profile."""
    return {shape for one in PROFILES for shape in (one.least, one.best, one.most)}


def batch_of(texts: int, width: int) -> Batch:
    """Texts of this width and shorter ones, down to a single token."""
    random = np.random.default_rng(texts * width)
    lengths = [width, 1, *random.integers(1, width + 1, texts)][:texts]
    rows = [random.integers(4, 600, length).astype(np.int32) for length in lengths]
    for row in rows:
        row[0] = 0
    return Batch(ragged(rows, np.int32), np.arange(texts), width)


def differences(exact: Raw, found: Raw) -> tuple[float, float, float]:
    """Worst 1 - cosine of dense, error of a weight, and 1 - cosine of ColBERT, over real rows."""
    assert exact.dense is not None
    assert found.dense is not None
    assert exact.colbert is not None
    assert found.colbert is not None
    assert exact.weights is not None
    assert found.weights is not None
    dense = parity.cosine_of(exact.dense, found.dense)
    colbert = parity.cosine_of(np.concatenate(exact.colbert), np.concatenate(found.colbert))
    error = np.abs(exact.weights - found.weights).max()
    return 1 - float(dense.min()), float(error), 1 - float(colbert.min())


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_edges_of_every_profile(
    precision: str, long_dir: Path, graph: Callable[..., Graph]
) -> None:
    manifest = artifact.read(long_dir).manifest
    exact = ort.Padded(
        "fp32",
        ort.open_session(artifact.read(long_dir).graph("portable"), "cpu-padded"),
        Limits(1, 8192, pads=True),
        manifest.pad_id,
    )
    engine = ort.from_memory(typed.runnable(graph(precision)), precision, manifest)
    limits = tolerances.of(precision)
    for texts, width in sorted(shapes()):
        batch = batch_of(texts, width)
        dense, weight, colbert = differences(
            exact.run(batch, Heads.ALL), engine.run(batch, Heads.ALL)
        )
        assert dense <= 1 - limits.dense_cosine, (texts, width)
        assert weight <= limits.weight_error, (texts, width)
        assert colbert <= 1 - limits.colbert_cosine, (texts, width)


def test_what_is_padding_changes_nothing(long_dir: Path, graph: Callable[..., Graph]) -> None:
    manifest = artifact.read(long_dir).manifest
    engine = ort.from_memory(typed.runnable(graph("fp16")), "fp16", manifest)
    whole = engine.run(batch_of(5, 48), Heads.ALL)
    for i, row in enumerate(batch_of(5, 48).tokens):
        alone = engine.run(Batch(ragged([row], np.int32), np.array([0]), len(row)), Heads.ALL)
        assert alone.dense is not None
        assert whole.dense is not None
        # float16 rounds some sums the other way in another shape
        np.testing.assert_allclose(alone.dense[0], whole.dense[i], atol=2e-3)


def typed_model(long_dir: Path, dtype: ir.DataType = HALF) -> ir.Model:
    model = ir.load(artifact.read(long_dir).graph("portable"))
    mixed.mix(model, dtype)
    return model


@pytest.mark.parametrize("dtype", [HALF, ir.DataType.BFLOAT16])
def test_the_types_are_where_they_should_be(long_dir: Path, dtype: ir.DataType) -> None:
    model = typed_model(long_dir, dtype)
    known = edits.types(model)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    inside = [n for n in products if str(n.name).startswith("encoder.")]
    assert len(inside) == 6 * LONG.layers
    assert {known[operand(node, 1)] for node in inside} == {dtype}
    attention = [n for n in products if str(n.name).startswith("attention.")]
    assert len(attention) == 2 * LONG.layers
    assert {known[operand(node, i)] for node in attention for i in (0, 1)} == {FLOAT}
    sums = [n for n in model.graph if n.op_type in ("LayerNormalization", "Gelu", "Softmax")]
    assert {known[operand(node, 0)] for node in sums} == {FLOAT}
    outputs = {value.name: known[value] for value in model.graph.outputs}
    assert outputs == {"dense": FLOAT, "sparse": FLOAT, "colbert": HALF}
    assert {value.dtype for value in model.graph.inputs} == {ir.DataType.INT32}


def test_nothing_large_stays_in_float32(graph: Callable[..., Graph]) -> None:
    for precision, size in (("fp16", 2), ("bf16", 2), ("int8", 1), ("fp8", 1)):
        made = graph(precision)
        large = {name: array for name, array in made.weights.items() if array.size > 1 << 13}
        sizes = {array.itemsize for name, array in large.items() if "position" not in name}
        assert sizes == {size}


def test_equal_graphs_have_equal_hashes(graph: Callable[..., Graph]) -> None:
    assert graph("fp16").sha256 == graph("fp16").sha256
    assert len({graph(precision).sha256 for precision in PRECISIONS}) == len(PRECISIONS)


@pytest.mark.parametrize("precision", EIGHT_BITS)
def test_a_site_that_is_kept_stays_in_half_precision(
    precision: str, graph: Callable[..., Graph]
) -> None:
    site = "encoder.layer.1.intermediate.dense.weight"
    weights = graph(precision, (site, WORDS)).weights
    assert weights[f"{site}.float16"].dtype == np.float16
    assert weights[f"{WORDS}.float16"].dtype == np.float16
    others = [name for name in weights if name.startswith("encoder.") and name.endswith("float16")]
    assert others == [f"{site}.float16"]


def softmax_of(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "Softmax")


def keep_scores(model: ir.Model) -> None:
    """Keep the scores in float32 between the products."""
    mask = producer(operand(softmax_of(model), 0), "Add")
    up = producer(operand(mask, 0), "Cast")
    mask.replace_input_with(0, operand(producer(operand(up, 0), "Cast"), 0))


def keep_probabilities(model: ir.Model) -> None:
    """Keep what the softmax gives in float32."""
    softmax = softmax_of(model)
    mixing = next(n for n in model.graph if n.name == "attention.0.mixing")
    mixing.replace_input_with(0, softmax.outputs[0])


def add_up_in_half(model: ir.Model) -> None:
    """Give the products of one attention what was rounded, so that they add up in float16."""
    for node in [n for n in model.graph if str(n.name).startswith("attention.0.")]:
        for i in range(2):
            up = producer(operand(node, i), "Cast")
            node.replace_input_with(i, operand(up, 0))


def spread_the_mask(model: ir.Model) -> None:
    """Hold a mask for each pair of tokens."""
    mask = producer(operand(softmax_of(model), 0), "Add")
    value = operand(mask, 1)
    wide = edits.put(mask, "Add", [value, operand(mask, 0)])
    for node in [n for n in model.graph if n.op_type == "Softmax"]:
        producer(operand(node, 0), "Add").replace_input_with(1, wide)


def scale_the_scores(model: ir.Model) -> None:
    """Scale after the product in place of before."""
    scores = next(n for n in model.graph if n.name == "attention.0.scores")
    up = producer(operand(scores, 0), "Cast")
    up.replace_input_with(0, operand(producer(operand(up, 0), "Mul"), 0))


def normalise_in_half(model: ir.Model) -> None:
    """Let a LayerNorm compute its statistics from float16."""
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    norm.replace_input_with(0, edits.cast(norm, operand(norm, 0), HALF))


def mix_types(model: ir.Model) -> None:
    """Add float16 to float32."""
    residual = next(
        node
        for node in model.graph
        if node.op_type == "Add" and "LayerNorm" in str(operand(node, 1).producer())
    )
    residual.replace_input_with(0, edits.cast(residual, operand(residual, 0), HALF))


PLANTED = (
    keep_scores,
    keep_probabilities,
    add_up_in_half,
    spread_the_mask,
    scale_the_scores,
    normalise_in_half,
    mix_types,
)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_wrong_pattern_is_found(plant: Callable[[ir.Model], None], long_dir: Path) -> None:
    model = typed_model(long_dir)
    fusible.check(model, HALF)
    plant(model)
    with pytest.raises(UnexpectedGraphError):
        fusible.check(model, HALF)


def test_a_weight_beyond_float16(long_dir: Path) -> None:
    model = ir.load(artifact.read(long_dir).graph("portable"))
    name = "encoder.layer.0.intermediate.dense.weight"
    value = model.graph.initializers[name]
    assert value.const_value is not None
    numbers = value.const_value.numpy().copy()
    numbers[0, 0] = -1e5
    value.const_value = ir.tensor(numbers, name=name)
    mixed.mix(model, HALF)
    typed.remove_unused(model)
    with pytest.raises(ParityError, match=r"intermediate.* reaches 100000, .* --precision bf16"):
        typed.collect(model, BARS)


def test_only_exact_conversions_are_joined() -> None:
    x = np.array([1.0002, 65519.0, 1e-9, -3.3], np.float32)
    value = ir.Value(name="x", shape=ir.Shape([4]), type=ir.TensorType(FLOAT))
    nodes: list[ir.Node] = []
    for to in (HALF, FLOAT, HALF, FLOAT):
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0] if nodes else value], {"to": int(to)}))
    out = nodes[-1].outputs[0]
    out.name, out.type, out.shape = "y", ir.TensorType(FLOAT), ir.Shape([4])
    inner = ir.Graph([value], [out], nodes=nodes, opset_imports={"": 20})
    model = ir.Model(inner, ir_version=10)
    mixed.join_casts(model)
    assert [node.op_type for node in model.graph] == ["Cast", "Cast"]
    proto = ir.serde.serialize_model(model)
    session = InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(found, x.astype(np.float16).astype(np.float32))


def test_artifacts_of_other_shapes(odd_model_dir: Path, real_model_dir: Path) -> None:
    for folder in (odd_model_dir, real_model_dir):
        made: Artifact = artifact.read(folder)
        engine = ort.from_memory(
            typed.runnable(typed.write(made, "fp16", None, (), BARS)), "fp16", made.manifest
        )
        exact = ort.load(made, Choice("cpu-padded", "fp32"), 1)
        batch = batch_of(3, 20)
        for one in differences(exact.run(batch, Heads.ALL), engine.run(batch, Heads.ALL)):
            assert one < 1e-3
