"""For those who run the server: probes, metrics, reload."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http.native import shape
from m3rt.server.http.replies import Reply, json_reply
from m3rt.server.http.routes import Call, Route
from m3rt.server.metrics import MEDIA, Metrics

TEXT = "text/plain; charset=utf-8"
UNREADY = {"retry-after": "1"}

Reload = Callable[[], Awaitable[str]]  # gives the name of what serves then


async def livez(call: Call) -> Reply:
    """Tell whether the process is worth keeping: the engine answers."""
    return Reply(b"ok", media=TEXT) if call.service.live else Reply(b"engine", 503, TEXT)


async def readyz(call: Call) -> Reply:
    """Tell whether requests are answered: every shape is warmed up, the server is not stopping."""
    return Reply(b"ok", media=TEXT) if call.service.ready else Reply(b"no", 503, TEXT, UNREADY)


def routes(metrics: Metrics, reload: Reload | None) -> tuple[Route, ...]:
    """Return the routes; that of reload only where it can be done."""

    async def show(call: Call) -> Reply:
        """Show Prometheus metrics."""
        return Reply(await call.service.off(metrics.written), media=MEDIA)

    async def load(call: Call) -> Reply:
        """Open the model directory again, warm it up, and serve it from then on."""
        if reload is None or not call.service.settings.admin:
            raise RefusedError(Kind.NOT_FOUND, "there is no reload here: start with --admin")
        return json_reply({"model": await reload()})

    return (
        Route("GET", "/livez", livez, shape, media=(TEXT,), open=True, observed=False),
        Route("GET", "/readyz", readyz, shape, media=(TEXT,), open=True, observed=False),
        Route("GET", "/metrics", show, shape, media=(MEDIA,), open=True, observed=False),
        Route("POST", "/admin/reload", load, shape, observed=False),
    )
