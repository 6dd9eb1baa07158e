"""Pictures and artifacts of a run can fail without failing or repeating its work."""

from typing import Any

import httpx
import pytest
from matplotlib.figure import Figure
from prefect import State
from prefect.client.orchestration._artifacts.client import ArtifactClient

from flows import tables
from flows.absenteeism import Evaluation, absenteeism_prediction_flow
from flows.data_pipeline import enterprise_data_pipeline
from flows.metrics_report import metrics_quality_report
from flows.pipeline_report import LoadSummary
from prefect_hamilton import graphs, warehouse
from tests.flows.test_data_pipeline import artifacts, read, run_id
from tests.flows.test_reports import markdown

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_api")]


@pytest.fixture
def no_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API takes no artifact."""

    def refuse(*_: Any, **__: Any) -> None:
        raise httpx.ReadTimeout("artifacts are not stored")

    monkeypatch.setattr(ArtifactClient, "create_artifact", refuse)
    monkeypatch.setattr(ArtifactClient, "update_artifact", refuse)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphviz ends with an error."""
    monkeypatch.setattr(graphs, "_DRAW", "raise SystemExit('no layout')")


def load() -> State[Any]:
    return enterprise_data_pipeline(return_state=True)


def loads(url: str) -> list[tuple[str, int]]:
    found = read(url, "loads")
    return list(found[["status", "rows_written"]].itertuples(index=False, name=None))


@pytest.mark.usefixtures("no_artifacts")
def test_a_load_without_artifacts_is_complete_and_not_repeated(
    duckdb_warehouse: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = load()
    assert isinstance(state.result(raise_on_failure=False), LoadSummary), state.message
    assert loads(duckdb_warehouse) == [("complete", 5844)]
    assert "Retry" not in caplog.text
    assert "The run continues without its progress (ReadTimeout: artifacts are not" in caplog.text
    assert caplog.text.count("The run continues without a table artifact") == 1
    assert caplog.text.count("The run continues without a picture of the dataflow") == 2


@pytest.mark.usefixtures("no_pictures")
def test_a_load_without_pictures_is_complete(
    duckdb_warehouse: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = load()
    assert state.is_completed(), state.message
    assert loads(duckdb_warehouse) == [("complete", 5844)]
    assert caplog.text.count("without a picture of the dataflow (RuntimeError: Graphviz") == 2
    assert "pipeline-summary" in artifacts(run_id(state))


def test_progress_that_cannot_be_updated_repeats_nothing(
    duckdb_warehouse: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise httpx.ReadTimeout("artifacts are not stored")

    monkeypatch.setattr(ArtifactClient, "update_artifact", refuse)
    state = load()
    assert state.is_completed(), state.message
    assert loads(duckdb_warehouse) == [("complete", 5844)]
    assert "Retry" not in caplog.text
    assert "The run continues without an update of its progress" in caplog.text


def test_a_report_says_that_its_plot_is_missing(
    duckdb_warehouse: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room for a plot")

    assert load().is_completed()
    monkeypatch.setattr(Figure, "savefig", fail)
    state = metrics_quality_report(return_state=True)
    assert state.is_completed(), state.message
    (report,) = markdown(state)
    assert "The plot could not be drawn" in report
    assert "## Latest month" in report
    assert "The run continues without the plot (MemoryError: no room for a plot)" in caplog.text


@pytest.mark.usefixtures("no_artifacts", "no_pictures")
def test_a_model_without_artifacts_is_evaluated(caplog: pytest.LogCaptureFixture) -> None:
    state = absenteeism_prediction_flow(return_state=True)
    assert isinstance(state.result(raise_on_failure=False), Evaluation), state.message
    assert "Retry" not in caplog.text
    assert "The run continues without a markdown artifact" in caplog.text


@pytest.mark.usefixtures("no_artifacts")
def test_a_report_that_cannot_be_published_fails_and_is_not_recorded(
    duckdb_warehouse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load().is_completed()
    monkeypatch.setattr("flows.metrics_report.publish_report.retries", 0)
    state = metrics_quality_report(return_state=True)
    assert state.is_failed()
    with warehouse.connect(duckdb_warehouse) as connection:
        target = warehouse.Target.parse("warehouse.prod.metrics")
        reports = connection.read(f"SELECT * FROM {target.name(tables.REPORTS)}")  # noqa: S608
    assert reports.empty
