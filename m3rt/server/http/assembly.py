"""An application with everything that belongs to it."""

from __future__ import annotations

from m3rt.server import logs
from m3rt.server.http import openapi, operations
from m3rt.server.http.app import App
from m3rt.server.http.operations import Reload
from m3rt.server.http.surfaces import ROUTES
from m3rt.server.keys import Keys
from m3rt.server.metrics import Metrics
from m3rt.server.service import Service
from m3rt.server.tei_metrics import TeiMetrics
from m3rt.server.tracing import Tracing


def assembled(service: Service, keys: Keys, reload: Reload | None = None) -> App:
    """Return the application of a service.

    Args:
        service: not started yet; the application starts it.
        keys: who may ask.
        reload: opens the model again; None if it cannot be.
    """
    metrics = Metrics(service)
    service.watchers.append(metrics.ran)
    service.observers += [metrics.finished, logs.finished]
    if service.settings.metrics_compat == "tei":
        tei = TeiMetrics(service, metrics.registry)
        service.watchers.append(tei.ran)
        service.observers.append(tei.finished)
    if service.settings.otlp_endpoint:
        tracing = Tracing(service.settings.otlp_endpoint, service.name)
        service.closers.append(tracing.close)
        service.observers.append(tracing.finished)
    routes = (*ROUTES, *operations.routes(metrics, reload))
    return App(service, (*routes, *openapi.routes(routes)), keys)
