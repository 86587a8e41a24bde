"""A request that is over, for the log, the metrics and the traces."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from m3rt.server.faults import Kind
from m3rt.server.work import Sender, Spent


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of a request."""

    protocol: str  # http or grpc
    method: str
    route: str  # as it is declared, with {name} for what varies; empty if there is none
    status: int  # of HTTP, or the number of gRPC's
    refused: Kind | None
    gone: bool  # the client went before it was answered
    seconds: float
    sent: int  # bytes of the answer
    sender: Sender | None
    traceparent: str = ""
    at: float = field(default_factory=time.time)  # when it was over, seconds since 1970

    @property
    def spent(self) -> list[Spent]:
        """What was embedded for it."""
        trail = self.sender.trail if self.sender else None
        return trail.spent if trail else []
