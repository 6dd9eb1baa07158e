"""Metrics of the background services: how often each ran, how late it began, and how it ended.

Docket, which runs the background services of Prefect, records them by OpenTelemetry.
"""

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.view import (
    Aggregation,
    DefaultAggregation,
    DropAggregation,
    ExplicitBucketHistogramAggregation,
    View,
)

SECONDS = ExplicitBucketHistogramAggregation((1.0, 5.0, 15.0, 60.0, 300.0))


def record() -> None:
    """Add the metrics to the registry that the client of Prometheus serves by default."""
    views = [
        _by_service("docket_tasks_succeeded"),
        _by_service("docket_tasks_failed"),
        _by_service("docket_task_duration", SECONDS),
        _by_service("docket_task_punctuality", SECONDS),
        View(instrument_name="*", aggregation=DropAggregation()),
    ]
    reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False)
    set_meter_provider(MeterProvider([reader], views=views))


def _by_service(instrument: str, aggregation: Aggregation | None = None) -> View:
    """Keep an instrument with the name of the service, without those of process and queue."""
    return View(
        instrument_name=instrument,
        attribute_keys={"docket.task"},
        aggregation=aggregation or DefaultAggregation(),
    )
