"""Why a request is not answered with its result: each surface has its own words for these."""

from __future__ import annotations

import enum

from m3rt.errors import M3Error


class Kind(enum.StrEnum):
    """What went wrong, whatever the protocol calls it."""

    MALFORMED = "malformed"  # not the protocol's: JSON, types, missing fields
    INVALID = "invalid"  # understood, and not possible: no such head, a bad max_length
    EMPTY = "empty"  # no texts
    TOO_LONG = "too_long"  # a text has more tokens than fit, and it is not to be cut
    TOO_MANY = "too_many"  # texts in a request
    TOO_LARGE = "too_large"  # the body, or the answer, has too many bytes
    TOO_SLOW = "too_slow"  # the client took too long to send its request
    UNAUTHORISED = "unauthorised"
    NOT_FOUND = "not_found"  # no such path or model
    NOT_ALLOWED = "not_allowed"  # no such method here
    UNACCEPTABLE = "unacceptable"  # no media type that the client takes can be made
    UNSUPPORTED = "unsupported"  # this model has no such task
    OVERLOADED = "overloaded"  # it would wait too long, or there is no room
    EXPIRED = "expired"  # its deadline passed
    NOT_READY = "not_ready"  # starting, stopping or broken
    FAILED = "failed"  # the engine failed
    TOKENIZER = "tokenizer"  # a text cannot be tokenised: it is not Unicode


class RefusedError(M3Error):
    """A request that is not answered with its result.

    Args:
        kind: what went wrong.
        message: what was found, what was expected, and what to do.
        param: the field of the request at fault.
        retry_after: seconds after which it may be answered.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.param = param
        self.retry_after = retry_after
