"""An application with everything that belongs to it."""

from __future__ import annotations

from m3rt.server import logs
from m3rt.server.http import operations
from m3rt.server.http.app import App
from m3rt.server.http.operations import Reload
from m3rt.server.http.surfaces import ROUTES
from m3rt.server.keys import Keys
from m3rt.server.metrics import Metrics
from m3rt.server.service import Service


def assembled(service: Service, keys: Keys, reload: Reload | None = None) -> App:
    """Return the application of a service.

    Args:
        service: not started yet; the application starts it.
        keys: who may ask.
        reload: opens the model again; None if it cannot be.
    """
    metrics = Metrics(service)
    service.watchers.append(metrics.ran)
    observers = [metrics.finished, logs.finished]
    return App(service, (*ROUTES, *operations.routes(metrics, reload)), keys, observers)
