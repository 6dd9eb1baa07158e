"""Metrics of a task: rows read, rejected and written, and seconds.

Each measurement becomes a Prefect event, `flows.task.measured`, that automations can react to, and
that the exporter of metrics counts for Prometheus. Where traces are on, the numbers are attributes
of the task's span. When `OTEL_EXPORTER_OTLP_ENDPOINT` is set it also goes there by OTLP over HTTP;
nothing of OpenTelemetry's SDK is imported, and nothing sent, otherwise. Every process sends what is
new (delta temporality) as the same series, without an instance, so that the numbers of all runs add
up. An unavailable collector or an invalid setting of OpenTelemetry causes a warning, and never
fails the run.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from prefect.events import emit_event
from prefect.runtime import flow_run, task_run
from pydantic import BaseModel

from prefect_hamilton import _otlp, _waiting, traces
from prefect_hamilton._run_logger import run_logger
from prefect_hamilton.masking import mask

EVENT = "flows.task.measured"
QUALITY_EVENT = "prefect-hamilton.quality.breached"
TRACKING_EVENT = "prefect-hamilton.tracking.given-up"
ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class TaskMetrics(BaseModel):
    """One task run's numbers; a task fills in those it has, also as numbers of NumPy."""

    task: str
    rows_read: int = 0
    rows_rejected: int = 0
    rows_written: int = 0
    seconds: float = 0.0


@contextmanager
def measure(task: str) -> Iterator[TaskMetrics]:
    """Time the block and publish its numbers when it ends, also when it fails.

    Inside a Prefect task run; `task` is its name.
    """
    metrics = TaskMetrics(task=task)
    start = time.perf_counter()
    try:
        yield metrics
    finally:
        metrics.seconds = round(time.perf_counter() - start, 3)
        metrics = _plain(metrics)
        _emit_event(metrics)
        numbers = metrics.model_dump(exclude={"task"})
        traces.set_attributes(
            {"flows.task.name": metrics.task}
            | {f"flows.task.{name}": value for name, value in numbers.items()}
        )
        if any(os.environ.get(name) for name in ENDPOINT_VARIABLES):
            _export(metrics)


def _plain(metrics: TaskMetrics) -> TaskMetrics:
    """Return the metrics with numbers of Python; what is not a number causes a warning."""
    rows = {}
    for name in ("rows_read", "rows_rejected", "rows_written"):
        try:
            rows[name] = int(getattr(metrics, name))
        except (TypeError, ValueError, OverflowError):
            run_logger().warning(
                "The metric %s of the task %s is not counted, because it is not a number: %r",
                name,
                metrics.task,
                getattr(metrics, name),
            )
    return TaskMetrics(task=metrics.task, seconds=metrics.seconds, **rows)


def _emit_event(metrics: TaskMetrics) -> None:
    run_id, parent_id = task_run.get_id(), flow_run.get_id()
    related = []
    if parent_id:
        related.append(
            {
                "prefect.resource.id": f"prefect.flow-run.{parent_id}",
                "prefect.resource.role": "flow-run",
                "prefect.resource.name": flow_run.get_name() or "",
            }
        )
    emit_event(
        event=EVENT,
        resource={
            "prefect.resource.id": f"prefect.task-run.{run_id}",
            "prefect.resource.name": task_run.get_name() or metrics.task,
        },
        related=related,
        payload=metrics.model_dump(),
    )


def _export(metrics: TaskMetrics) -> None:
    logger = run_logger()
    try:
        collector = _collector()
        sent = collector.send(metrics, flow_run.get_flow_name() or "")
    except ImportError:
        logger.warning(
            "Task metrics are not sent, because OpenTelemetry is not installed: install the "
            "dependency group otlp"
        )
        return
    except Exception as error:  # whatever OpenTelemetry makes of its environment variables
        logger.warning(
            "Task metrics are not sent: %s; the run continues without them", mask(repr(error))
        )
        return
    if not sent:
        logger.warning(
            "Task metrics did not reach the OTLP endpoint (%s); the run continues without them",
            collector.reason.text,
        )


class _Collector:
    """Where this process sends its metrics; given up after the first failure."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http import metric_exporter
        from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
        from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
        from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, Resource

        self.reason = _otlp.reason(metric_exporter.__name__)
        self._exporter = metric_exporter.OTLPMetricExporter(timeout=_waiting.SECONDS)
        # Read when a task ends, not by the clock: what a short run does not send then may never go.
        self._reader = InMemoryMetricReader(
            preferred_temporality=dict.fromkeys((Counter, Histogram), AggregationTemporality.DELTA)
        )
        service = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "flows")}
        found = Resource.create(service)
        # An id of this process would make a new series of each run.
        attributes = {
            name: value for name, value in found.attributes.items() if name != SERVICE_INSTANCE_ID
        }
        resource = Resource(attributes, found.schema_url)
        provider = MeterProvider(metric_readers=[self._reader], resource=resource)
        meter = provider.get_meter("flows")
        self._rows = {
            name: meter.create_counter(f"flows.task.{name}", unit="{row}")
            for name in ("rows_read", "rows_rejected", "rows_written")
        }
        self._seconds = meter.create_histogram("flows.task.seconds", unit="s")
        self._given_up = False
        # Tasks that end at the same time wait together, and not one after the other.
        self._sending = threading.Lock()

    def send(self, metrics: TaskMetrics, flow: str) -> bool:
        """Send the numbers; False, once, when they did not arrive."""
        with self._sending:
            if self._given_up:
                return True
            attributes = {"flow": flow, "task": metrics.task}
            for name, counter in self._rows.items():
                counter.add(getattr(metrics, name), attributes)
            self._seconds.record(metrics.seconds, attributes)
            data = self._reader.get_metrics_data()
            began = time.monotonic()
            self._given_up = data is not None and self._exporter.export(data).name != "SUCCESS"
            if self._given_up:
                waited = time.monotonic() - began
                _waiting.note(_waiting.collector(ENDPOINT_VARIABLES), waited)
            return not self._given_up


@cache
def _collector() -> _Collector:
    return _Collector()


def report_quality_breach(message: str) -> None:
    """Say that data does not have the required quality, without a failure of the flow run.

    Inside a flow run, or a task run of it. Emits an event, for which the alert `quality` sends
    `message` to people: it must not contain a secret.
    """
    emit_event(
        event=QUALITY_EVENT,
        resource={
            "prefect.resource.id": f"prefect.flow-run.{flow_run.get_id()}",
            "prefect.resource.name": flow_run.get_name() or "",
        },
        payload={"message": mask(message)},
    )
