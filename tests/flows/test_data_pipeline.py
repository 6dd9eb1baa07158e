"""The data pipeline as a whole, on a real Prefect server: what it loads, shows and survives."""

import json
import os
import re
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
import pytest
from prefect import State, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact
from prefect.utilities.callables import parameter_schema
from prefect.variables import Variable

from flows import data_pipeline, tables
from flows.data_pipeline import enterprise_data_pipeline
from flows.pipeline_report import LoadSummary
from prefect_hamilton import warehouse
from tests import forks
from tests.services import ROOT
from tests.web import WebServer

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_api")]

SAMPLE_ROWS = 5844
SAMPLE_MONTHS = 4 * 48
TABLES = {
    "metrics": 'SELECT * FROM "warehouse"."prod"."metrics"',
    "monthly": 'SELECT * FROM "warehouse"."prod"."metrics_monthly"',
    "quarantine": 'SELECT * FROM "warehouse"."prod"."metrics_quarantine"',
    "loads": 'SELECT * FROM "warehouse"."prod"."metrics_loads"',
}


def run(**parameters: Any) -> State[Any]:
    return enterprise_data_pipeline(**parameters, return_state=True)


def read(url: str, table: str) -> pd.DataFrame:
    with warehouse.connect(url) as connection:
        return connection.read(TABLES[table])


def run_id(state: State[Any]) -> UUID:
    assert state.state_details.flow_run_id
    return state.state_details.flow_run_id


def artifacts(flow_run_id: UUID) -> dict[str, Artifact]:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        )
    return {artifact.key: artifact for artifact in found if artifact.key}


def source(folder: Path, records: list[dict[str, Any]]) -> str:
    file = folder / "records.json"
    file.write_text(json.dumps(records))
    return file.as_uri()


def good_records(count: int) -> list[dict[str, Any]]:
    days = pd.date_range("2024-01-01", periods=count).strftime("%Y-%m-%d")
    return [{"time": day, "metric": "wind", "value": 3.0} for day in days]


def test_the_default_run_loads_the_sample_and_a_second_run_changes_nothing(
    any_warehouse: str,
) -> None:
    states = [run(), run(batch_size=5000)]
    summary = states[0].result(raise_on_failure=False)
    assert isinstance(summary, LoadSummary), states[0].message
    assert (summary.rows_read, summary.rows_rejected) == (SAMPLE_ROWS, 0)
    assert states[1].is_completed(), states[1].message
    rows = read(any_warehouse, "metrics")
    assert len(rows) == len(rows.drop_duplicates(["metric", "time"])) == SAMPLE_ROWS
    assert len(read(any_warehouse, "monthly")) == SAMPLE_MONTHS
    loads = read(any_warehouse, "loads").set_index("flow_run_id")
    assert set(loads.index) == {str(run_id(state)) for state in states}
    assert set(loads["status"]) == {"complete"}
    assert set(loads["rows_written"]) == {SAMPLE_ROWS}


def test_the_artifacts_explain_the_result(duckdb_warehouse: str) -> None:
    state = run(target_table="warehouse.test.metrics")
    found = artifacts(run_id(state))
    preview = json.loads(str(found["pipeline-preview"].data))
    assert found["pipeline-preview"].type == "table"
    assert len(preview) == 20
    assert {row["metric"] for row in preview} == {"precipitation", "temp_max", "temp_min", "wind"}
    assert found["pipeline-load-progress"].type == "progress"
    assert found["pipeline-load-progress"].data == 100.0
    summary = str(found["pipeline-summary"].data)
    assert "# warehouse.test.metrics" in summary
    assert "All 5,844 records satisfy every rule." in summary
    assert duckdb_warehouse in str(found["pipeline-link"].data)
    for task in ("validate-metrics", "transform-metrics"):
        assert "data:image/png;base64," in str(found[f"hamilton-dag-{task}"].data)


def test_bad_records_are_quarantined_once_with_their_reason(
    any_warehouse: str, tmp_path: Path
) -> None:
    bad = [
        {"time": "2024-01-01", "metric": "wind", "value": "calm"},
        {"time": None, "metric": "wind", "value": 1},
        {"time": None, "metric": "wind", "value": 1},
    ]
    url = source(tmp_path, [*good_records(97), *bad])
    states = [run(source_url=url), run(source_url=url)]
    assert [state.is_completed() for state in states] == [True, True]
    kept = read(any_warehouse, "quarantine")
    assert sorted(kept["reasons"]) == [
        "time is missing",
        "time is missing",
        "value is not a number",
    ]
    assert set(kept["flow_run_id"]) == {str(run_id(states[1]))}
    assert len(read(any_warehouse, "metrics")) == 97
    assert "| time is missing | 2 |" in str(artifacts(run_id(states[0]))["pipeline-summary"].data)


