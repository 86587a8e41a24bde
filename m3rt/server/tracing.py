"""OpenTelemetry traces: one span a request, and spans of where its time went.

Spans are made when a request is over, from the times that were noted: a request costs nothing
while it is at work. Names follow the semantic conventions for generative AI, which are still
"development" there. REFERENCE: https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from __future__ import annotations

from typing import Any

from m3rt import __version__
from m3rt.errors import missing
from m3rt.server.finished import Finished
from m3rt.server.work import Spent

PATH = "/v1/traces"
NANO = 1_000_000_000


class Tracing:
    """Sends a span of each request that embedded something.

    Args:
        endpoint: of a collector, for OTLP over HTTP: http://localhost:4318.
        model: what it is called.
        processor: takes the spans instead of a batch that is sent: for tests.

    Raises:
        UnavailableError: OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str, model: str, processor: Any = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation import tracecontext
        except ImportError as error:
            raise missing("opentelemetry-sdk", "otel", "--otlp-endpoint") from error
        resource = Resource.create({"service.name": "m3rt", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        if processor is None:
            url = endpoint if endpoint.endswith(PATH) else endpoint.rstrip("/") + PATH
            processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=url))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("m3rt.server", __version__)
        self._context = tracecontext.TraceContextTextMapPropagator()
        self._trace = trace
        self._model = model

    def finished(self, done: Finished) -> None:
        """Make the spans of a request."""
        if not done.spent:
            return
        end = int(done.at * NANO)
        begin = end - int(done.seconds * NANO)
        parent = self._context.extract({"traceparent": done.traceparent})
        span = self._tracer.start_span(
            f"embeddings {self._model}",
            context=parent,
            kind=self._trace.SpanKind.SERVER,
            start_time=begin,
            attributes=self._attributes(done, done.spent),
        )
        if done.status >= 500:
            span.set_status(self._trace.StatusCode.ERROR, str(done.refused or ""))
        inside = self._trace.set_span_in_context(span, parent)
        at = begin
        for spent in done.spent:
            timings = spent.timings
            for name, seconds in (
                ("tokenise", timings.tokenise),
                ("queue", timings.queue),
                ("infer", timings.engine),
            ):
                child = self._tracer.start_span(name, context=inside, start_time=at)
                at += int(seconds * NANO)
                child.end(at)
        rest = self._tracer.start_span("serialise", context=inside, start_time=min(at, end))
        rest.end(end)
        span.end(end)

    def close(self) -> None:
        """Send what is not sent yet."""
        self._provider.shutdown()

    def _attributes(self, done: Finished, spent: list[Spent]) -> dict[str, Any]:
        return {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.request.model": self._model,
            "gen_ai.usage.input_tokens": sum(one.tokens for one in spent),
            "http.request.method": done.method,
            "http.route": done.route,
            "http.response.status_code": done.status,
            "m3rt.texts": sum(one.texts for one in spent),
            "m3rt.shared_texts": sum(one.shared for one in spent),
            "m3rt.heads": ",".join(spent[0].heads.names),
            "m3rt.lane": spent[0].lane.name.lower(),
            "m3rt.request_id": done.sender.request_id if done.sender else "",
        }
