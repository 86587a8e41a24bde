"""The log: one line a request, as text or JSON, without the texts of anybody."""

from __future__ import annotations

import datetime
import logging
import sys
from typing import Any

import orjson

from m3rt.server.finished import Finished

access = logging.getLogger("m3rt.access")


def configure(form: str, level: str) -> None:
    """Send m3rt's and uvicorn's logs to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for name in ("m3rt", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, access.getEffectiveLevel()))


def finished(done: Finished) -> None:
    """Log a request that is over."""
    if not access.isEnabledFor(logging.INFO):
        return
    access.info(
        "%s %s %s", done.method, done.route or "-", status(done), extra={"m3rt": facts(done)}
    )


def status(done: Finished) -> str:
    """Return what a line says of the end."""
    return "gone" if done.gone else str(done.status)


def facts(done: Finished) -> dict[str, Any]:
    """Return what is known of a request: numbers and names, no texts."""
    found: dict[str, Any] = {
        "protocol": done.protocol,
        "method": done.method,
        "route": done.route,
        "status": "gone" if done.gone else done.status,
        "ms": round(done.seconds * 1e3, 3),
        "bytes": done.sent,
    }
    if done.refused:
        found["refused"] = str(done.refused)
    if (sender := done.sender) is None:
        return found
    found |= {"request_id": sender.request_id, "client": sender.client}
    for spent in done.spent:
        timings = spent.timings
        found["lane"] = spent.lane.name.lower()
        found["heads"] = ",".join(spent.heads.names)
        for name, value in (
            ("texts", spent.texts),
            ("tokens", spent.tokens),
            ("truncated", spent.truncated),
            ("shared", spent.shared),
            ("tokenise_ms", round(timings.tokenise * 1e3, 3)),
            ("queue_ms", round(timings.queue * 1e3, 3)),
            ("engine_ms", round(timings.engine * 1e3, 3)),
        ):
            found[name] = found.get(name, 0) + value
    if sender.trail and sender.trail.inputs:
        found["inputs"] = list(sender.trail.inputs)
    return found


class JsonFormatter(logging.Formatter):
    """A JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        found: dict[str, Any] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if facts := getattr(record, "m3rt", None):
            found |= facts
        else:
            found["message"] = record.getMessage()
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(found, default=str).decode()


class TextFormatter(logging.Formatter):
    """Time, level, message, and what is known as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line."""
        text = super().format(record)
        facts: dict[str, Any] = getattr(record, "m3rt", {})
        left_out = ("protocol", "method", "route", "status")
        pairs = [f"{name}={value}" for name, value in facts.items() if name not in left_out]
        return " ".join([text, *pairs])
