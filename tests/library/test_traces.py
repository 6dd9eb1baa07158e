"""Traces: what a collector receives of a flow run, and what a run is like without a collector."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from prefect.client.orchestration import SyncPrefectClient, get_client

from prefect_hamilton import _spans, _waiting, metrics
from tests.images.pods import Pods
from tests.images.test_standby import assignment, tell
from tests.services import ROOT, Service
from tests.web import Answer, WebServer

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

FLOW = Path(__file__).with_name("traced_flow.py")
JSON = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
    "PREFECT_LOGGING_FORMATTERS_JSON_CLASS": "prefect_hamilton.logs.JsonFormatter",
}


@dataclass
class Collector:
    """What an OTLP receiver got."""

    url: str
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.requests
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    @property
    def resource(self) -> dict[str, str]:
        found = self.requests[0].resource_spans[0].resource.attributes
        return {each.key: each.value.string_value for each in found}

    def span(self, name: str) -> Span:
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def path(self, span: Span) -> list[str]:
        """Names of the spans from the root to this one."""
        above = {each.span_id: each for each in self.spans}
        names = [span.name]
        while span.parent_span_id:
            span = above[span.parent_span_id]
            names.insert(0, span.name)
        return names


@pytest.fixture
def collector(web_server: WebServer) -> Collector:
    collector = Collector(web_server.url)

    def collect(body: bytes) -> Answer:
        collector.requests.append(ExportTraceServiceRequest.FromString(body))
        return 200, {"Content-Type": "application/x-protobuf"}, b""

    web_server.answers["/v1/traces"] = collect
    return collector


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def run(api: str, argument: int | str = 1, **env: str) -> str:
    """Output of the program with the argument."""
    done = subprocess.run(
        [sys.executable, FLOW, str(argument)],
        env=os.environ | {"PREFECT_API_URL": api, "PYTHONPATH": str(ROOT)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_run_is_one_trace_from_flow_to_node(prefect_api: str, collector: Collector) -> None:
    output = run(
        prefect_api,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        PREFECT_HAMILTON_TRACE_RESOURCE="k8s.pod.name=quick-fox&prefect.work-pool.name=a+pool&b=",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
        **JSON,
    )

    assert output.endswith("\n"), output
    assert len({span.trace_id for span in collector.spans}) == 1
    assert sorted(map(collector.path, collector.spans)) == [
        ["traced"],
        ["traced", "compute"],
        ["traced", "compute", "shares"],
        ["traced", "compute", "shares", "amount"],
        ["traced", "compute", "shares", "share"],
    ]
    assert {span.status.code for span in collector.spans} <= {
        Status.STATUS_CODE_OK,
        Status.STATUS_CODE_UNSET,
    }
    resource = collector.resource
    assert resource["service.name"] == "flows"
    assert resource["k8s.pod.name"] == "quick-fox"
    assert resource["prefect.work-pool.name"] == "a pool"
    assert resource["deployment.environment.name"] == "test"
    assert "b" not in resource
    (of_node,) = [line for line in of_json(output) if line["message"] == "in the node"]
    assert of_node["trace_id"] == collector.span("amount").trace_id.hex()
    assert of_node["span_id"] == collector.span("amount").span_id.hex()


def test_a_failure_is_on_the_spans_that_it_ended(prefect_api: str, collector: Collector) -> None:
    output = run(prefect_api, 0, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.url}/v1/traces")

    assert "\nFAILED " in output
    failed = {s.name for s in collector.spans if s.status.code == Status.STATUS_CODE_ERROR}
    assert failed == {"traced", "compute", "shares", "share"}
    (event,) = collector.span("share").events
    attributes = {each.key: each.value.string_value for each in event.attributes}
    assert attributes["exception.type"] == "ZeroDivisionError"
    assert "in share" in attributes["exception.stacktrace"]
    assert collector.span("share").status.message == "division by zero"


def test_a_run_that_returns_a_failed_state_is_an_error(
    prefect_api: str, collector: Collector
) -> None:
    output = run(prefect_api, "returned", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    assert "\nFAILED " in output
    span = collector.span("returned")
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message == "Not today"


def of_json(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_a_flow_that_is_tried_again_is_one_span(prefect_api: str, collector: Collector) -> None:
    output = run(prefect_api, "retried", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    assert "\nCOMPLETED " in output
    span = collector.span("retried")
    assert span.status.code == Status.STATUS_CODE_OK
    tasks = [each for each in collector.spans if each.name == "last"]
    assert len(tasks) == 2
    assert all(span.end_time_unix_nano >= each.end_time_unix_nano for each in tasks)
    assert "exception" in [event.name for event in span.events]


def test_a_task_that_times_out_or_never_runs_ends_its_span(
    prefect_api: str, collector: Collector
) -> None:
    run(prefect_api, "late", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    late, last = (collector.span(name) for name in ("attempt", "last"))
    (never,) = [span for span in collector.spans if span.name.startswith("follows-")]
    assert late.status.code == Status.STATUS_CODE_ERROR
    assert late.status.message == "Task run exceeded timeout of 0.1 second(s)"
    assert "exception" in [event.name for event in late.events]
    assert never.status.code == Status.STATUS_CODE_ERROR
    assert "did not reach a 'COMPLETED' state" in never.status.message
    for each in (late, never):
        assert each.end_time_unix_nano <= last.start_time_unix_nano


def test_the_lines_of_a_run_are_those_of_its_span(prefect_api: str, collector: Collector) -> None:
    """Also the last ones, and those of other loggers."""
    env = {"PREFECT_LOGGING_EXTRA_LOGGERS": "mine"}
    output = run(prefect_api, "late", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **env, **JSON)

    lines = of_json(output)
    ended = [line for line in lines if line["message"].startswith("Finished in state")]
    names = [line.get("task_run_name", "late") for line in ended]
    assert (names[0], names[2:]) == ("attempt", ["last", "late"])
    spans = [collector.span(name).span_id.hex() for name in names]
    assert [line["span_id"] for line in ended] == spans
    (of_mine,) = [line for line in lines if line["message"] == "in the last task"]
    assert (of_mine["task_name"], of_mine["task_run_name"]) == ("last", "last")
    assert of_mine["span_id"] == collector.span("last").span_id.hex()
    assert of_mine["flow_name"] == "late"


def test_no_secret_of_an_exception_is_sent_or_logged(
    prefect_api: str, collector: Collector
) -> None:
    for format_ in ({}, JSON):
        output = run(
            prefect_api,
            "secret",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            DATABASE_PASSWORD="hunter2",
            **format_,
        )
        assert "\nFAILED " in output
        assert "Cannot connect to postgresql://***@db/w" in output
        assert "hunter2" not in output
    assert len([span for span in collector.spans if span.name == "connection"]) == 2
    assert not [each for each in collector.requests if b"hunter2" in each.SerializeToString()]


@pytest.mark.parametrize("argument", ["returned", "measured"])
def test_a_credential_that_is_malformed_is_not_logged(
    prefect_api: str, collector: Collector, argument: str
) -> None:
    output = run(
        prefect_api,
        argument,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_EXPORTER_OTLP_HEADERS="Authorization: Bearer hunter2",
    )

    assert "Header format invalid" in output
    assert "hunter2" not in output


def test_nodes_of_parallel_blocks_and_coroutines_are_in_the_trace(
    prefect_api: str, collector: Collector
) -> None:
    output = run(prefect_api, "other", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)

    assert "\nCOMPLETED " in output
    assert "Failed to detach" not in output
    assert len({span.trace_id for span in collector.spans}) == 1
    nodes = {span.name: collector.path(span)[:2] for span in collector.spans}
    assert {nodes[name][0] for name in ("part", "square", "total", "slow")} == {"other"}
    assert collector.path(collector.span("slow")) == ["other", "coroutines", "slow"]
    assert collector.path(collector.span("total")) == ["other", "blocks", "total"]


def test_numbers_of_a_measured_task_are_on_its_span(prefect_api: str, collector: Collector) -> None:
    endpoint = f"{collector.url}/v1/traces"
    run(prefect_api, "measured", OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=endpoint)

    found = {each.key: each.value for each in collector.span("load").attributes}
    assert found["flows.task.name"].string_value == "load"
    rows = {name: found[f"flows.task.rows_{name}"].int_value for name in ("read", "rejected")}
    assert rows == {"read": 10, "rejected": 3}
    assert found["flows.task.rows_written"].int_value == 7
    assert found["flows.task.seconds"].double_value >= 0
    of_run = {each.key for each in collector.span("measured").attributes}
    assert not {name for name in of_run if name.startswith("flows.task")}


@pytest.mark.parametrize("argument", [1, "retried", "late"])
def test_the_standard_sampler_applies(
    prefect_api: str, collector: Collector, argument: int | str
) -> None:
    off = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_TRACES_SAMPLER": "always_off"}
    output = run(prefect_api, argument, **off)
    assert "\nCOMPLETED " in output
    assert collector.requests == []


@pytest.mark.parametrize(
    "env",
    [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_SDK_DISABLED": "true"}],
    ids=["no endpoint", "no exporter", "disabled"],
)
def test_nothing_of_the_sdk_is_imported_where_traces_are_off(
    prefect_api: str, collector: Collector, env: dict[str, str]
) -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} if env else {}
    output = run(prefect_api, **env, **endpoint)
    assert output.splitlines()[-1] == "COMPLETED "
    assert collector.requests == []


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_collector_that_is_down_causes_one_warning(prefect_api: str) -> None:
    output = run(prefect_api, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert "\nCOMPLETED " in output
    (warning,) = [line for line in output.splitlines() if "Spans did not reach" in line]
    assert "Connection refused" in warning
    assert "Traceback" not in output


def test_a_collector_that_does_not_answer_causes_one_warning(prefect_api: str, silent: str) -> None:
    output = run(prefect_api, OTEL_EXPORTER_OTLP_ENDPOINT=silent)
    assert "\nCOMPLETED " in output
    assert output.count("Spans did not reach") == 1
    assert "Traceback" not in output


def test_metrics_and_spans_that_a_collector_does_not_answer_cause_a_warning_each(
    prefect_api: str, silent: str
) -> None:
    output = run(prefect_api, "measured", OTEL_EXPORTER_OTLP_ENDPOINT=silent)
    assert "\nCOMPLETED " in output
    assert output.count("Task metrics did not reach") == 1
    assert output.count("Spans did not reach") == 1
    assert "Traceback" not in output
    assert "Transient error" not in output


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Seconds that the end of this process has waited for, without an answer."""
    monkeypatch.setattr(_waiting, "_waited", {})
    metrics._collector.cache_clear()
    return []


