"""The result: read, added to, and written at once after every figure."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Record:
    """gpu.json. Figures are of a run, which is one machine since its start.

    Only figures of one run are put in a ratio. A later call on the same machine is the same run.
    """

    def __init__(self, path: Path, boot: str, gpu: str | None) -> None:
        self.path = path
        self.found: dict[str, Any] = {"runs": {}, "rows": {}}
        if path.exists():
            self.found = json.loads(path.read_text("utf-8"))
        known = [name for name in self.found["runs"] if name.endswith(f" {boot}")]
        self.run: str = known[-1] if known else f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S} {boot}"
        about = self.found["runs"].setdefault(self.run, {"gpu": gpu, "calls": []})
        self.about: dict[str, Any] = about

    def row(self, name: str, **about: Any) -> dict[str, Any]:
        """Return a contender's row, made if need be."""
        row: dict[str, Any] = self.found["rows"].setdefault(name, about)
        return row

    def figures(self, name: str) -> dict[str, Any]:
        """Return a contender's figures of this run, by the keys of what is measured."""
        figures: dict[str, Any] = self.row(name).setdefault("figures", {}).setdefault(self.run, {})
        return figures

    def known(self, name: str, key: str, rounds: int) -> bool:
        """Whether a figure of any run is complete: it failed, or has all its rounds."""
        runs = self.row(name).get("figures", {}).values()
        return any(
            "error" in figure or figure.get("rounds", 0) >= rounds
            for figure in (figures.get(key, {}) for figures in runs)
        )

    def forget_errors(self) -> None:
        """Forget what failed, so that it is tried again."""
        for row in self.found["rows"].values():
            row.pop("error", None)
            for figures in row.get("figures", {}).values():
                for key in [key for key, figure in figures.items() if "error" in figure]:
                    del figures[key]

    def write(self) -> None:
        """Write it; a file that is there is replaced at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text(text(self.found), "utf-8")
        part.replace(self.path)


def text(found: Any) -> str:
    """Return JSON with each list of numbers on one line."""
    return (
        re.sub(
            r"\[[-\d.,e+\s]+\]",
            lambda numbers: re.sub(r"\s+", " ", numbers[0]).replace("[ ", "[").replace(" ]", "]"),
            json.dumps(found, indent=1),
        )
        + "\n"
    )
