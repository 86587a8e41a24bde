"""What TEI's requests share: their fields, their errors, their headers.

REFERENCE: huggingface/text-embeddings-inference 0d124dc, router/src/http and router/src/lib.rs.
Where its documents and its code differ, as in the status for too many texts, this is its code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from m3rt.engines.catalog import BACKENDS
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http.native import retry_headers
from m3rt.server.http.replies import Reply, json_reply, server_timing
from m3rt.server.service import Service
from m3rt.server.work import Answer, Cut, Input

Direction = Literal["right", "Right", "left", "Left"]

# status and error_type. TEI has no word for a deadline: there is too much to do, it is over.
ERRORS: Mapping[Kind, tuple[int, str]] = {
    Kind.MALFORMED: (422, "Validation"),
    Kind.INVALID: (422, "Validation"),
    Kind.EMPTY: (400, "Empty"),
    Kind.TOO_LONG: (422, "Validation"),
    Kind.TOO_MANY: (422, "Validation"),
    Kind.TOO_LARGE: (413, "Validation"),
    Kind.TOO_SLOW: (408, "Validation"),
    Kind.UNAUTHORISED: (401, "Validation"),
    Kind.NOT_FOUND: (404, "Validation"),
    Kind.NOT_ALLOWED: (405, "Validation"),
    Kind.UNACCEPTABLE: (406, "Validation"),
    Kind.UNSUPPORTED: (424, "Backend"),
    Kind.OVERLOADED: (429, "Overloaded"),
    Kind.EXPIRED: (504, "Overloaded"),
    Kind.NOT_READY: (503, "Unhealthy"),
    Kind.FAILED: (424, "Backend"),
    Kind.TOKENIZER: (422, "Tokenizer"),
}


def shape(refusal: RefusedError) -> Reply:
    """Tell of what went wrong: ``{"error", "error_type"}``; without an API key, nothing."""
    status, kind = ERRORS[refusal.kind]
    headers = retry_headers(refusal)
    if refusal.kind == Kind.UNAUTHORISED:
        return Reply(b"", status, "text/plain", headers)
    cause = refusal.__cause__
    if refusal.kind == Kind.MALFORMED and not isinstance(cause, msgspec.ValidationError | None):
        status = 400  # no JSON at all, where 422 is JSON of another form
    return json_reply({"error": str(refusal), "error_type": kind}, status, headers)


class Failure(msgspec.Struct):
    """What went wrong."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]


class Truncation(msgspec.Struct):
    """What to do with a text that is too long. Fields that are not here are ignored."""

    truncate: bool | None = None
    truncation_direction: Direction | None = None
    prompt_name: str | None = None

    def cut(self, usual: bool) -> Cut:
        """Return what to do, where the server usually truncates or not."""
        if not (usual if self.truncate is None else self.truncate):
            return Cut.NONE
        return Cut.LEFT if self.truncation_direction in ("left", "Left") else Cut.RIGHT


def refuse_prompt(name: str | None) -> None:
    """Refuse the name of a prompt: M3 has none.

    Raises:
        RefusedError: in TEI's words.
    """
    if name is not None:
        raise RefusedError(
            Kind.INVALID,
            f"`default-prompt-name` is set to `{name[:200]}` but no prompts were found in the "
            "Sentence Transformers configuration: this model takes none, leave `prompt_name` out",
            param="prompt_name",
        )


def headers(
    service: Service, answer: Answer, inputs: Sequence[Input], started: float
) -> dict[str, str]:
    """Return TEI's headers: whole milliseconds, and ``server-timing`` with their parts.

    Args:
        service: whose engine it was.
        answer: to the request.
        inputs: whose characters count, or tokens where they are ids.
        started: time.perf_counter when the request was there.
    """
    total = time.perf_counter() - started
    timings = answer.timings
    times = {
        "x-compute-time": total,
        "x-total-time": total,
        "x-tokenization-time": timings.tokenise,
        "x-queue-time": timings.queue,
        "x-inference-time": timings.engine,
    }
    backend = BACKENDS.get(service.model.engine.name.partition(":")[0])
    return {
        "x-compute-type": "gpu+optimized" if backend and backend.gpu else "cpu+optimized",
        "x-compute-characters": str(sum(map(len, inputs))),
        "x-compute-tokens": str(answer.n_tokens),
        **{name: str(int(seconds * 1e3)) for name, seconds in times.items()},
        "server-timing": server_timing(timings, total),
    }
