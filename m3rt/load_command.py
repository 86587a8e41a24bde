"""``m3rt bench --server``: measures a server, and shows what was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from m3rt import artifact, render
from m3rt.loads import LoadSettings
from m3rt.tokenizer import Tokenizer


def run(
    server: str,
    model: Path | None,
    mix: Sequence[str] | None,
    lengths: Sequence[int] | None,
    settings: LoadSettings,
    keys: Sequence[str],
    files: Sequence[BinaryIO | None],
    as_json: bool,
) -> None:
    """Measure a server, write and show the result.

    Args:
        server: its URL.
        model: directory of the model that it serves, whose tokenizer makes the texts.
        mix: names of mixes, or files of texts.
        lengths: of texts to send in place of mixes.
        settings: how.
        keys: API keys.
        files: for the JSON and for the page.
        as_json: on stdout, too.
    """
    from m3rt import load_course, load_tables
    from m3rt.loads import document

    found = artifact.read(model) if model else None
    with render.steps() as say:
        result = load_course.run(
            server,
            settings,
            mix or ["mixed"],
            lengths,
            Tokenizer.of(found) if found else None,
            found.manifest.max_length if found else load_course.LONGEST,
            keys,
            say,
        )
    kept = document(result)
    to_json, to_html = files
    if to_json:
        to_json.write(json.dumps(kept, indent=2).encode())
    if to_html:
        to_html.write(load_tables.page(result).encode())
    if as_json:
        render.show_json(kept)
    else:
        shown = map(render.sheet, load_tables.sheets(result))
        render.show(render.facts(load_tables.about(result)), *shown)
    if settings.loads and not (result.capacity and result.capacity.rate):
        render.say("the server answered nothing, so that no rate is a share of its capacity")