def end_process(waited: list[float | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """End twice, as SIGTERM and the interpreter do."""

    class Never(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout)
            return False

    provider = _spans.TracerProvider(shutdown_on_exit=False)
    end = _spans._End(provider, _spans._OpenSpans(), _spans._Exporter())
    monkeypatch.setattr(end, "_done", Never())
    end()
    end()


def test_the_end_of_the_process_waits_for_a_bounded_time(
    waited: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request may take less than the end waits, which asks for no second one."""
    assert _spans.EXPORT_SECONDS < _waiting.SECONDS <= 3
    assert _spans._Exporter()._exporter._client._timeout == _spans.EXPORT_SECONDS
    end_process(waited, monkeypatch)
    assert waited == [_waiting.SECONDS]


@pytest.mark.parametrize("is_one", [True, False], ids=["one", "another for traces"])
def test_a_process_waits_for_a_silent_collector_once(
    waited: list[float | None], silent: str, is_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the 3 seconds, the metrics of a task have left nothing to the spans."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", silent)
    if not is_one:
        other = "http://127.0.0.1:9/v1/traces"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", other)
    collector = metrics._collector()
    assert collector._exporter._client._timeout == _waiting.SECONDS
    assert not collector.send(metrics.TaskMetrics(task="load"), "measured")
    end_process(waited, monkeypatch)
    (seconds,) = waited
    assert seconds == pytest.approx(0 if is_one else _waiting.SECONDS, abs=0.1)


def test_an_invalid_setting_causes_one_warning(prefect_api: str, collector: Collector) -> None:
    output = run(
        prefect_api, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_MAX_QUEUE_SIZE="-1"
    )
    assert "\nCOMPLETED " in output
    assert output.count("No traces are sent: ") == 1
    assert collector.requests == []


def test_a_pod_that_ends_and_the_next_one_share_a_trace(
    client: SyncPrefectClient, prefect_server: Service, collector: Collector, tmp_path: Path
) -> None:
    pods = Pods(client, prefect_server, Path(sys.executable), tmp_path)
    run = pods.taken_up("traced", FLOW.parent, FLOW, end="sigterm")
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}

    code, output = pods.execute(run, IS_FIRST="yes", **env)
    assert code == 0, output
    first = collector.spans
    pods.take_up(run)
    code, output = pods.execute(run, **env)

    assert code == 0, output
    assert len({span.trace_id for span in collector.spans}) == 1
    before, after = [span for span in collector.spans if span.name == "traced"]
    assert before in first
    assert before.status.code == Status.STATUS_CODE_ERROR
    assert after.parent_span_id == before.span_id
    assert after.status.code == Status.STATUS_CODE_OK


def test_the_traces_of_a_pod_that_has_preloaded_a_dataflow_arrive(
    client: SyncPrefectClient, prefect_server: Service, collector: Collector, tmp_path: Path
) -> None:
    """The process that is forked for the flow sends them."""
    pods = Pods(client, prefect_server, Path(sys.executable), tmp_path)
    run = pods.taken_up("traced", FLOW.parent, FLOW)
    with pods.standing_by(
        PREFECT_HAMILTON_STANDBY_PRELOAD="prefect_hamilton.dataflow",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
    ) as pod:
        tell(pod, assignment(run, PREFECT_HAMILTON_TRACE_RESOURCE="k8s.pod.name=quick-fox"))
        output, _ = pod.communicate(timeout=120)

    assert pod.returncode == 0, output
    assert collector.path(collector.span("share")) == ["traced", "compute", "shares", "share"]
    assert collector.resource["k8s.pod.name"] == "quick-fox"
