"""JSON logs: each line of a program of the images is one object, in one shape."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import opentelemetry.sdk.trace
import pytest

from prefect_hamilton import logs
from prefect_hamilton.logs import JsonFormatter
from tests.images.pods import Pods
from tests.services import OWN_SERVER, as_prefects, create_database, prefect_server

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

JSON = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
    "PREFECT_LOGGING_HANDLERS_DEBUG_FORMATTER": "json",
}

CLASS = {"PREFECT_LOGGING_FORMATTERS_JSON_CLASS": "prefect_hamilton.logs.JsonFormatter"}


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


def test_a_failed_pull_step_is_a_line_with_its_traceback(pods: Pods, tmp_path: Path) -> None:
    run = pods.taken_up(pull=tmp_path / "nowhere")

    _, output = pods.execute(run, **JSON)

    (failed,) = [line for line in objects(output) if "exc_info" in line]
    assert failed["level"] == "ERROR"
    assert failed["flow_run_id"] == str(run.id)
    assert "nowhere" in failed["exc_info"]["traceback"]


@pytest.mark.parametrize(
    ("env", "status", "message"),
    [
        ({"PREFECT__FLOW_RUN_ID": str(uuid4())}, 1, "The flow run is not executed: Client error"),
        ({"PREFECT__FLOW_RUN_ID": "one"}, 2, "flow_pod: 'one' is not the id of a flow run"),
        ({"PREFECT_HAMILTON_GIT_OUTAGE_SECONDS": "1m"}, 2, "flow_pod: '1m' is not a number"),
    ],
    ids=["refused by the API", "no id", "no number"],
)
def test_a_pod_that_cannot_begin_says_so_in_json(
    pods: Pods, env: dict[str, str], status: int, message: str
) -> None:
    with pods._started(**JSON, **env) as pod:
        output, _ = pod.communicate(timeout=60)

    assert pod.returncode == status
    assert any(line["message"].startswith(message) for line in objects(output)), output
    assert "Traceback" not in output


def test_each_line_of_the_server_is_json(tmp_path: Path) -> None:
    settings = JSON | CLASS | {"PREFECT_SERVER_LOGGING_LEVEL": "INFO"}

    with prefect_server(tmp_path, program=OWN_SERVER, **settings) as server:
        pass

    loggers = {line["logger"] for line in objects(server.log.read_text())}
    assert "uvicorn.error" in loggers


def executed(*arguments: str, **env: str) -> tuple[int, list[dict[str, Any]]]:
    """Status and log of a program of the image."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", *arguments],
        env=os.environ | JSON | CLASS | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, objects(done.stdout)


def test_the_bootstrap_writes_json(prefect_api: str, tmp_path: Path) -> None:
    state = tmp_path / "state.yaml"
    state.write_text("variables: [{name: region, value: eu}]\nhamilton: null\n")
    api = {"PREFECT_API_URL": prefect_api, "PREFECT_HOME": str(tmp_path)}

    status, lines = executed("prefect_hamilton.bootstrap", "apply", f"--file={state}", **api)

    assert status == 0, lines
    assert {line["logger"] for line in lines} == {"prefect_hamilton.bootstrap"}
    assert any("region" in line["message"] for line in lines)
    assert lines[-1]["message"].startswith("Bootstrap: ")
    assert lines[-1]["level"] == "INFO"


def test_a_bootstrap_that_fails_says_so_as_an_error(tmp_path: Path) -> None:
    state = tmp_path / "state.yaml"
    state.write_text("variables: 3\n")

    status, lines = executed("prefect_hamilton.bootstrap", "apply", f"--file={state}")

    assert status == 1
    assert "variables" in lines[0]["message"]
    assert [line["level"] for line in lines] == ["WARNING", "ERROR"]


def test_the_migration_writes_json(postgres: str) -> None:
    url = as_prefects(create_database(postgres, "json_logs"))
    settings = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}

    status, lines = executed("prefect_hamilton.server.migrate", **settings)

    assert status == 0, lines
    assert lines[-1]["message"].endswith("is current.")
    assert lines[-1]["logger"] == "prefect_hamilton.server.migrate"


def test_a_program_that_ends_with_an_exception_writes_one_record() -> None:
    """As the Job of the Secrets does outside of a cluster."""
    status, (line,) = executed("prefect_hamilton.server.create_secrets")

    assert status == 1
    assert (line["level"], line["exc_info"]["type"]) == ("ERROR", "KeyError")
    assert line["message"] == line["exc_info"]["message"]
    assert line["exc_info"]["traceback"].startswith("Traceback (most recent call last):\n")


def test_output_of_the_git_server_is_json(tmp_path: Path) -> None:
    status, lines = executed(
        "prefect_hamilton.logs", "git", "daemon", "--listen=127.0.0.1", "--port=no"
    )

    assert status != 0
    assert {line["logger"] for line in lines} == {"git"}
    code = ("sh", "-c", "echo one; echo two >&2; kill -TERM $PPID; exec sleep 60")
    status, lines = executed("prefect_hamilton.logs", *code)
    assert status == 128 + signal.SIGTERM
    assert [line["message"] for line in lines] == ["one", "two"]


@pytest.mark.parametrize("variable", ["json", "standard"])
def test_text_is_as_before_where_logs_are_text(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER", variable)
    with logs.lines("mine"):
        for text in ("a 100 %\nb", "\n", "without an end"):  # as print writes them
            sys.stdout.write(text)

    output = capsys.readouterr().out
    if variable == "json":
        messages = [line["message"] for line in objects(output)]
        assert messages == ["a 100 %\nb", "without an end"]
    else:
        assert output == "a 100 %\nb\nwithout an end"


def test_ids_of_a_span_are_in_the_form_of_trace_context() -> None:
    tracer = opentelemetry.sdk.trace.TracerProvider().get_tracer("test")
    record = logging.LogRecord("mine", logging.INFO, "", 0, "%s €", (3,), None)

    with tracer.start_as_current_span("work") as span:
        line = json.loads(JsonFormatter().format(record))

    assert line["message"] == "3 €"
    assert int(line["trace_id"], 16) == span.get_span_context().trace_id
    assert (len(line["trace_id"]), len(line["span_id"])) == (32, 16)
    assert "trace_id" not in json.loads(JsonFormatter().format(record))


def test_a_span_that_is_not_recorded_has_no_ids() -> None:
    sampler = opentelemetry.sdk.trace.sampling.ALWAYS_OFF
    tracer = opentelemetry.sdk.trace.TracerProvider(sampler=sampler).get_tracer("test")
    record = logging.LogRecord("mine", logging.INFO, "", 0, "a line", None, None)

    with tracer.start_as_current_span("work"):
        line = json.loads(JsonFormatter().format(record))

    assert "trace_id" not in line
