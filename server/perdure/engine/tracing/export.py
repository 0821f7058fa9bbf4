"""Sends spans to an OTLP collector over HTTP, from a thread of the SDK's: nobody waits for it.

The SDK reads the standard variables: OTEL_EXPORTER_OTLP_*, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
OTEL_TRACES_SAMPLER, OTEL_BSP_*. No provider is installed for the process: what author code does with
OpenTelemetry is its own matter. Only whoever wants traces imports this module.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Sequence
from uuid import UUID

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context
from opentelemetry.trace.status import Status, StatusCode

from perdure import __version__
from perdure.engine.tracing import ids
from perdure.engine.tracing.spans import Span

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 1.5
MAX_TEXT = 1_000
"""Characters of an error's message."""

_LOUD = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_QUEUE = "opentelemetry.sdk._shared_internal"


class Exporter:
    """Takes finished spans of any thread. When the collector is away or slow, the oldest in the queue are lost."""

    def __init__(self, to: str) -> None:
        provider = TracerProvider(shutdown_on_exit=False)  # for what it reads from the environment
        self._sampler = provider.sampler
        self._resource = provider.resource
        if str(self._resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
            self._resource = self._resource.merge(Resource({SERVICE_NAME: "perdure"}))
        self._resource = Resource({SERVICE_VERSION: __version__}).merge(self._resource)
        self._scope = InstrumentationScope("perdure", __version__)
        self._processor = BatchSpanProcessor(_Reported(OTLPSpanExporter(), to))

    def samples(self, run_id: UUID, trace: str | None) -> bool:
        """Whether the sampler wants the trace of a run: the same answer in every process."""
        parent = ids.parse(trace)
        context = Context()
        if parent is not None:
            span = SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(parent.flags))
            context = set_span_in_context(NonRecordingSpan(span), context)
        trace_id = ids.trace_of(run_id, trace)
        return self._sampler.should_sample(context, _spread(trace_id), "run").decision.is_sampled()

    def end(self, span: Span, at: int) -> None:
        """The span is over; it is sent with others a little later. Never blocks."""
        flags = TraceFlags(TraceFlags.SAMPLED)
        above = None
        if span.parent_id is not None:
            above = SpanContext(span.trace_id, span.parent_id, is_remote=True, trace_flags=flags)
        status = Status() if span.error is None else Status(StatusCode.ERROR, span.error[:MAX_TEXT])
        finished = ReadableSpan(
            span.name,
            context=SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=flags),
            parent=above,
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(name, attributes, when) for name, when, attributes in span.events],
            kind=SpanKind.CLIENT if span.client else SpanKind.INTERNAL,
            status=status,
            start_time=span.start,
            end_time=max(at, span.start),
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(finished)

    def close(self) -> None:
        """Send what is left, for `CLOSE_SECONDS` at most."""
        closing = threading.Thread(target=self._processor.shutdown, name="perdure-traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class _Reported(SpanExporter):
    """Says once when spans begin to be lost, and when they arrive again; the SDK would say it for each batch."""

    def __init__(self, inner: SpanExporter, to: str) -> None:
        self._inner = inner
        self._to = to
        self._lost = 0
        logging.getLogger(_LOUD).setLevel(logging.CRITICAL + 1)
        self._full = _Once()
        logging.getLogger(_QUEUE).addFilter(self._full)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._inner.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._lost:
                log.info("traces arrive again", to=self._to, lost=self._lost)
            self._lost = 0
            self._full.said = False
        else:
            if not self._lost:
                log.warning("traces are lost: the collector does not take them", to=self._to)
            self._lost += len(spans)
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)


class _Once(logging.Filter):
    """Lets one line through, until `said` is taken back."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if self.said:
            return False
        self.said = True
        return True


def _spread(trace_id: int) -> int:
    """What samplers look at: they take the low 64 bits for random, of which a UUID has two that are not."""
    made = UUID(int=trace_id)
    if made.version != 7:
        return trace_id
    return int.from_bytes(hashlib.sha256(made.bytes).digest()[:16])
