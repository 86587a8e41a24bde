"""Every engine that can be opened here passes the contract."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import m3rt
from m3rt import Heads, artifact, engines
from m3rt.engines import ort as onnxruntime_engine
from m3rt.types import Batch, Limits, ragged
from tests import contract
from tests.conftest import copied


def test_cpu_is_bit_equal_whatever_the_batch(model: m3rt.M3) -> None:
    contract.check(model, tolerance=0)


def test_cpu_real_tokenizer(real_model_dir: Path) -> None:
    contract.check(m3rt.load(real_model_dir), tolerance=0)


def test_portable_graph(model_dir: Path) -> None:
    contract.check(m3rt.load(model_dir, "cpu-padded"), tolerance=1e-6)


def test_portable_and_packed_agree(model: m3rt.M3, model_dir: Path) -> None:
    padded = m3rt.load(model_dir, "cpu-padded")
    assert padded.max_length == 2048
    a, b = (m.encode(contract.TEXTS, max_length=2048) for m in (model, padded))
    for i in range(len(contract.TEXTS)):
        contract.same(a, i, b, i, 1e-6)


def test_a_head_not_asked_for_is_not_computed(model_dir: Path, tmp_path: Path) -> None:
    graph = artifact.read(model_dir).graph("packed")

    def computed(heads: Heads) -> set[str]:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(graph, options)
        engine = onnxruntime_engine.Packed(session, Limits(64, 64, pads=False), Heads.ALL)
        tokens = ragged([np.array([0, 5, 6, 2], np.int32)], np.int32)
        engine.run(Batch(tokens, np.array([0]), 4), heads)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
        return {event["name"] for event in events if event["cat"] == "Node"}

    every = computed(Heads.ALL)
    for head in Heads.ALL:
        without = computed(Heads.ALL & ~head)
        assert len(without) < len(every), head
        assert without < every, head


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
    with pytest.raises(m3rt.InputError, match="no engine 'gpu'; there are auto, cpu, "):
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
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    monkeypatch.setattr(engines, "import_module", absent)
    with pytest.raises(m3rt.UnavailableError, match=r"pip install 'm3rt\[cpu\]'"):
        m3rt.load(model_dir, "cpu")
    with pytest.raises(m3rt.UnavailableError, match="no engine can run here"):
        m3rt.load(model_dir)


def test_a_truncated_graph_is_refused(model_dir: Path, tmp_path: Path) -> None:
    broken = copied(model_dir, tmp_path / "model")
    graph = broken.graph("packed")
    os.truncate(graph, 1000)
    with pytest.raises(m3rt.ArtifactError, match="ONNX Runtime cannot open"):
        onnxruntime_engine.load(broken, "cpu")


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
