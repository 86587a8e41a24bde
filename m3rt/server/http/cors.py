"""Which pages of other origins may call."""

from __future__ import annotations

from collections.abc import Mapping

EXPOSED = "x-request-id, retry-after, server-timing"
ALLOWED = "authorization, content-type, x-api-key, x-priority, x-request-id, x-request-timeout-ms"


def origins(setting: str) -> frozenset[str]:
    """Read the setting: origins joined by commas, or * for all."""
    return frozenset(part.strip() for part in setting.split(",") if part.strip())


def headers(allowed: frozenset[str], request: Mapping[str, str]) -> dict[str, str]:
    """Return what lets a page of the request's origin read the answer; nothing if it may not."""
    origin = request.get("origin")
    if not allowed or origin is None or not ("*" in allowed or origin in allowed):
        return {}
    found = {
        "access-control-allow-origin": "*" if "*" in allowed else origin,
        "access-control-expose-headers": EXPOSED,
        "vary": "origin",
    }
    if "access-control-request-method" in request:
        found["access-control-allow-methods"] = "GET, POST"
        found["access-control-allow-headers"] = ALLOWED
        found["access-control-max-age"] = "600"
    return found
