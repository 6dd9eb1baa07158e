"""Traces: each flow run with its tasks, dataflows and nodes, sent by OTLP over HTTP.

They are on where `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set, and
off with `OTEL_TRACES_EXPORTER=none` or `OTEL_SDK_DISABLED=true`. The other standard variables of
OpenTelemetry's SDK and of its OTLP exporter apply, except for the exporter's timeout.

A flow pod calls `start`, and so does the import of `prefect_hamilton.dataflow`. Call it yourself,
before the flow, in a program that does neither. Where the program has a tracer provider already,
as under `opentelemetry-instrument`, the dataflows are part of its traces.

A collector that is unavailable causes one warning, never fails a run, and delays the process by at
most `_waiting.SECONDS`, which include what the metrics of tasks have waited for it. If traces are
off, no module of the SDK is imported.
"""

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from prefect.logging import get_logger

from prefect_hamilton.masking import mask

TRACER = "prefect_hamilton"
ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_is_postponed = False


def start() -> None:
    """Send the spans of this process from now on, if the environment names an endpoint.

    What is left is sent when the process ends, also by SIGTERM. Call it after a fork. Further calls
    do nothing.
    """
    if _is_postponed or not _is_wanted():
        return
    logger = get_logger(__name__)
    try:
        from prefect_hamilton import _spans

        _spans.start()
    except ImportError:
        logger.warning(
            "No traces are sent, because OpenTelemetry is not installed: install the dependency "
            "group otlp"
        )
    except Exception as error:  # whatever OpenTelemetry makes of its environment variables
        logger.warning("No traces are sent: %s; the run continues without them", mask(repr(error)))


@contextmanager
def postponed() -> Iterator[None]:
    """Let `start` do nothing in the block: a fork that follows would lose the thread that sends."""
    global _is_postponed
    _is_postponed = True
    try:
        yield
    finally:
        _is_postponed = False


@contextmanager
def dataflow(name: str, outputs: list[str]) -> Iterator[trace.Span | None]:
    """Record the block as a span, the execution of a dataflow; None where traces are off.

    The exception that it raises is recorded.
    """
    if not is_on():
        yield None
        return
    with trace.get_tracer(TRACER).start_as_current_span(
        name,
        attributes={"hamilton.dataflow.name": name, "hamilton.dataflow.outputs": outputs},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            note_error(span, error)
            raise


def set_attributes(attributes: Mapping[str, str | float]) -> None:
    """Set attributes of the innermost open span, of a task or a node; nothing without a span."""
    trace.get_current_span().set_attributes(attributes)


def note_error(span: trace.Span, error: BaseException) -> None:
    """Record an exception, without what looks like a secret, as the reason why a span failed."""
    message = mask(str(error))
    span.add_event(
        "exception",
        {
            "exception.type": type(error).__qualname__,
            "exception.message": message,
            "exception.stacktrace": mask("".join(traceback.format_exception(error))),
        },
    )
    span.set_status(trace.Status(trace.StatusCode.ERROR, message))


def is_on() -> bool:
    """Whether spans are recorded in this process."""
    sdk = sys.modules.get("opentelemetry.sdk.trace")
    if sdk is None:
        return False
    return isinstance(trace.get_tracer_provider(), sdk.TracerProvider)


def _is_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    exporters = (environment.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")
    return (
        any(environment.get(name) for name in ENDPOINT_VARIABLES)
        and "otlp" in [exporter.strip() for exporter in exporters]
        and environment.get("OTEL_SDK_DISABLED", "").lower() != "true"
    )
