"""Sends the spans of `traces`. Imports OpenTelemetry's SDK: import it in functions only."""

import atexit
import os
import signal
import threading
from collections.abc import Sequence
from urllib.parse import parse_qsl

from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Status, StatusCode
from prefect.client.schemas.objects import StateType
from prefect.logging import get_logger

from prefect_hamilton import _otlp, _run_spans, _waiting, traces
from prefect_hamilton.masking import mask

RESOURCE_VARIABLE = "PREFECT_HAMILTON_TRACE_RESOURCE"
"""Attributes of all spans, as the query of a URL.

Not OTEL_RESOURCE_ATTRIBUTES, which would make a new series of each pod's metrics.
"""

EXPORT_SECONDS = 2.5
"""How long one request may take, with its repetitions: less than the end of the process waits."""

TEXTS = ("exception.message", "exception.stacktrace", "prefect.state.message")
"""Attributes of events that may hold a secret."""

logger = get_logger("prefect_hamilton.traces")


def start() -> None:
    """Set the tracer provider, unless there is one."""
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    end_spans, exporter = _OpenSpans(), _Exporter()
    provider = TracerProvider(resource=resource(), shutdown_on_exit=False)
    provider.add_span_processor(end_spans)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    end = _End(provider, end_spans, exporter)
    atexit.register(end)
    _call_on_sigterm(end)
    _run_spans.correct()


def resource() -> Resource:
    """Return the attributes of all spans: those of the standard variables come first."""
    ours = {"service.name": "flows"} | dict(parse_qsl(os.environ.get(RESOURCE_VARIABLE, "")))
    return Resource.create(ours).merge(OTELResourceDetector().detect())


class _Exporter(SpanExporter):
    """The OTLP exporter with one warning, which gives the reason, instead of many."""

    def __init__(self) -> None:
        self._reason = _otlp.reason(trace_exporter.__name__)
        self._exporter = trace_exporter.OTLPSpanExporter(timeout=EXPORT_SECONDS)
        self._has_warned = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export([_presented(span) for span in spans])
        if result is not SpanExportResult.SUCCESS:
            self.warn()
        return result

    def warn(self) -> None:
        """Say once that spans were not sent."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Spans did not reach the OTLP endpoint (%s); the run continues without them",
                self._reason.text,
            )

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _presented(span: ReadableSpan) -> ReadableSpan:
    """Return the span as it is sent: its texts masked, and an error if its run has failed.

    Prefect records exceptions with their causes as they are, and says of a run that returned a
    Failed state that it is OK.
    """
    events = [_masked(event) for event in span.events]
    status = Status(span.status.status_code, mask(span.status.description or "") or None)
    is_ok = status.status_code is StatusCode.OK
    if is_ok and _run_spans.last_state(span) in {StateType.FAILED, StateType.CRASHED}:
        messages = [e.attributes.get(TEXTS[-1]) for e in events if e.attributes]
        status = Status(StatusCode.ERROR, str([each for each in messages if each is not None][-1]))
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        events=events,
        links=span.links,
        kind=span.kind,
        status=status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _masked(event: Event) -> Event:
    attributes = dict(event.attributes or {})
    attributes |= {name: mask(str(attributes[name])) for name in TEXTS if name in attributes}
    return Event(event.name, attributes, event.timestamp)


class _OpenSpans(SpanProcessor):
    """Ends the spans that are still open at the end of the process, which would not be sent.

    Prefect does not end the span of a run that is rescheduled after SIGTERM, and its next attempt
    is a child of that span.
    """

    def __init__(self) -> None:
        self._spans: dict[int, Span] = {}

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        self._spans[span.context.span_id] = span
        _run_spans.note(span)

    def on_end(self, span: ReadableSpan) -> None:
        self._spans.pop(span.context.span_id, None)

    def end(self) -> None:
        for span in reversed(list(self._spans.values())):
            # A run that is suspended goes on in another process, as it should.
            if _run_spans.last_state(span) is not StateType.PAUSED:
                span.set_status(Status(StatusCode.ERROR, "The process ended before this did"))
            span.end()


class _End:
    """Sends what is left, once, and returns when this process may wait no longer."""

    def __init__(
        self, provider: TracerProvider, open_spans: _OpenSpans, exporter: _Exporter
    ) -> None:
        self._provider = provider
        self._open_spans = open_spans
        self._exporter = exporter
        self._process = os.getpid()
        self._asked, self._done = threading.Event(), threading.Event()
        # Started now, because the interpreter starts no thread while it ends.
        threading.Thread(target=self._send, name="traces-end", daemon=True).start()

    def __call__(self) -> None:
        # A process forked from this one has no such thread.
        if os.getpid() == self._process and not self._asked.is_set():
            self._open_spans.end()
            self._asked.set()
            # Nothing if the collector has not answered the metrics either.
            collector = _waiting.collector(traces.ENDPOINT_VARIABLES)
            if not self._done.wait(_waiting.left(collector)):
                self._exporter.warn()

    def _send(self) -> None:
        self._asked.wait()
        self._provider.shutdown()
        self._done.set()


def _call_on_sigterm(end: _End) -> None:
    """Call `end` before SIGTERM ends the process, unless the program handles the signal itself.

    While a flow runs, Prefect handles it, and then restores this.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        return

    def terminate(number: int, _: object) -> None:
        end()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, terminate)
