"""What each engine and precision keeps of retrieval, measured on the small trained M3.

    python -m benchmarks.quality --data SHARED_DATA --work FOLDER --json RESULT.json

Ten languages of XQuAD, question to paragraph, which the model has never seen, and SciFact, whose
abstracts it has. Each engine is built, with its certificate, and measured as by m3rt eval: five
modes, the paper's weights, re-ranking of the top 200; and SciFact with the paper's weights for
MLDR. FOLDER keeps the model directory. Some
twenty minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.progress import Progress

import m3rt
from benchmarks import machine
from benchmarks.small import CHECKPOINT
from m3rt import artifact, build, datasets, engines, evaluation, export, significance
from m3rt.artifact import Artifact
from m3rt.certificate import Certificate
from m3rt.engines import Choice
from m3rt.engines.trt import builder
from m3rt.engines.trt.plan import Plan
from m3rt.engines.unpadded import files
from m3rt.evaluation import Evaluation
from m3rt.export import quantize, typed
from m3rt.export.quantize import Recipe
from m3rt.graph import Graph
from m3rt.protocol import MIXTURES, Protocol
from m3rt.rehearsal import rehearse
from m3rt.trial import EIGHT_BITS, IN_MEMORY

SPECS = (
    *("cpu:fp32", "openvino:bf16", "cpu:int8", "openvino:int8"),
    # where there is no GPU, as the graphs that they are built from, on ONNX Runtime
    *("tensorrt-rtx:fp16", "tensorrt-rtx:bf16", "tensorrt-rtx:int8", "tensorrt-rtx:fp8"),
    "cuda:fp16",
)
LANGUAGES = ("de", "el", "en", "es", "hi", "ro", "ru", "tr", "vi", "zh")
MEASURES = ("nDCG@10", "Recall@100", "MRR")
GOALS = {
    "fp32": 0.001,
    "bf16": 0.001,
    "fp16": 0.001,
    "int8": 0.01,
    "fp8": 0.01,
}  # part of nDCG@10 that may be lost
# claims share rare words with their abstracts: as for MLDR, whose weights these are, sparse leads
LEXICAL = "scifact-mldr"
MLDR = Protocol(("dense+sparse",), MIXTURES["mldr"])
TITLES = {
    "xquad": "XQuAD, 10 languages",
    "scifact": "SciFact",
    LEXICAL: "SciFact, MLDR's weights",
}
MODES = ("dense", "sparse", "colbert", "dense+sparse", "all")


def prepare(model: Path, specs: Sequence[str]) -> Path:
    """Export the small model and build it for these engines, where that is not done yet."""
    if not model.exists():
        export.run(str(CHECKPOINT), model)
    for spec in specs:
        if spec != "cpu:fp32" and spec not in artifact.read(model).manifest.builds:
            build.run(model, spec)
    return model


def opened(model: Path, spec: str) -> m3rt.M3:
    """Open an engine; one whose device is not here, as the graph it was built from."""
    made, choice = artifact.read(model), Choice(*spec.split(":"))
    form = engines.form(choice)
    if form not in IN_MEMORY or engines.probe(choice.engine).ready:
        return m3rt.load(model, spec)
    graph = files.read(made, choice) if form == "unpadded" else typed_graph(made, choice)
    started = rehearse(made, choice, graph, made.manifest.max_length)
    assert isinstance(started, m3rt.M3)
    return started


def typed_graph(made: Artifact, choice: Choice) -> Graph:
    """Return the graph that a TensorRT engine was built from."""
    grid = quantize.grid("typed", choice.precision)
    recipe = Recipe.read(made.path, grid, None) if choice.precision in EIGHT_BITS else None
    how = made.manifest.builds[str(choice)].recipe
    bars = Progress(disable=True)
    graph = typed.write(made, choice.precision, recipe, tuple(how.get("kept", ())), bars)
    plan = Plan.read(how)
    library = f"{plan.library} {plan.version}"
    assert plan.key == builder.key(graph, choice.precision, plan.profiles, library, plan.target), (
        "not the graph that the engine was built from"
    )
    return graph


def summary(found: Evaluation) -> dict[str, dict[str, float]]:
    """Return the means, by mode and measure."""
    return {one.mode: {m: round(v, 5) for m, v in one.means.items()} for one in found.modes}


def average(of: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the means over data sets, by mode and measure."""
    return {
        mode: {name: round(fmean(one[mode][name] for one in of), 5) for name in of[0][mode]}
        for mode in of[0]
    }


