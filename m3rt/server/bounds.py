"""What a request may ask for."""

from __future__ import annotations

from m3rt.runtime import M3
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.settings import Settings
from m3rt.server.work import Ask
from m3rt.types import Heads


def checked(settings: Settings, model: M3, ask: Ask) -> Heads:
    """Return the heads to compute.

    Raises:
        RefusedError: there are no texts, or too many, or the model lacks a head.
    """
    count, most = len(ask.inputs), settings.max_client_batch_size
    if not count:
        raise RefusedError(Kind.EMPTY, "there are no texts", param="inputs")
    if count > most + 1:  # a query comes with as many texts as it is to rank
        raise RefusedError(
            Kind.TOO_MANY, f"{count} texts, at most {most} are taken at a time", param="inputs"
        )
    if ask.heads == Heads.ALL:
        return model.heads
    if lacking := ask.heads & ~model.heads:
        raise RefusedError(
            Kind.UNSUPPORTED,
            f"this model has no {' and no '.join(lacking.names)} head, only "
            f"{', '.join(model.heads.names)}",
        )
    return ask.heads


def check_tokens(settings: Settings, tokens: int) -> None:
    """Refuse more tokens than a request may have.

    Raises:
        RefusedError: there are more.
    """
    most = settings.max_request_tokens
    if tokens > most:
        raise RefusedError(Kind.TOO_MANY, f"{tokens} tokens, at most {most} are taken at a time")
