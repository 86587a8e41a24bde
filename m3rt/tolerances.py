"""How far an engine's outputs may be from float32, by its precision. See docs/quality.md."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3rt.errors import InputError


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Limits of the gate; the defaults are for an engine in float32."""

    dense_cosine: float = 0.999999  # the worst of a text's vector
    colbert_cosine: float = 0.99999  # the worst of a token's vector
    weight_error: float = 1e-5  # the largest of a lexical weight
    near_zero: float = 1e-6  # a lexical weight this small may be there or not
    maxsim_error: float = 1e-4  # the largest of a MaxSim
    score_error: float = 1e-4  # the largest of a reranker's score, before the sigmoid
    score_correlation: float = 0.9999  # Pearson's, of all a reranker's scores
    top10_overlap: float = 0.99  # part of float32's first ten documents, mean over queries
    rank_correlation: float = 0.999  # Spearman's, mean over queries
    ndcg_loss: float = 1e-3  # part of float32's nDCG@10 that is lost, on a data set


EXACT = Tolerances()

# The reasons, and the figures that they rest on, are in docs/quality.md.
TOLERANCES = {
    "fp32": EXACT,
    "bf16": Tolerances(
        dense_cosine=0.9995,
        colbert_cosine=0.9995,
        weight_error=0.03,
        near_zero=0.01,
        maxsim_error=5e-3,
        score_error=0.5,
        score_correlation=0.98,
        top10_overlap=0.9,
        rank_correlation=0.98,
        ndcg_loss=0.01,
    ),
    "fp16": Tolerances(
        dense_cosine=0.9999,
        colbert_cosine=0.9999,
        weight_error=0.01,
        near_zero=0.003,
        maxsim_error=2e-3,
        score_error=0.1,
        score_correlation=0.995,
        top10_overlap=0.95,
        rank_correlation=0.99,
        ndcg_loss=0.005,
    ),
    "int8": Tolerances(
        dense_cosine=0.98,
        colbert_cosine=0.9,
        weight_error=0.3,
        near_zero=0.1,
        maxsim_error=0.1,
        score_error=2.0,
        score_correlation=0.9,
        top10_overlap=0.85,
        rank_correlation=0.95,
        ndcg_loss=0.01,
    ),
}
TOLERANCES["fp8"] = TOLERANCES["int8"]
NAMES = tuple(field.name for field in dataclasses.fields(Tolerances))


def of(precision: str, changed: Mapping[str, float] | None = None) -> Tolerances:
    """Return the limits of a precision, some of them changed.

    Raises:
        InputError: there is no such limit, or its value is not a number of at least 0.
    """
    for name, value in (changed or {}).items():
        if name not in NAMES:
            raise InputError(f"no tolerance {name!r}; there are {', '.join(NAMES)}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"the tolerance {name} is {value!r}, expected a number")
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"the tolerance {name} is {value}, expected 0 or more")
    numbers = {name: float(value) for name, value in (changed or {}).items()}
    return dataclasses.replace(TOLERANCES[precision], **numbers)


def parse(options: Iterable[str]) -> dict[str, float]:
    """Read limits as the command line gives them: NAME=VALUE, or a JSON file of them.

    What comes later counts.

    Raises:
        InputError: it is neither, a name is not known, or a value is no number.
    """
    found: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            found |= read(Path(option))
            continue
        try:
            found[name.strip()] = number(value)
        except ValueError:
            raise InputError(f"the tolerance {name} is {value!r}, expected a number") from None
    of("fp32", found)
    return found


def number(text: str) -> float:
    """Read a number, or one in percent.

    Raises:
        ValueError: it is none.
    """
    text = text.strip()
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def read(path: Path) -> Mapping[str, Any]:
    """Read a JSON file of limits by name.

    Raises:
        InputError: it cannot be read, or is no JSON object.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path} is neither NAME=VALUE nor a file of tolerances that can be read "
            f"({error.strerror}); there are {', '.join(NAMES)}"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}), expected tolerances by name") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds {type(found).__name__}, expected tolerances by name")
    return found