def test_too_many_bad_records_fail_the_run_with_the_counts(
    duckdb_warehouse: str, tmp_path: Path
) -> None:
    bad = [{"time": f"2025-01-0{day}", "metric": "wind", "value": 500} for day in range(1, 7)]
    url = source(tmp_path, [*good_records(94), *bad])
    state = run(source_url=url)
    assert state.is_failed()
    assert state.message == (
        "Rejected 6 of 100 records (6.0%; the maximum is 5.0%): 6 value is above the metric's "
        "maximum. Nothing was loaded; the rejected records are in warehouse.prod.metrics_quarantine"
    )
    assert len(read(duckdb_warehouse, "quarantine")) == 6
    with warehouse.connect(duckdb_warehouse) as connection:
        target = warehouse.Target.parse("warehouse.prod.metrics")
        assert not connection.has_table(target, tables.METRICS)
    Variable.set("max_rejected_ratio", 0.06, overwrite=True)
    try:
        assert run(source_url=url).is_completed()
    finally:
        Variable.unset("max_rejected_ratio")


def test_the_quarantine_keeps_only_the_first_records_of_a_bad_file(
    duckdb_warehouse: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "QUARANTINE_LIMIT", 5)
    bad = [{"time": f"day {number}", "metric": "wind", "value": 1} for number in range(12)]
    url = source(tmp_path, bad)
    states = [run(source_url=url), run(source_url=url)]
    for state in states:
        kept = "the first 5 are in warehouse.prod.metrics_quarantine, 7 more were not kept"
        assert str(state.message).endswith(f"Nothing was loaded; {kept}")
        assert kept in str(artifacts(run_id(state))["pipeline-summary"].data)
    assert sorted(read(duckdb_warehouse, "quarantine")["record_number"]) == [1, 2, 3, 4, 5]


def test_a_partial_month_keeps_the_other_records_of_that_month(
    any_warehouse: str, tmp_path: Path
) -> None:
    assert run(source_url=source(tmp_path, good_records(60))).is_completed()
    correction = [{"time": "2024-02-10", "metric": "wind", "value": 5}]
    assert run(source_url=source(tmp_path, correction)).is_completed()
    months = read(any_warehouse, "monthly").set_index("month")
    february = months.loc["2024-02-01"]
    assert (february["observations"], february["maximum"]) == (29, 5)
    assert february["change"] == pytest.approx(2 / 29)
    rows = read(any_warehouse, "metrics").set_index("time")
    assert rows.loc["2024-02-11", "rolling_mean_7d"] == pytest.approx((6 * 3 + 5) / 7)


