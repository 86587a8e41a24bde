"""Every engine that can be opened here passes the contract."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import m3rt
from m3rt import Heads, artifact, engines, processor
from m3rt.types import Batch, ragged
from tests import contract
from tests.conftest import copied


def test_cpu_is_bit_equal_whatever_the_batch(model: m3rt.M3) -> None:
    contract.check(model, tolerance=0)


def test_cpu_real_tokenizer(real_model_dir: Path) -> None:
    contract.check(m3rt.load(real_model_dir, "cpu"), tolerance=0)


def test_portable_graph(model_dir: Path) -> None:
    contract.check(m3rt.load(model_dir, "cpu-padded"), tolerance=1e-6)


def test_portable_and_packed_agree(model: m3rt.M3, model_dir: Path) -> None:
    padded = m3rt.load(model_dir, "cpu-padded")
    assert padded.max_length == 2048
    a, b = (m.encode(contract.TEXTS, max_length=2048) for m in (model, padded))
    for i in range(len(contract.TEXTS)):
        contract.same(a, i, b, i, 1e-6)


# largest difference between a text alone and in a batch, and between heads together and apart
TOLERANCES = {
    "openvino:fp32": (1e-5, 1e-5),
    "openvino:bf16": (1e-2, 1e-2),
    "openvino:int8": (5e-2, 5e-2),
    # static scales, and float32 in between: not a bit depends on batch mates
    "cpu:int8": (0, 5e-2),
}


@pytest.mark.parametrize("spec", TOLERANCES)
def test_built_engines(spec: str, built_dir: Path) -> None:
    model = m3rt.load(built_dir, spec)
    assert model.engine.name == spec
    contract.check(model, *TOLERANCES[spec])


@pytest.mark.parametrize("spec", ["cpu:fp32", "cpu:int8", "openvino:bf16"])
def test_streams(spec: str, built_dir: Path) -> None:
    model = m3rt.load(built_dir, spec, streams=2)
    assert model.engine.limits.parallel == 2
    contract.check(model, *TOLERANCES.get(spec, (0, 1e-6)))


@pytest.mark.parametrize("spec", ["openvino:bf16", "openvino:fp32"])
def test_openvino_runs_what_is_not_built(spec: str, model_dir: Path, built_dir: Path) -> None:
    as_exported, built = m3rt.load(model_dir, spec), m3rt.load(built_dir, spec)
    a, b = as_exported.encode(contract.TEXTS), built.encode(contract.TEXTS)
    for i in range(len(contract.TEXTS)):
        # float16 in between rounds some weights to another bf16
        contract.same(a, i, b, i, 2e-2 if spec == "openvino:bf16" else 1e-6)


def test_openvino_keeps_the_tolerance_of_float32(model: m3rt.M3, model_dir: Path) -> None:
    a, b = (m.encode(contract.TEXTS) for m in (model, m3rt.load(model_dir, "openvino:fp32")))
    for i in range(len(contract.TEXTS)):
        contract.same(a, i, b, i, 1e-5)


def test_a_head_not_asked_for_is_not_computed(model_dir: Path, tmp_path: Path) -> None:
    graph = artifact.read(model_dir).graph("packed")

    def rows_computed(heads: Heads) -> dict[str, int]:
        return contract.rows_computed(graph, contract.batch_of(4, 6), heads, tmp_path)

    every = rows_computed(Heads.ALL)
    assert set(every.values()) == {10}
    layers = {name: rows for name, rows in every.items() if "MatMul" in name}
    none = {head: rows_computed(Heads.ALL & ~head) for head in (Heads.SPARSE, Heads.COLBERT)}
    for rows in none.values():
        (name,) = [name for name in rows if rows[name] != every[name]]
        assert rows[name] == 0
    # dense alone: the last layer's queries, output and feed-forward, for first tokens only
    dense = rows_computed(Heads.DENSE)
    assert sorted(dense.values()) == [0, 0, 2, 2, 2, 2, *[10] * (len(layers) - 6)]


@pytest.mark.parametrize("spec", ["cpu:fp32", "openvino:bf16", "cpu:int8"])
def test_a_head_not_asked_for_is_not_copied(spec: str, built_dir: Path) -> None:
    engine = m3rt.load(built_dir, spec).engine
    raw = engine.run(contract.batch_of(4, 6), Heads.DENSE)
    assert raw.dense is not None
    assert raw.dense.shape == (2, 64)
    assert (raw.weights, raw.colbert) == (None, None)


def test_int8_has_to_be_built(model_dir: Path) -> None:
    for spec in ("cpu:int8", "openvino:int8"):
        engine, precision = spec.split(":")
        with pytest.raises(
            m3rt.ArtifactError,
            match=f"not been built for {spec}; run: m3rt build .* --engine {engine} "
            f"--precision {precision}",
        ):
            m3rt.load(model_dir, spec)


def test_int8_is_refused_where_it_would_overflow(
    built_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = processor.Cpu("an old one", 2, ("avx2", "avx512f"))
    monkeypatch.setattr(processor, "read", lambda: old)
    with pytest.raises(m3rt.UnavailableError, match="an old one adds in 16 bits"):
        m3rt.load(built_dir, "cpu:int8")


@pytest.mark.parametrize("spec", ["cpu:fp16", "openvino:", "cpu-padded:int8"])
def test_unknown_precision(spec: str) -> None:
    if spec.endswith(":"):
        assert engines.choose(spec).precision in ("bf16", "fp32")
        return
    with pytest.raises(m3rt.InputError, match="has no precision"):
        engines.choose(spec)


def test_no_streams(model_dir: Path) -> None:
    with pytest.raises(m3rt.InputError, match="streams is 0, expected at least 1"):
        m3rt.load(model_dir, "cpu", streams=0)


def test_an_idle_engine_does_not_spin(built_dir: Path) -> None:
    for spec in ("cpu:fp32", "cpu:int8", "openvino:bf16"):
        m3rt.load(built_dir, spec).encode(contract.TEXTS)
        time.sleep(0.1)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.2, spec


def test_threads_share_one_model(model: m3rt.M3) -> None:
    expected = model.encode(contract.TEXTS)
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            order = np.random.default_rng(seed).permutation(len(contract.TEXTS))
            found = model.encode([contract.TEXTS[i] for i in order])
            for place, i in enumerate(order):
                contract.same(found, place, expected, int(i), 0)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_results_stay_when_the_model_runs_again(model: m3rt.M3) -> None:
    first = model.encode(contract.TEXTS)
    assert first.colbert is not None
    kept = [rows.copy() for rows in first.colbert]
    model.encode(["something else " * 50] * 3)
    for rows, copy in zip(first.colbert, kept, strict=True):
        np.testing.assert_array_equal(rows, copy)


def test_unknown_engine(model_dir: Path) -> None:
    with pytest.raises(m3rt.InputError, match="no engine 'gpu'; there are auto, openvino, cpu, "):
        m3rt.load(model_dir, "gpu")


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this one has CUDA"
)
def test_cuda_without_its_provider(model_dir: Path) -> None:
    with pytest.raises(m3rt.UnavailableError, match=r"no CUDAExecutionProvider.*m3rt\[cuda\]"):
        m3rt.load(model_dir, "cuda")
    assert not engines.probe("cuda").ready


def test_a_missing_package_names_the_command(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        package = "openvino" if name.endswith("ov") else "onnxruntime"
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(engines, "import_module", absent)
    with pytest.raises(m3rt.UnavailableError, match=r"pip install 'm3rt\[cpu\]'"):
        m3rt.load(model_dir, "cpu")
    with pytest.raises(m3rt.UnavailableError, match="no engine can run here"):
        m3rt.load(model_dir, "auto")


def test_a_truncated_graph_is_refused(model_dir: Path, tmp_path: Path) -> None:
    broken = copied(model_dir, tmp_path / "model")
    graph = broken.graph("packed")
    os.truncate(graph, 1000)
    with pytest.raises(m3rt.ArtifactError, match="ONNX Runtime cannot open"):
        engines.load(broken, "cpu")
    os.truncate(broken.graph("grouped"), 1000)
    with pytest.raises(m3rt.ArtifactError, match="OpenVINO cannot open"):
        engines.load(broken, "openvino")


def test_ids_beyond_the_vocabulary_are_an_engine_error(model: m3rt.M3) -> None:
    tokens = ragged([np.array([0, 10**6, 2], np.int32)], np.int32)
    with pytest.raises(m3rt.EngineError, match="ONNX Runtime failed"):
        model.engine.run(Batch(tokens, np.array([0]), 3), Heads.ALL)


def test_a_text_beyond_the_engine_is_cut_or_refused(model_dir: Path) -> None:
    padded = m3rt.load(model_dir, "cpu-padded")
    found = padded.encode(["water " * 3000])
    assert found.truncated.tolist() == [True]
    assert found.n_tokens.tolist() == [2048]
    with pytest.raises(m3rt.InputError, match="max_length is 4096, expected 2 to 2048"):
        padded.encode(["water"], max_length=4096)


def test_nothing_is_written_in_the_home_directory(model_dir: Path, tmp_path: Path) -> None:
    """ONNX Runtime would keep an identifier there, and what it is about to send."""
    code = f"import m3rt; m3rt.load({str(model_dir)!r}, 'cpu').encode(['a text'])"
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(Path(m3rt.__file__).parents[1])}
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        env.pop(name, None)
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
    assert list(tmp_path.iterdir()) == []
