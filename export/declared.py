"""What the JSON files of a checkpoint declare beside its network: pooling, length, letter case.

REFERENCE: sentence-transformers 5.7, base/modules/transformer.py and
sentence_transformer/modules/pooling.py. Vectors are of unit length in any case, whether or not a
Normalize step is there; prompts are the caller's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3rt.errors import CheckpointError

STEPS = {"Transformer", "Pooling", "Normalize"}  # that m3rt has, of modules.json
MODES = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
KINDS = ("bert", "roberta", "xlm-roberta")  # sentence_KIND_config.json, the first that is there


@dataclass(frozen=True, slots=True)
class Encoder:
    """How sentence-transformers feeds the network."""

    max_length: int | None = None  # tokens
    lowercase: bool = False  # before the tokenizer, whatever that does itself


def encoder(path: Path) -> Encoder:
    """Read what a directory of sentence-transformers says; of another, nothing is known.

    Raises:
        CheckpointError: a file is damaged, or the network is in a folder of its own.
    """
    modules = path / "modules.json"
    if not modules.is_file():
        return Encoder()
    if folder := read_steps(modules).get("Transformer"):
        raise CheckpointError(
            f"{modules} has the network in a folder, as old sentence-transformers did: export "
            f"{path / folder}, with --pooling and --max-length as declared beside it"
        )
    files = [path / f"sentence_{kind}_config.json" for kind in KINDS]
    file = next((file for file in files if file.is_file()), files[0])
    config = read_table(file)
    longest, lowercase = config.get("max_seq_length"), config.get("do_lower_case", False)
    if longest is None:
        file = path / "tokenizer_config.json"
        longest = read_table(file).get("model_max_length")
    # transformers writes 10 to the 30th, a float in some versions, where there is no limit
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int | float)):
        raise CheckpointError(f"{file}: the longest text is {longest!r}, expected a number")
    if not isinstance(lowercase, bool):
        raise CheckpointError(f"{file}: do_lower_case is {lowercase!r}, expected true or false")
    return Encoder(None if longest is None else int(min(longest, 1 << 30)), lowercase)


def pooling(path: Path) -> str | None:
    """Return the pooling that sentence-transformers' files declare, if they are there.

    Raises:
        CheckpointError: they declare another, or a step that m3rt does not have.
    """
    modules = path / "modules.json"
    steps = read_steps(modules) if modules.is_file() else {}
    if unknown := steps.keys() - STEPS:
        raise CheckpointError(
            f"{modules} has {', '.join(sorted(unknown))}, which m3rt cannot export; to export "
            "the encoder without it, pass --pooling"
        )
    file = path / steps.get("Pooling", "1_Pooling") / "config.json"
    if not file.is_file():
        return None
    declared = read_table(file)
    if "pooling_mode" in declared:  # one name in new versions, one flag per mode in old ones
        modes = [declared["pooling_mode"]]
    else:
        on = [key for key in declared if key.startswith("pooling_mode_") and declared[key]]
        modes = [MODES.get(key, key) for key in on]
    if len(modes) != 1 or modes[0] not in MODES.values():
        raise CheckpointError(
            f"{file}: pooling is {modes}, expected cls or mean; to export the encoder with "
            "another, pass --pooling"
        )
    return str(modes[0])


def read_steps(modules: Path) -> dict[str, str]:
    """Return the folder of each step of modules.json, by the name of its class."""
    try:
        return {
            str(step["type"]).rpartition(".")[2]: str(step.get("path", ""))
            for step in read_json(modules)
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{modules} is damaged: {error!r}") from error


def read_table(file: Path) -> dict[str, Any]:
    """Read a JSON object; of a file that is not there, an empty one."""
    found = read_json(file) if file.is_file() else {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is damaged: it holds a {type(found).__name__}")
    return found


def read_json(file: Path) -> Any:
    """Read a JSON file of a checkpoint."""
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