def losses(
    exact: Mapping[str, Mapping[str, float]], found: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """Return the part of nDCG@10 that is lost, by mode; negative where something is won."""
    name = MEASURES[0]
    return {mode: round(1 - found[mode][name] / exact[mode][name], 5) for mode in exact}


def certified(model: Path, spec: str) -> dict[str, Any] | None:
    """Return what the manifest says of a build of reduced precision."""
    entry = artifact.read(model).manifest.builds.get(spec)
    if entry is None or not isinstance(entry.certificate, Certificate):
        return None
    said = dataclasses.asdict(entry.certificate)
    return {"certificate": said, "recovery": entry.recipe.get("recovery")}


def main(
    data: Annotated[Path, typer.Option(help="Shared data: ir.")],
    work: Annotated[Path, typer.Option(help="Keeps the model directory.")],
    result: Annotated[Path, typer.Option("--json", help="File to write.")],
    specs: Annotated[str, typer.Option(help="Engines; the first is compared with.")] = ",".join(
        SPECS
    ),
) -> None:
    """Measure every engine."""
    chosen = specs.split(",")
    sets = {
        f"xquad.{language}": datasets.read(data / "ir" / "xquad" / f"xquad.{language}.json")
        for language in LANGUAGES
    }
    sets["scifact"] = sets[LEXICAL] = datasets.read(data / "ir" / "scifact")
    model = prepare(work / "small", chosen)
    exact: dict[str, Evaluation] = {}
    found: dict[str, Any] = {
        "machine": machine.describe(),
        "checkpoint": {
            name: file.sha256 for name, file in artifact.read(model).manifest.source.files.items()
        },
        "sets": {
            name: {"queries": len(one.queries), "documents": len(one.documents)}
            for name, one in sets.items()
        },
        "goals": GOALS,
        "engines": {},
    }
    for spec in chosen:
        started = opened(model, spec)
        by_set, tests = {}, {}
        for name, dataset in sets.items():
            how = MLDR if name == LEXICAL else None
            measured = evaluation.evaluate(started, dataset, how, wanted=MEASURES)
            by_set[name] = summary(measured)
            if spec == chosen[0]:
                exact[name] = measured
            else:
                tests[name] = {
                    one.mode: {"p": one.p, "better": one.better, "worse": one.worse}
                    for one in significance.compare(exact[name], measured)
                    if one.measure == MEASURES[0]
                }
            typer.echo(f"{spec} {name} {by_set[name]}")
        means = {
            "xquad": average([by_set[f"xquad.{language}"] for language in LANGUAGES]),
            "scifact": by_set["scifact"],
            LEXICAL: by_set[LEXICAL],
        }
        first = found["engines"].get(chosen[0], {"means": means})["means"]
        found["engines"][spec] = {
            "means": means,
            "sets": by_set,
            "loss": {name: losses(first[name], means[name]) for name in means},
            "tests": tests,
            "build": certified(model, spec),
        }
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def markdown(found: Mapping[str, Any]) -> str:
    """Return the table of nDCG@10 that README and the model card show."""
    lines = [
        f"| nDCG@10, in percent | {' | '.join(MODES)} | worst loss |",
        f"|---|{'--:|' * (len(MODES) + 1)}",
    ]
    for name, title in TITLES.items():
        for spec, one in found["engines"].items():
            means = one["means"][name]
            cells = [f"{100 * means[m][MEASURES[0]]:.2f}" if m in means else "" for m in MODES]
            worst = max(one["loss"][name].values())
            lines.append(f"| {title}, {spec} | {' | '.join(cells)} | {100 * worst:.2f} % |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
