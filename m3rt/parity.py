"""How far a model's outputs are from its checkpoint's: the figures, and the gate they pass.

``m3rt export`` runs the checkpoint in torch on a set of texts and keeps what came out in
reference.npz, so that ``m3rt verify`` can repeat the comparison on any machine, with any engine,
without torch.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from m3rt import engines, score
from m3rt.api import start
from m3rt.artifact import Artifact
from m3rt.engines import Choice
from m3rt.errors import ArtifactError, ParityError, UnavailableError
from m3rt.heads import lexical
from m3rt.runtime import M3
from m3rt.types import Embeddings, Floats, Ragged, Sparse, Tokens

REFERENCE = "reference.npz"


TOP = 10  # lexical weights of a text that a search would keep at the least


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Limits of the gate; the defaults are for an engine in float32."""

    dense_cosine: float = 0.999999
    colbert_cosine: float = 0.99999
    weight_error: float = 1e-5
    near_zero: float = 1e-6  # a lexical weight this small may be there or not
    maxsim_error: float = 1e-4


EXACT = Tolerances()

# bf16 rounds to 8 bits of fraction, which is what the loss is made of; int8 is a sanity check
# here, for what it costs in retrieval depends on the weights and is measured on retrieval.
TOLERANCES = {
    "fp32": EXACT,
    "bf16": Tolerances(0.9995, 0.9995, weight_error=0.03, near_zero=0.01, maxsim_error=5e-3),
    "int8": Tolerances(0.98, 0.9, weight_error=0.3, near_zero=0.1, maxsim_error=0.1),
}


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What the checkpoint itself gives for n texts, in float32.

    ColBERT vectors are kept for every row of short texts and for a sample of a long one's.
    """

    ids: Ragged[np.int32]
    dense: Floats | None  # (n, h) unit vectors
    weights: Floats | None  # (t,) one per token, before merging
    colbert: Ragged[np.float32] | None  # sampled rows (r_i, d) of unit vectors
    colbert_rows: Ragged[np.int32] | None  # (r_i,) which rows: 0 is the second token's

    def upto(self, length: int) -> Reference:
        """Return the texts of at most so many tokens."""
        rows = np.flatnonzero(self.ids.lengths <= length)
        weights = None if self.weights is None else Ragged(self.weights, self.ids.starts)
        return Reference(
            ids=self.ids.take(rows),
            dense=None if self.dense is None else self.dense[rows],
            weights=None if weights is None else weights.take(rows).values,
            colbert=None if self.colbert is None else self.colbert.take(rows),
            colbert_rows=None if self.colbert_rows is None else self.colbert_rows.take(rows),
        )

    def save(self, path: Path) -> None:
        """Write it as npz."""
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Ragged):
                arrays[field.name] = value.values
                arrays[f"{field.name}_starts"] = value.starts
            elif value is not None:
                arrays[field.name] = value
        np.savez(path, **arrays)  # type: ignore[arg-type] # numpy's stub takes allow_pickle: bool

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Read what save wrote.

        Raises:
            ArtifactError: it is not such a file.
        """

        def ragged_of(name: str) -> Ragged[Any] | None:
            return Ragged(file[name], file[f"{name}_starts"]) if name in file else None

        try:
            with np.load(path, allow_pickle=False) as file:
                ids = ragged_of("ids")
                if ids is None:
                    raise KeyError("ids")
                return cls(
                    ids=ids,
                    dense=file.get("dense"),
                    weights=file.get("weights"),
                    colbert=ragged_of("colbert"),
                    colbert_rows=ragged_of("colbert_rows"),
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ArtifactError(
                f"{path} is not a parity reference ({error}); run: m3rt export CHECKPOINT OUT"
            ) from error


def verify(
    artifact: Artifact, engine: str = "auto", progress: Progress | None = None
) -> dict[str, Any]:
    """Compare an engine on this machine with what the checkpoint gave at export.

    Args:
        artifact: a model directory.
        engine: name of an engine, or auto.
        progress: gets a bar.

    Returns:
        The figures of each head; the form of ``Manifest.parity``.

    Raises:
        ParityError: a figure is out of tolerance.
    """
    return gate(artifact, Reference.read(artifact.path / REFERENCE), engine, progress)


def gate(
    artifact: Artifact,
    reference: Reference,
    engine: str,
    progress: Progress | None = None,
    longest: int | None = None,
) -> dict[str, Any]:
    """Run the reference's texts and judge the difference by the engine's precision.

    Args:
        artifact: the model.
        reference: what the checkpoint gave.
        engine: name, with a precision if you like; auto is resolved.
        progress: gets a bar.
        longest: leave out longer texts, for an engine that would take too long.

    Raises:
        ParityError: a figure is out of tolerance; ``error.parity`` holds all of them.
    """
    choice = usable(engine)
    name = str(choice)
    model = start(artifact, name)
    reference = reference.upto(min(longest or model.max_length, model.max_length))
    found = encode(model, reference, f"run the model: {name}", progress)
    limits = TOLERANCES[choice.precision]
    figures = compare(reference, found, artifact.manifest.unscored_ids, limits)
    figures["engine"] = name
    reasons = failures(figures, limits)
    figures["ok"] = not reasons
    if reasons:
        raise ParityError(f"the {name} engine differs from the checkpoint: {reasons}", figures)
    return figures


def usable(engine: str) -> Choice:
    """Return engine and precision, auto resolved.

    Raises:
        UnavailableError: it cannot run here.
    """
    choice = engines.choose(engine)
    found = engines.probe(choice.engine)
    if not found.ready:
        raise UnavailableError(found.detail)
    return choice


def encode(model: M3, reference: Reference, title: str, progress: Progress | None) -> Embeddings:
    """Run the reference's ids."""
    tokens = Tokens(reference.ids, np.zeros(len(reference.ids), np.bool_))
    bar = progress or Progress(disable=True)
    task = bar.add_task(title, total=len(reference.ids.values))
    return model.encode_tokens(
        tokens, progress=lambda batch: bar.advance(task, len(batch.tokens.values))
    )


def compare(
    reference: Reference,
    found: Embeddings,
    unscored: tuple[int, ...],
    limits: Tolerances | None = None,
) -> dict[str, Any]:
    """Return the figures of every head that both have, and the limits they should keep to."""
    limits = limits or EXACT
    lengths = reference.ids.lengths
    figures: dict[str, Any] = {
        "texts": len(lengths),
        "tokens": int(lengths.sum()),
        "longest": int(lengths.max()),
        "tolerances": dataclasses.asdict(limits),
    }
    if reference.dense is not None and found.dense is not None:
        figures["dense"] = cosines(reference.dense, found.dense)
    if reference.weights is not None and found.sparse is not None:
        expected = lexical(reference.ids, reference.weights, unscored)
        figures["sparse"] = sparse_figures(expected, found.sparse, limits.near_zero)
    if reference.colbert is not None and found.colbert is not None:
        assert reference.colbert_rows is not None
        sampled = [rows[reference.colbert_rows[i]] for i, rows in enumerate(found.colbert)]
        expected_rows = [reference.colbert[i] for i in range(len(lengths))]
        figures["colbert"] = cosines(reference.colbert.values, np.concatenate(sampled)) | {
            "maxsim_error_max": float(
                np.abs(
                    score.maxsim(expected_rows, expected_rows) - score.maxsim(sampled, sampled)
                ).max()
            )
        }
    return figures


def cosines(expected: Floats, found: Floats) -> dict[str, float]:
    """Return the worst and the mean cosine over rows; float64, or 1 - 1e-7 would round."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.einsum("ij,ij->i", a, b) / np.maximum(norms, 1e-12)
    return {"cosine_min": float(cosine.min()), "cosine_mean": float(cosine.mean())}


def sparse_figures(
    expected: Sparse, found: Sparse, near_zero: float = EXACT.near_zero
) -> dict[str, Any]:
    """Compare the sets of keys, the weights, and which weights are the greatest.

    A key on one side only has weight 0 on the other. ``top10_equal`` is the share of texts whose
    ten heaviest keys are the same.
    """
    differ, worst, equal = 0, 0.0, 0
    for i in range(len(expected)):
        a, b = expected[i], found[i]
        for key in a.keys() | b.keys():
            error = abs(a.get(key, 0.0) - b.get(key, 0.0))
            worst = max(worst, error)
            differ += (key in a) != (key in b) and error > near_zero
        equal += heaviest(a) == heaviest(b)
    return {
        "key_sets_equal": differ == 0,
        "keys_differ": differ,
        "weight_error_max": worst,
        "top10_equal": equal / max(1, len(expected)),
    }


def heaviest(weights: Mapping[int, float]) -> set[int]:
    """Return the keys of the greatest weights."""
    return set(sorted(weights, key=lambda key: (-weights[key], key))[:TOP])


def failures(figures: Mapping[str, Any], limits: Tolerances) -> str:
    """Say which figures are out of tolerance; empty if none is."""
    checks = (
        ("dense", "cosine_min", limits.dense_cosine, False),
        ("colbert", "cosine_min", limits.colbert_cosine, False),
        ("colbert", "maxsim_error_max", limits.maxsim_error, True),
        ("sparse", "weight_error_max", limits.weight_error, True),
        ("sparse", "keys_differ", 0, True),
    )
    found = []
    for head, name, limit, is_most in checks:
        value = figures.get(head, {}).get(name)
        # written so that NaN fails
        if value is not None and not (value <= limit if is_most else value >= limit):
            bound = "at most" if is_most else "at least"
            found.append(f"{head} {name} is {value}, expected {bound} {limit}")
    return "; ".join(found)
