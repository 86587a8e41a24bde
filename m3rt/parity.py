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
from numpy.typing import NDArray
from rich.progress import Progress

from m3rt import engines, score
from m3rt.api import start_any
from m3rt.artifact import Artifact
from m3rt.certificate import Failure, failures
from m3rt.engines import Choice
from m3rt.errors import ArtifactError, ParityError, UnavailableError
from m3rt.heads import lexical
from m3rt.reranker import Reranker
from m3rt.runtime import M3
from m3rt.tolerances import EXACT, TOLERANCES, Tolerances
from m3rt.types import Batch, Embeddings, Floats, Heads, Ragged, Sparse, Tokens

REFERENCE = "reference.npz"
HEADS = (Heads.ALL | Heads.SCORE).names
TOP = 10  # lexical weights of a text that a search would keep at the least


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
    scores: Floats | None = None  # (n,) of a reranker, whose texts are pairs

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
            scores=None if self.scores is None else self.scores[rows],
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
                    scores=file.get("scores"),
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
    choice = usable(engine, artifact)
    model = start_any(artifact, str(choice))
    figures, failed = judge(model, reference, TOLERANCES[choice.precision], progress, longest)
    if failed:
        reasons = "; ".join(map(str, failed))
        raise ParityError(f"the {choice} engine differs from the checkpoint: {reasons}", figures)
    return figures


def judge(
    model: M3 | Reranker,
    reference: Reference,
    limits: Tolerances,
    progress: Progress | None = None,
    longest: int | None = None,
) -> tuple[dict[str, Any], tuple[Failure, ...]]:
    """Run the reference's texts; return the figures, and those that are out of tolerance."""
    name = model.engine.name
    reference = reference.upto(min(longest or model.max_length, model.max_length))
    found = encode(model, reference.ids, f"run the model: {name}", progress)
    figures = compare(reference, found, model.manifest.unscored_ids, limits)
    failed = failures({head: figures[head] for head in HEADS if head in figures}, limits)
    return figures | {"engine": name, "ok": not failed}, failed


def usable(engine: str, artifact: Artifact | None = None) -> Choice:
    """Return engine and precision, auto resolved; for what is to run, see engines.choose.

    Raises:
        UnavailableError: it cannot run here.
    """
    choice = engines.choose(engine, artifact)
    found = engines.probe(choice.engine)
    if not found.ready:
        raise UnavailableError(found.detail)
    return choice


def encode(
    model: M3 | Reranker, ids: Ragged[np.int32], title: str = "", progress: Progress | None = None
) -> Embeddings | Floats:
    """Run token ids; of a reranker, return the scores (n,)."""
    tokens = Tokens(ids, np.zeros(len(ids), np.bool_))
    bar = progress or Progress(disable=True)
    task = bar.add_task(title, total=len(ids.values))

    def advance(batch: Batch) -> None:
        bar.advance(task, len(batch.tokens.values))

    if isinstance(model, Reranker):
        return model.score_tokens(tokens, progress=advance).scores
    return model.encode_tokens(tokens, progress=advance)


def compare(
    reference: Reference,
    found: Embeddings | Floats,
    unscored: tuple[int, ...],
    limits: Tolerances | None = None,
) -> dict[str, Any]:
    """Return the figures of every head that both have, and the limits they should keep to.

    Found are embeddings, or the scores of a reranker.
    """
    limits = limits or EXACT
    lengths = reference.ids.lengths
    figures: dict[str, Any] = {
        "texts": len(lengths),
        "tokens": int(lengths.sum()),
        "longest": int(lengths.max()),
        "tolerances": dataclasses.asdict(limits),
    }
    if not isinstance(found, Embeddings):
        if reference.scores is not None:
            figures["score"] = score_figures(reference.scores, found, limits.score_error)
        return figures
    colbert = None
    if reference.colbert is not None and found.colbert is not None:
        assert reference.colbert_rows is not None
        colbert = list(reference.colbert)
        kept = [rows[reference.colbert_rows[i]] for i, rows in enumerate(found.colbert)]
        found = dataclasses.replace(found, colbert=kept)
    expected = Embeddings(
        dense=reference.dense,
        sparse=None
        if reference.weights is None
        else lexical(reference.ids, reference.weights, unscored),
        colbert=colbert,
        n_tokens=lengths,
        truncated=np.zeros(len(lengths), np.bool_),
    )
    return figures | differences(expected, found, limits)


def differences(expected: Embeddings, found: Embeddings, limits: Tolerances) -> dict[str, Any]:
    """Return the figures of every head that both have."""
    figures: dict[str, Any] = {}
    if expected.dense is not None and found.dense is not None:
        figures["dense"] = cosines(expected.dense, found.dense)
    if expected.sparse is not None and found.sparse is not None:
        figures["sparse"] = sparse_figures(expected.sparse, found.sparse, limits.near_zero)
    if expected.colbert is not None and found.colbert is not None:
        a, b = expected.colbert, found.colbert
        error = np.abs(score.maxsim(a, a) - score.maxsim(b, b)).max()
        figures["colbert"] = cosines(np.concatenate(a), np.concatenate(b)) | {
            "maxsim_error_max": float(error)
        }
    return figures


def cosines(expected: Floats, found: Floats) -> dict[str, float]:
    """Return the worst and the mean cosine over rows."""
    cosine = cosine_of(expected, found)
    return {"cosine_min": float(cosine.min()), "cosine_mean": float(cosine.mean())}


def cosine_of(expected: Floats, found: Floats) -> NDArray[np.float64]:
    """Return the cosine of each row with its like, in float64, or 1 - 1e-7 would round."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine: NDArray[np.float64] = np.einsum("ij,ij->i", a, b) / np.maximum(norms, 1e-12)
    return cosine


def score_figures(expected: Floats, found: Floats, limit: float) -> dict[str, float]:
    """Compare the scores of pairs, before the sigmoid.

    The correlation is Pearson's: a reranker's scores of unrelated texts are all alike, so that
    their ranks hold no meaning; those of related ones stand out, and make the correlation. It is
    left out where the checkpoint's scores differ by less than the error allowed.
    """
    a, b = expected.astype(np.float64), found.astype(np.float64)
    error = np.abs(a - b)
    figures = {
        "error_max": float(error.max()),
        "error_mean": float(error.mean()),
        "spread": float(a.std()),
    }
    if figures["spread"] > limit:
        # a found score that never changes has no correlation with anything
        figures["correlation"] = float(np.corrcoef(a, b)[0, 1]) if b.std() > 0 else 0.0
    return figures


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
