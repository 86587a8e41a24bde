"""The names that text-embeddings-inference has for metrics, for dashboards that exist.

REFERENCE: huggingface/text-embeddings-inference, router/src/prometheus.rs: 35 buckets of duration
from 15 microseconds, each half as large again as the one before.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from m3rt.server.crew import Ran
from m3rt.server.faults import Kind
from m3rt.server.finished import Finished
from m3rt.server.service import Service

SECONDS = [1.5e-5 * 1.5**n for n in range(35)]
TOKENS = [2.0**n for n in range(18)]
FAILURES = {
    Kind.OVERLOADED: "overloaded",
    Kind.NOT_READY: "overloaded",
    Kind.TOKENIZER: "tokenization",
    Kind.TOO_MANY: "batch_size",
    Kind.UNSUPPORTED: "model_type",
    Kind.FAILED: "inference",
    Kind.EXPIRED: "dropped",
}


class TeiMetrics:
    """Counts under TEI's names; beside m3rt's, in the same registry."""

    def __init__(self, service: Service, registry: CollectorRegistry) -> None:
        def histogram(name: str, buckets: list[float] = SECONDS) -> Histogram:
            return Histogram(f"te_{name}", f"As TEI's {name}.", buckets=buckets, registry=registry)

        def counter(name: str, *labels: str) -> Counter:
            return Counter(f"te_{name}", f"As TEI's {name}.", labels, registry=registry)

        self._count = counter("request_count", "method")
        self._success = counter("request_success", "method")
        self._failure = counter("request_failure", "err")
        self._embeds, self._embedded = counter("embed_count"), counter("embed_success")
        self._duration = histogram("request_duration")
        self._tokenise = histogram("request_tokenization_duration")
        self._queue = histogram("request_queue_duration")
        self._inference = histogram("request_inference_duration")
        self._length = histogram("request_input_length", TOKENS)
        self._batch_size = histogram("batch_next_size", TOKENS[:12])
        self._batch_tokens = histogram("batch_next_tokens", TOKENS)
        size = Gauge("te_queue_size", "As TEI's queue_size.", registry=registry)
        size.set_function(lambda: len(service.stage.scheduler.line) if service.started else 0)

    def finished(self, done: Finished) -> None:
        """Count a request."""
        if not (done.spent or done.refused or done.gone):
            return  # a probe
        method = "batch" if sum(one.texts for one in done.spent) > 1 else "single"
        self._count.labels(method).inc()
        if done.gone:
            self._failure.labels("dropped").inc()
            return
        if done.refused:
            self._failure.labels(FAILURES.get(done.refused, "validation")).inc()
            return
        self._success.labels(method).inc()
        self._duration.observe(done.seconds)
        for one in done.spent:
            self._embeds.inc(one.texts)
            self._embedded.inc(one.texts)
            self._tokenise.observe(one.timings.tokenise)
            self._queue.observe(one.timings.queue)
            self._inference.observe(one.timings.engine)
            self._length.observe(one.tokens / max(1, one.texts))

    def ran(self, batch: Ran) -> None:
        """Count a batch."""
        self._batch_size.observe(len(batch.items))
        self._batch_tokens.observe(batch.places)
