"""The flows that follow another one: the report on a load, and the one on a failed run."""

import base64
import json
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd
import pytest
from prefect import State, flow, get_client, get_run_logger
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
)
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from flows.data_pipeline import enterprise_data_pipeline
from flows.metrics_report import metrics_quality_report
from prefect_hamilton.flows.failed_run_report import failed_run_report

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_api")]


def markdown(state: State[Any]) -> list[str]:
    run_id = state.state_details.flow_run_id
    assert run_id
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    return [str(artifact.data) for artifact in found if artifact.type == "markdown"]


def test_a_load_is_reported_once_per_upstream_run(any_warehouse: str) -> None:
    table = "warehouse.test.metrics"
    upstream = enterprise_data_pipeline(target_table=table, return_state=True)
    later = enterprise_data_pipeline(target_table=table, return_state=True)
    assert upstream.is_completed() and later.is_completed()
    upstream_id = upstream.state_details.flow_run_id

    first = metrics_quality_report(upstream_flow_run_id=upstream_id, return_state=True)
    assert first.is_completed(), first.message
    assert first.message == f"Reported on 5,844 rows that flow run {upstream_id} loaded"
    (report,) = markdown(first)
    assert f"# Quality of {table}" in report
    assert str(upstream_id) in report
    picture = re.search(r"\(data:image/png;base64,([^)]+)\)", report)
    assert picture
    assert base64.b64decode(picture.group(1)).startswith(b"\x89PNG")

    second = metrics_quality_report(upstream_flow_run_id=upstream_id, return_state=True)
    assert second.is_completed()
    assert "has already reported on flow run" in str(second.message)
    assert markdown(second) == []

    latest = metrics_quality_report(target_table=table, return_state=True)
    assert str(later.state_details.flow_run_id) in str(latest.message)
    assert len(markdown(latest)) == 1


@pytest.mark.parametrize(
    ("metric", "months"), [("wind", 1), ("temp_max", 3)], ids=["first month", "no ratio scale"]
)
def test_months_without_a_change_are_reported(
    any_warehouse: str, tmp_path: Path, metric: str, months: int
) -> None:
    days = pd.date_range("2024-01-01", periods=30 * months).strftime("%Y-%m-%d")
    file = tmp_path / "records.json"
    file.write_text(json.dumps([{"time": day, "metric": metric, "value": 3} for day in days]))
    assert enterprise_data_pipeline(file.as_uri(), return_state=True).is_completed()
    state = metrics_quality_report(return_state=True)
    assert state.is_completed(), state.message
    (report,) = markdown(state)
    assert re.search(rf"\| {metric} \| 2024-0{months} \| 3.00 \S+ \| \S* ?\|  \| 0 \|", report)


def test_without_a_load_the_report_names_the_flow_to_run(duckdb_warehouse: str) -> None:
    state = metrics_quality_report(return_state=True)
    assert state.is_failed()
    assert "no load by any complete flow run in warehouse.prod.metrics_loads" in str(state.message)
    state = metrics_quality_report(upstream_flow_run_id=uuid4(), return_state=True)
    assert state.is_failed()
    assert "There is no flow run" in str(state.message)


@flow(name="breaks")
def breaks() -> None:
    get_run_logger().info("the last words ```")
    raise ValueError("``` # broken on purpose")


def test_a_failed_run_is_reported_with_its_message_log_and_link() -> None:
    failed = breaks(return_state=True)
    run_id = failed.state_details.flow_run_id
    assert run_id
    with get_client(sync_client=True) as client:
        name = client.read_flow_run(run_id).name
        of_the_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
        # Prefect sends logs in the background.
        Retrying(
            retry=retry_if_result(
                lambda logs: not any("last words" in one.message for one in logs)
            ),
            stop=stop_after_delay(60),
            wait=wait_fixed(0.2),
        )(client.read_logs, of_the_run)
    state = failed_run_report(run_id, return_state=True)
    assert state.is_completed()
    (report,) = markdown(state)
    assert f"# Failed: breaks / {name}" in report
    assert f"/runs/flow-run/{run_id})" in report
    message, log = re.findall(r"^````text\n(.*?)\n````$", report, re.DOTALL | re.MULTILINE)
    assert "broken on purpose" in message
    assert "INFO     the last words ```" in log


def test_a_deleted_run_is_reported_in_one_sentence() -> None:
    state = failed_run_report(uuid4(), return_state=True)
    assert state.is_failed()
    assert "it may have been deleted" in str(state.message)
