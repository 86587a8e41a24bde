"""MCLS: more CLS tokens in a long text, whose vectors' mean is the dense vector.

REFERENCE: BGE M3-Embedding (arXiv 2402.03216), appendix B.2: a CLS token "for each 256 tokens", and
the text's embedding is the mean of the last hidden states of all of them. A text becomes

    <s> 256 tokens <s> 256 tokens <s> ... </s>

with no CLS token right before the closing one. So a text of at most 256 tokens is as it was, and
the places are known from the length alone: a literal ``<s>`` in a text is a token like any other.
Positions and lengths count the tokens that are put in.
"""

from __future__ import annotations

import numpy as np

from m3rt.types import Floats, Ints

INTERVAL = 256  # tokens of text from one CLS token to the next


def insert(ids: Ints, interval: int) -> Ints:
    """Put CLS tokens into a text: (t,), the first of them CLS and the last closing."""
    if len(ids) <= interval + 2:
        return ids
    longer: Ints = np.insert(ids, range(interval + 1, len(ids) - 1, interval), ids[0])
    return longer


def places(length: int, interval: int) -> slice:
    """Return where the CLS tokens of a text of so many tokens are, the first among them."""
    return slice(0, max(1, length - 2), interval + 1)


def without(rows: Floats, interval: int) -> Floats:
    """Drop the rows of a text's CLS tokens: (t, d) becomes (t - c, d); a view if there is one."""
    if len(rows) <= interval + 2:
        return rows[1:]
    kept: Floats = np.delete(rows, places(len(rows), interval), axis=0)
    return kept
