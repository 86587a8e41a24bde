"""Prometheus metrics, under m3rt's names."""

from __future__ import annotations

from collections.abc import Callable

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from m3rt import __version__
from m3rt.server.crew import Ran
from m3rt.server.faults import Kind
from m3rt.server.finished import Finished
from m3rt.server.service import Service

MEDIA = prometheus.CONTENT_TYPE_LATEST
SECONDS = [0.0005 * 2**n for n in range(18)]  # 0.5 ms to 65 s
TOKENS = [2.0**n for n in range(1, 18)]
TEXTS = [2.0**n for n in range(12)]


class Metrics:
    """What is counted of a service. It belongs to one registry, not to the process."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        self._requests = self._counter("requests", "Requests that are over.", "route", "code")
        self._seconds = self._histogram(
            "request_seconds", "From headers to answer.", SECONDS, "route"
        )
        self._queue = self._histogram("queue_seconds", "Waited for the engine.", SECONDS, "lane")
        self._tokenise = self._histogram("tokenise_seconds", "Tokenising a request.", SECONDS)
        self._tokens = self._counter("tokens", "Tokens embedded, special ones included.")
        self._texts = self._counter("texts", "Texts embedded.")
        self._shared = self._counter("shared_texts", "Texts taken from the cache or from others.")
        self._truncated = self._counter("truncated_texts", "Texts that were cut.")
        self._shed = self._counter("shed", "Requests refused before they waited.", "reason")
        self._cancelled = self._counter("cancelled", "Requests whose client went.")
        self._expired = self._counter("deadline_expired", "Requests whose deadline passed.")
        self._failed = self._counter("failed_texts", "Texts on which the engine failed.")
        self._batch_texts = self._histogram("batch_size", "Texts of a batch.", TEXTS)
        self._batch_tokens = self._histogram("batch_tokens", "Tokens of a batch.", TOKENS)
        self._engine = self._histogram("engine_seconds", "The engine, for a batch.", SECONDS)
        self._computed = self._counter("computed_tokens", "Tokens computed, padding included.")
        self._useful = self._counter("useful_tokens", "Those of them that are texts'.")
        self._sent = self._counter("sent_bytes", "Bytes of answers.")
        self._gauge("queue_tokens", "Tokens that wait.", lambda: waiting(service)[1])
        self._gauge("queue_texts", "Texts that wait.", lambda: waiting(service)[0])
        self._gauge("requests_in_progress", "Requests at work.", lambda: service.requests)
        self._gauge("held_bytes", "Memory held for answers.", lambda: service.room.held)
        self._gauge("ready", "1 if requests are answered.", lambda: service.ready)
        labels = ["version", "model", "engine"]
        self._info = Gauge("m3rt_info", "What serves.", labels, registry=self.registry)
        self._service = service

    def finished(self, done: Finished) -> None:
        """Count a request."""
        code = "gone" if done.gone else str(done.status)
        self._requests.labels(done.route or "none", code).inc()
        self._sent.inc(done.sent)
        if done.gone:
            self._cancelled.inc()
        elif done.refused == Kind.EXPIRED:
            self._expired.inc()
        elif done.refused in (Kind.OVERLOADED, Kind.NOT_READY):
            self._shed.labels(done.refused).inc()
        if not done.spent:
            return
        self._seconds.labels(done.route).observe(done.seconds)
        for spent in done.spent:
            self._queue.labels(spent.lane.name.lower()).observe(spent.timings.queue)
            self._tokenise.observe(spent.timings.tokenise)
            self._tokens.inc(spent.tokens)
            self._texts.inc(spent.texts)
            self._shared.inc(spent.shared)
            self._truncated.inc(spent.truncated)

    def ran(self, batch: Ran) -> None:
        """Count a batch."""
        tokens = sum(item.length for item in batch.items)
        self._batch_texts.observe(len(batch.items))
        self._batch_tokens.observe(tokens)
        self._engine.observe(batch.ended - batch.began)
        self._computed.inc(batch.places)
        self._useful.inc(tokens)
        self._failed.inc(len(batch.failed))

    def written(self) -> bytes:
        """Return all, in Prometheus' text format."""
        self._info.clear()  # a reload changes it
        self._info.labels(__version__, self._service.name, self._service.model.engine.name).set(1)
        return prometheus.generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"m3rt_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: list[float], *labels: str) -> Histogram:
        return Histogram(f"m3rt_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"m3rt_{name}", text, registry=self.registry).set_function(value)


def waiting(service: Service) -> tuple[int, int]:
    """Return the texts and the tokens that wait."""
    if not service.started:
        return 0, 0
    line = service.stage.scheduler.line
    return len(line), line.tokens
