"""The demo reports "as expected" only for runs that left all expected results."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pandas as pd
import pytest
from prefect.client.schemas.objects import State
from sklearn.linear_model import QuantileRegressor

from flows.absenteeism import absenteeism_prediction_flow
from flows.data_pipeline import enterprise_data_pipeline
from prefect_hamilton.flows.failed_run_report import failed_run_report
from prefect_hamilton.tracking import sdk as tracking_sdk
from prefect_hamilton.warehouse._duckdb import DuckDBWarehouse
from scripts import outcomes
from scripts.demo import Run
from tests.conftest import HamiltonUi

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

TABLE = "warehouse.prod.metrics"
Judge = Callable[[outcomes.Outcome, State], list[str]]


@pytest.fixture
def judge(
    prefect_api: str,
    hamilton_ui: HamiltonUi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Judge]:
    """What is wrong with a run in this process: a real server, Hamilton UI and warehouse."""
    for name, value in hamilton_ui.env.items():
        monkeypatch.setenv(name, value)
    warehouse = f"duckdb:///{tmp_path}/warehouse.duckdb"
    monkeypatch.setenv("WAREHOUSE_URL", warehouse)
    with httpx.Client(base_url=prefect_api, timeout=60) as prefect:

        def judge(outcome: outcomes.Outcome, state: State) -> list[str]:
            run_id = str(state.state_details.flow_run_id)
            with outcomes.opened(warehouse) as query:
                headers = {"x-api-user": hamilton_ui.username}
                evidence = outcomes.Evidence(prefect, query, headers)
                return list(outcome.problems(evidence, run_id))

        yield judge


def test_correct_runs_have_no_problem(judge: Judge) -> None:
    loaded = enterprise_data_pipeline(return_state=True)
    assert loaded.is_completed(), loaded.message
    assert judge(outcomes.Pipeline(TABLE), loaded) == []

    trained = absenteeism_prediction_flow(return_state=True)
    assert trained.is_completed(), trained.message
    assert judge(outcomes.Model(), trained) == []

    reported = failed_run_report(trained.state_details.flow_run_id, return_state=True)
    assert judge(outcomes.Report("failed-run-report", ("Completed",)), reported) == []
    assert judge(outcomes.Report("failed-run-report", ("Failed",)), reported) == [
        "failed-run-report does not contain 'Failed'"
    ]


def test_missing_rows_are_found(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    upsert = DuckDBWarehouse.upsert

    def lose(
        self: DuckDBWarehouse, target: object, rows: list[tuple[object, pd.DataFrame]]
    ) -> None:
        upsert(self, target, [(spec, frame.head(3)) for spec, frame in rows])  # type: ignore[arg-type, misc]

    monkeypatch.setattr(DuckDBWarehouse, "upsert", lose)
    state = enterprise_data_pipeline(batch_size=100_000, return_state=True)

    assert state.is_completed(), state.message
    problems = judge(outcomes.Pipeline(TABLE), state)
    assert f"{TABLE} has 3 rows of the run, expected 5,844" in problems
    assert f"{TABLE}_monthly has 3 rows of the run, expected 192" in problems


def test_rows_of_an_earlier_run_are_not_counted(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert enterprise_data_pipeline(return_state=True).is_completed()
    monkeypatch.setattr(DuckDBWarehouse, "upsert", lambda self, target, rows: None)
    state = enterprise_data_pipeline(return_state=True)

    assert state.is_completed(), state.message
    problems = judge(outcomes.Pipeline(TABLE), state)
    assert f"{TABLE} has 0 rows of the run, expected 5,844" in problems
    expected = {"status": "complete", "rows_written": "5844", "months_written": "192"}
    assert f"the rows of the run in {TABLE}_loads are [], expected [{expected}]" in problems


def test_dataflows_missing_from_the_hamilton_ui_are_found(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no tracking")

    monkeypatch.setattr(tracking_sdk, "Sender", refuse)
    state = enterprise_data_pipeline(return_state=True)

    assert state.is_completed(), state.message
    assert judge(outcomes.Pipeline(TABLE), state) == [
        "the artifact hamilton-run-validate-metrics is missing",
        "the artifact hamilton-run-transform-metrics is missing",
    ]


def test_an_execution_that_did_not_succeed_is_found(judge: Judge, hamilton_ui: HamiltonUi) -> None:
    state = absenteeism_prediction_flow(return_state=True)
    user = {"x-api-user": hamilton_ui.username}
    with httpx.Client(base_url=f"{hamilton_ui.url}/api/v1", headers=user, timeout=60) as hamilton:
        # The latest execution is the one of the last task.
        parameters = {"project_id": hamilton_ui.project_id, "limit": 1}
        (latest,) = hamilton.get("/dag_runs/latest/", params=parameters).raise_for_status().json()
        failure = {"run_status": "FAILURE", "run_end_time": latest["run_end_time"]}
        hamilton.put(f"/dag_runs/{latest['id']}/", json=failure).raise_for_status()

    (problem,) = judge(outcomes.Model(), state)
    assert problem.startswith("its execution in the Hamilton UI is FAILURE: http")


def test_a_model_that_learned_nothing_is_found(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(QuantileRegressor, "predict", lambda self, rows: [100.0] * len(rows))
    state = absenteeism_prediction_flow(return_state=True)

    assert state.is_completed(), state.message
    assert judge(outcomes.Model(), state) == [
        "its verdict is “The model does not beat the baseline.”, "
        "expected “The model beats the baseline.”"
    ]


def test_a_run_with_a_problem_is_not_as_expected() -> None:
    run = Run("model", "flow/deployment", actual_state="Completed", actual_attempts=1)
    assert run.as_expected
    run.problems.append("its verdict is another")
    assert not run.as_expected
