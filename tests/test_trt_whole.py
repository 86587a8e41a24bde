"""From m3rt build to vectors where a GPU is there; builder and device are stood in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx
from rich.progress import Progress
from typer.testing import CliRunner

import m3rt
from m3rt import artifact, build, cli, nvidia
from m3rt.engines.trt import builder
from m3rt.engines.trt.plan import Plan
from m3rt.engines.trt.profiles import Profile
from m3rt.engines.trt.shaping import Shaping
from m3rt.errors import ParityError
from m3rt.graph import Graph
from m3rt.nvidia import Driver, Gpu
from tests import contract, emulated
from tests.conftest import copied
from tests.emulated_cuda import EmulatedCuda

SHAPING = Shaping(max_tokens=8192)


@pytest.fixture
def mine(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model directory on a machine with TensorRT and a GPU."""
    folder = copied(model_dir, tmp_path / "mine").path
    emulated.install(monkeypatch, EmulatedCuda(), "tensorrt")
    driver = Driver("13.0", (Gpu(0, "Emulated GPU", (8, 6), 1 << 30),))
    monkeypatch.setattr(nvidia, "missing", lambda: None)
    monkeypatch.setattr(nvidia, "read", lambda: driver)

    def pretend(
        trt: ModuleType,
        graph: Graph,
        profiles: Sequence[Profile],
        target: Sequence[str],
        out: Path,
        cache: Path | None,
        bars: Progress,
    ) -> builder.Built:
        assert trt.__name__ == "tensorrt_rtx" or not target
        contents = emulated.contents_of(artifact.read(folder), profiles)
        out.write_bytes(emulated.MAGIC + json.dumps(contents).encode())
        memory = tuple(emulated.PER_TOKEN * p.most[0] * p.most[1] for p in profiles)
        return builder.Built(memory, emulated.WEIGHTS, ())

    monkeypatch.setattr(builder, "build", pretend)
    return folder


def test_the_engine_itself_is_certified_and_chosen(mine: Path) -> None:
    choice, made = build.run(mine, shaping=SHAPING)  # auto
    assert str(choice) == "tensorrt:fp16"
    entry = made.manifest.builds["tensorrt:fp16"]
    assert Plan.read(entry.recipe).target == ("sm86",)
    assert entry.parity["engine"] == "tensorrt:fp16"
    assert entry.certificate is not None
    assert entry.certificate.engine == "tensorrt:fp16"
    model = m3rt.load(mine)
    assert model.engine.name == "tensorrt:fp16"
    assert "built for this GPU" in model.why
    contract.check(model, tolerance=2e-3)
    exact = m3rt.load(mine, "cpu:fp32").encode(contract.TEXTS)
    found = model.encode(contract.TEXTS)
    for i in range(len(contract.TEXTS)):
        contract.same(found, i, exact, i, 2e-3)


def test_an_engine_for_another_gpu_is_judged_by_its_graph(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = tensorrt_rtx.ComputeCapability
    library = emulated.install(monkeypatch, EmulatedCuda(), "tensorrt_rtx")
    monkeypatch.setattr(library, "ComputeCapability", targets, raising=False)
    for target, judged in (("sm120", "as its graph on ONNX Runtime"), ("sm86", "")):
        shaping = Shaping(max_tokens=8192, target=(target,))
        _, made = build.run(mine, "tensorrt-rtx:fp16", shaping=shaping, force=True)
        engine = made.manifest.builds["tensorrt-rtx:fp16"].parity["engine"]
        assert engine == f"tensorrt-rtx:fp16 {judged}".strip()


def test_the_commands_show_it(mine: Path) -> None:
    run = CliRunner().invoke
    done = run(cli.app, ["build", str(mine), "--engine", "tensorrt", "--max-tokens", "8192"])
    assert done.exit_code == 0, done.output
    assert "tensorrt 10.13.3.9 for sm86" in done.stdout
    assert "weights" in done.stdout
    assert "tensorrt:fp16" in run(cli.app, ["inspect", str(mine)]).stdout
    done = run(cli.app, ["verify", str(mine), "--engine", "tensorrt:fp16", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["parity"]["engine"] == "tensorrt:fp16"


def test_int8_is_calibrated_for_the_grid_of_gpus(mine: Path) -> None:
    build.run(mine, "tensorrt:int8", shaping=SHAPING)
    assert (mine / "int8-symmetric-recipe.npz").is_file()
    assert not (mine / "int8-recipe.npz").exists()
    done = build.run(mine, "cpu:int8")[1].manifest
    assert {"tensorrt:int8", "cpu:int8"} <= done.builds.keys()
    assert (mine / "int8-symmetric-recipe.npz").is_file()


def test_an_engine_that_is_wrong_is_not_kept(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successful build is no proof: what the engine gives decides."""
    right = emulated.ExecutionContext._compute

    def wrong(self: Any, places: dict[str, Any], *rest: Any) -> None:
        right(self, places, *rest)
        address, shape, dtype = places["dense"]
        self.cuda.at(address, int(np.prod(shape)) * dtype.itemsize, 0).view(dtype)[::3] *= -1

    monkeypatch.setattr(emulated.ExecutionContext, "_compute", wrong)
    before = sorted(file.name for file in mine.iterdir())
    with pytest.raises(ParityError, match="tensorrt:fp16 engine differs from float32: dense"):
        build.run(mine, "tensorrt:fp16", shaping=SHAPING)
    assert sorted(file.name for file in mine.iterdir()) == before
