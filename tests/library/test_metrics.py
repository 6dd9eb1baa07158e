"""Task metrics: a Prefect event for each task, and OpenTelemetry only when it is configured."""

import json
import logging
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AGGREGATION_TEMPORALITY_DELTA
from prefect import flow, task
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker
from prefect.testing.fixtures import asserting_events_worker  # noqa: F401 (a fixture)

from prefect_hamilton import metrics as metrics_module
from tests.web import Answer, WebServer

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_api")]


@pytest.fixture(autouse=True)
def fresh_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in metrics_module.ENDPOINT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    metrics_module._collector.cache_clear()


@task
def measured(fail: bool) -> None:
    with metrics_module.measure("measured") as metrics:
        metrics.rows_read, metrics.rows_rejected, metrics.rows_written = 10, 3, 7
        if fail:
            raise ValueError("on purpose")


@flow(name="measured flow")
def measured_flow(fail: bool = False) -> None:
    measured(fail)


@pytest.mark.parametrize("fail", [False, True])
def test_each_task_run_emits_its_metrics(
    asserting_events_worker: EventsWorker,  # noqa: F811
    fail: bool,
) -> None:
    state = measured_flow(fail, return_state=True)
    asserting_events_worker.drain()
    client = asserting_events_worker._client
    assert isinstance(client, AssertingEventsClient)
    (event,) = [event for event in client.events if event.event == metrics_module.EVENT]
    seconds = event.payload.pop("seconds")
    assert seconds >= 0
    assert event.payload == {
        "task": "measured",
        "rows_read": 10,
        "rows_rejected": 3,
        "rows_written": 7,
    }
    assert event.resource.id.startswith("prefect.task-run.")
    flow_run_id = f"prefect.flow-run.{state.state_details.flow_run_id}"
    assert flow_run_id in [related.id for related in event.related]


@flow
def counted_by_numpy(rejected: Any) -> None:
    with metrics_module.measure("measured") as metrics:
        metrics.rows_read = np.int64(10)  # type: ignore[assignment]  # as `sum` of a column
        metrics.rows_rejected = rejected


@pytest.mark.parametrize("rejected", [np.int64(3), float("nan"), "many"], ids=repr)
def test_counts_of_numpy_are_numbers_and_nothing_else_is_counted(
    asserting_events_worker: EventsWorker,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    rejected: Any,
) -> None:
    counted_by_numpy(rejected)
    asserting_events_worker.drain()
    client = asserting_events_worker._client
    assert isinstance(client, AssertingEventsClient)
    (event,) = [event for event in client.events if event.event == metrics_module.EVENT]
    json.dumps(event.payload)
    is_number = isinstance(rejected, np.int64)
    assert (event.payload["rows_read"], event.payload["rows_rejected"]) == (10, 3 * is_number)
    assert ("rows_rejected of the task measured is not counted" in caplog.text) != is_number


@pytest.fixture
def received(
    web_server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> list[ExportMetricsServiceRequest]:
    """What the configured collector has received so far."""
    received: list[ExportMetricsServiceRequest] = []

    def collect(body: bytes) -> Answer:
        received.append(ExportMetricsServiceRequest.FromString(body))
        return 200, {"Content-Type": "application/x-protobuf"}, b""

    web_server.answers["/v1/metrics"] = collect
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", web_server.url)
    return received


def test_metrics_reach_a_configured_collector(received: list[ExportMetricsServiceRequest]) -> None:
    measured_flow()
    (request,) = received
    points: dict[str, Any] = {
        metric.name: (metric.sum.data_points or metric.histogram.data_points)[0]
        for metric in request.resource_metrics[0].scope_metrics[0].metrics
    }
    assert {name: points[name].as_int for name in points if "rows" in name} == {
        "flows.task.rows_read": 10,
        "flows.task.rows_rejected": 3,
        "flows.task.rows_written": 7,
    }
    assert points["flows.task.seconds"].count == 1
    attributes = {
        item.key: item.value.string_value for item in points["flows.task.seconds"].attributes
    }
    assert attributes == {"flow": "measured flow", "task": "measured"}


def test_what_several_runs_send_adds_up(
    received: list[ExportMetricsServiceRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process sends what is new, as the same series as the others: deltas can be summed."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    for _ in range(2):
        measured_flow()
        measured_flow()
        metrics_module._collector.cache_clear()  # as in another process
    resources = set()
    rows, runs = 0, 0
    for request in received:
        (found,) = request.resource_metrics
        resources.add(
            tuple(sorted((a.key, a.value.string_value) for a in found.resource.attributes))
        )
        for metric in found.scope_metrics[0].metrics:
            data = getattr(metric, metric.WhichOneof("data"))
            assert data.aggregation_temporality == AGGREGATION_TEMPORALITY_DELTA
            (point,) = data.data_points
            if metric.name == "flows.task.rows_read":
                assert data.is_monotonic
                rows += point.as_int
            elif metric.name == "flows.task.seconds":
                runs += point.count
    assert (rows, runs) == (40, 4)
    (resource,) = resources
    assert ("deployment.environment", "test") in resource


def test_no_metrics_are_sent_by_default(web_server: WebServer) -> None:
    measured_flow()
    assert web_server.requests == []
    assert metrics_module._collector.cache_info().currsize == 0


def test_a_collector_that_is_down_causes_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert measured_flow(return_state=True).is_completed()
    assert measured_flow(return_state=True).is_completed()
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    (warning,) = [words for words in warnings if "OTLP" in words or "xport" in words]
    assert warning.startswith("Task metrics did not reach the OTLP endpoint (")
    assert "Connection refused" in warning


def test_a_setting_that_opentelemetry_refuses_causes_one_warning_per_task_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", "bogus")
    assert measured_flow(return_state=True).is_completed()
    records = [record for record in caplog.records if "are not sent: " in record.getMessage()]
    assert len(records) == 1