def test_a_table_with_other_columns_is_reported_at_once(
    any_warehouse: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert run().is_completed()
    state = run(target_table="warehouse.prod.metrics_monthly")
    assert state.is_failed()
    assert state.message == (
        "warehouse.prod.metrics_monthly exists with other columns: choose another target table"
    )
    assert not [one for one in caplog.records if "Retry" in one.getMessage()]


def test_a_variable_that_is_not_a_number_is_reported(duckdb_warehouse: str) -> None:
    Variable.set("anomaly_z_threshold", "three", overwrite=True)
    try:
        state = run()
    finally:
        Variable.unset("anomaly_z_threshold")
    assert state.is_failed()
    assert "variable anomaly_z_threshold is 'three': set it to a number" in str(state.message)


def test_an_invalid_url_is_tried_four_times_and_reported(
    duckdb_warehouse: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = run(source_url="invalid://url")
    assert state.is_failed()
    assert str(state.message).startswith("Cannot read invalid://url: supported are sample:")
    messages = [record.getMessage() for record in caplog.records if "Retr" in record.getMessage()]
    assert [message.rpartition(" - ")[2] for message in messages] == [
        "Retry 1/3 will start 2 second(s) from now",
        "Retry 2/3 will start 2 second(s) from now",
        "Retry 3/3 will start 2 second(s) from now",
        "Retries are exhausted",
    ]
    assert all("invalid://url" in message for message in messages)


@pytest.mark.parametrize(("status", "attempts"), [(404, 1), (503, 4)])
def test_a_source_is_retried_only_for_transient_errors(
    duckdb_warehouse: str,
    web_server: WebServer,
    caplog: pytest.LogCaptureFixture,
    status: int,
    attempts: int,
) -> None:
    state = run(source_url=web_server.serve("/r.csv", "", status=status))
    assert str(state.message).startswith(f"Cannot read {web_server.url}/r.csv: the server answered")
    assert len(web_server.requests) == attempts
    assert "Traceback" not in caplog.text


def test_any_text_is_loaded_or_quarantined_unchanged(any_warehouse: str, tmp_path: Path) -> None:
    odd = ["\0", "wi\0nd", "\ud800", "\udfff x", "m" * 5000, "", " ", "now", "é\u2028'\"", "1e999"]
    bad = [
        {"time": "2024-01-01", "metric": "wind", "value": 3.0} | {column: text}
        for text in odd
        for column in ("time", "metric", "value")
    ]
    Variable.set("max_rejected_ratio", 1.0, overwrite=True)
    try:
        state = run(source_url=source(tmp_path, [*good_records(2), *bad]))
    finally:
        Variable.unset("max_rejected_ratio")
    assert state.is_completed(), state.message
    kept = read(any_warehouse, "quarantine")
    loaded = read(any_warehouse, "metrics")
    assert len(kept) + len(loaded) == 2 + len(bad)
    assert set(loaded["metric"]) == {"wind", "now", "é\u2028'\"", "1e999"}
    for text in odd:
        written = re.sub("[\0\ud800-\udfff]", lambda c: f"\\u{ord(c[0]):04x}", text)
        assert written in set(kept["raw_time"])
        assert written in set(kept["raw_value"])
    assert kept["reasons"].ne("").all()


def test_a_wrong_catalog_fails_before_the_source_is_read(
    duckdb_warehouse: str,
) -> None:
    state = run(target_table="lake.prod.metrics")
    assert state.is_failed()
    assert "write warehouse.prod.metrics" in str(state.message)


def test_the_run_form_describes_every_parameter() -> None:
    schema = parameter_schema(enterprise_data_pipeline)
    assert list(schema.properties) == [
        "source_url",
        "batch_size",
        "target_table",
        "source_timeout_seconds",
        "source_max_megabytes",
    ]
    assert schema.required == []
    defaults = [field["default"] for field in schema.properties.values()]
    assert defaults == ["sample:seattle-weather", 500, "warehouse.prod.metrics", 600, 100]
    assert all(len(field["description"]) > 20 for field in schema.properties.values())
    assert schema.properties["batch_size"]["minimum"] == 1
    assert str(ROOT) not in schema.model_dump_json()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--batch-size", "0"], "batch_size: Input should be greater than or equal to 1"),
        (["--target-table", "metrics"], "'metrics' is not catalog.schema.table"),
        (["--source-url", ""], "source_url: String should have at least 1 character"),
    ],
)
def test_a_wrong_argument_is_one_line_with_an_exit_code(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data_pipeline.main(arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if " | " not in line][-1:]
    assert expected in line


def test_the_help_of_the_command_describes_each_parameter(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        data_pipeline.main(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for name, field in enterprise_data_pipeline.parameters.properties.items():
        assert f"--{name.replace('_', '-')}" in printed
        assert " ".join(field["description"].split()) in printed


def test_environment_variables_do_not_set_options(
    monkeypatch: pytest.MonkeyPatch, duckdb_warehouse: str
) -> None:
    monkeypatch.setenv("batch_size", "0")
    assert data_pipeline.main([]) == 0


def test_the_command_prints_its_changes(
    duckdb_warehouse: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert data_pipeline.main([]) == 0
    assert "5,844 rows and 192 months written to warehouse.prod.metrics" in capsys.readouterr().out


def pipeline_process(prefect_api: str, *arguments: str) -> BaseProcess:
    env = os.environ | {"PREFECT_API_URL": prefect_api}
    return forks.start("tests.flows.pipeline_process", *arguments, env=env)


# The rows of the sample are written in 74 transactions of 80, the months in three more.
@pytest.mark.parametrize(
    ("transactions", "again"), [(40, "rescheduled"), (40, "repeated"), (75, "repeated")]
)
def test_a_killed_load_that_is_repeated_loses_and_duplicates_nothing(
    any_warehouse: str, prefect_api: str, transactions: int, again: str
) -> None:
    process = pipeline_process(prefect_api, "20", str(transactions))
    assert forks.exit_code(process, 200) == -signal.SIGKILL
    (before,) = read(any_warehouse, "loads").to_dict("records")
    assert before["status"] == "loading"
    killed = before["flow_run_id"]
    rows = read(any_warehouse, "metrics")
    assert len(rows) == before["rows_written"] == min(80 * transactions, SAMPLE_ROWS)

    arguments = ["500", "0", killed] if again == "rescheduled" else ["500", "0"]
    assert forks.exit_code(pipeline_process(prefect_api, *arguments), 200) == 0

    rows = read(any_warehouse, "metrics")
    assert len(rows) == len(rows.drop_duplicates(["metric", "time"])) == SAMPLE_ROWS
    assert len(read(any_warehouse, "monthly")) == SAMPLE_MONTHS
    loads = read(any_warehouse, "loads").set_index("flow_run_id")
    complete = loads[loads["status"] == "complete"]
    assert list(complete["rows_written"]) == [SAMPLE_ROWS]
    assert list(complete["months_written"]) == [SAMPLE_MONTHS]
    if again == "rescheduled":
        assert list(loads.index) == [killed]
    else:
        assert loads.loc[killed, "status"] == "interrupted"


def test_two_simultaneous_loads_both_succeed(duckdb_warehouse: str, prefect_api: str) -> None:
    processes = [pipeline_process(prefect_api, "100", "0") for _ in range(2)]
    assert [forks.exit_code(process, 200) for process in processes] == [0, 0]
    assert len(read(duckdb_warehouse, "metrics")) == SAMPLE_ROWS
    assert list(read(duckdb_warehouse, "loads")["status"]) == ["complete", "complete"]
