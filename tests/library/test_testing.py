"""`prefect_hamilton.testing`: what a team's own tests use."""

import os
from typing import Any

import pytest
from prefect import flow, task
from prefect.states import Completed

from prefect_hamilton import dataflow, testing
from tests.library import totals


@task
def compute() -> dataflow.Run:
    return dataflow.execute(totals, "total", inputs={"x": 2})


@flow
def shop() -> Any:
    return compute()


def test_the_inputs_of_a_dataflow_are_listed_without_executing_it() -> None:
    assert testing.inputs_of(totals, ["checked"]) == {"x": int}
    assert testing.inputs_of(totals, ["total"]) == {"x": int, "discount": int}
    assert testing.inputs_of(totals, ["total"], config={"discount": 1}) == {"x": int}
    with pytest.raises(ValueError, match="profit"):
        testing.inputs_of(totals, ["profit"])


def test_a_state_of_no_flow_run_is_refused() -> None:
    with pytest.raises(ValueError, match="call the flow with return_state=True"):
        testing.artifacts(Completed())


@pytest.mark.services
def test_a_flow_runs_in_the_harness_without_a_hamilton_ui(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAMILTON_UI_USERNAME", "me")
    monkeypatch.setenv("HAMILTON_UI_PROJECT_ID", "1")
    monkeypatch.setenv("HAMILTON_API_URL", "http://127.0.0.1:1")
    with testing.prefect_harness():
        state = shop(return_state=True)
        assert state.result()["total"] == 6
        assert set(testing.artifacts(state)) == {"hamilton-dag-compute"}
    assert os.environ["HAMILTON_UI_USERNAME"] == "me"
