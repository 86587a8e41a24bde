"""The model card, from card.md and the measured results.

python -m benchmarks.small.card
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import quality
from benchmarks.small import CHECKPOINT

RESULTS = Path(__file__).parents[1] / "results"

CARD = Path(__file__).with_name("card.md")

SITES = {
    "attention in": "self.query",
    "attention out": "attention.output",
    "feed-forward in": "intermediate",
    "feed-forward out": ".output.dense",
}
MODELS = {"small": "small", "hard": "its hard case", "minilm": "all-MiniLM-L6-v2, trained"}


def activations(found: Mapping[str, list[Mapping[str, Any]]]) -> str:
    """Return the table of reaches, by model and site."""
    lines = [f"| | {' | '.join(SITES)} |", f"|---|{'---|' * len(SITES)}"]
    for model, title in MODELS.items():
        cells = []
        for part in SITES.values():
            reach = [
                one["over_median"]
                for one in found[model]
                if part in one["site"] and ("attention" in part) == ("attention.out" in one["site"])
            ]
            cells.append(f"{min(reach):.1f} to {max(reach):.1f}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def card() -> str:
    """Return the card."""
    scores, reaches = (
        json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        for name in ("quality", "activations")
    )
    return CARD.read_text("utf-8").format(
        scores=quality.markdown(scores), activations=activations(reaches)
    )


if __name__ == "__main__":
    (CHECKPOINT / "README.md").write_text(card(), "utf-8")
