"""JSON logs: each line of a program of the images is one object, in one shape."""

import json
import logging
from pathlib import Path
from typing import Any

import opentelemetry.sdk.trace
import pytest

from prefect_hamilton.logs import JsonFormatter
from tests.images.pods import Pods
from tests.services import OWN_SERVER, prefect_server

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

JSON = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
    "PREFECT_LOGGING_HANDLERS_DEBUG_FORMATTER": "json",
}


def objects(output: str) -> list[dict[str, Any]]:
    """Parse each line; the keys that each must have are there and first."""
    found = [json.loads(line) for line in output.splitlines()]
    for each in found:
        assert list(each)[:4] == ["timestamp", "level", "logger", "message"], each
    return found


def test_each_line_of_a_flow_pod_names_its_run(pods: Pods) -> None:
    run = pods.taken_up()

    code, output = pods.execute(run, **JSON)

    assert code == 0, output
    lines = objects(output)
    assert {line["flow_run_id"] for line in lines} == {str(run.id)}
    (of_flow,) = [line for line in lines if line["message"] == "about to return"]
    assert of_flow["flow_run_name"] == run.name
    assert of_flow["flow_name"] == "probe"
    assert of_flow["deployment_id"] == str(run.deployment_id)
    (of_task,) = [line for line in lines if "task_run_id" in line]
    assert (of_task["task_name"], of_task["message"]) == ("double", "Finished in state Completed()")
    assert of_task["deployment_id"] == str(run.deployment_id)


def test_a_traceback_is_part_of_its_line(pods: Pods) -> None:
    run = pods.taken_up(end="raise")

    _, output = pods.execute(run, **JSON)

    failed = next(line for line in objects(output) if "exc_info" in line)
    assert (failed["level"], failed["exc_info"]["type"]) == ("ERROR", "ValueError")
    assert failed["exc_info"]["message"] == "as asked"
    assert failed["exc_info"]["traceback"].startswith("Traceback (most recent call last):\n")


def test_each_line_of_the_server_is_json(tmp_path: Path) -> None:
    settings = JSON | {
        "PREFECT_LOGGING_FORMATTERS_JSON_CLASS": "prefect_hamilton.logs.JsonFormatter",
        "PREFECT_SERVER_LOGGING_LEVEL": "INFO",
    }

    with prefect_server(tmp_path, program=OWN_SERVER, **settings) as server:
        pass

    loggers = {line["logger"] for line in objects(server.log.read_text())}
    assert "uvicorn.error" in loggers


def test_ids_of_a_span_are_in_the_form_of_trace_context() -> None:
    tracer = opentelemetry.sdk.trace.TracerProvider().get_tracer("test")
    record = logging.LogRecord("mine", logging.INFO, "", 0, "%s €", (3,), None)

    with tracer.start_as_current_span("work") as span:
        line = json.loads(JsonFormatter().format(record))

    assert line["message"] == "3 €"
    assert int(line["trace_id"], 16) == span.get_span_context().trace_id
    assert (len(line["trace_id"]), len(line["span_id"])) == (32, 16)
    assert "trace_id" not in json.loads(JsonFormatter().format(record))
