"""The walkthrough's two runs: one succeeds after a retry, one exhausts its retries."""

import time
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State

from flows import retries_demo

pytestmark = pytest.mark.usefixtures("prefect_api")


def _task_runs(state: State[Any]) -> dict[str, tuple[str, int]]:
    """State and number of attempts of each task, from the server."""
    run_id = state.state_details.flow_run_id
    assert isinstance(run_id, UUID)
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        )
    return {run.name.rpartition("-")[0]: (run.state_name or "", run.run_count) for run in runs}


@pytest.mark.parametrize(
    ("should_fail", "outcome", "expected"),
    [
        (False, None, {"flaky_transform": ("Completed", 2), "optional_failure": ("Completed", 1)}),
        (
            True,
            "Retries exhausted: flaky_transform, optional_failure",
            {"flaky_transform": ("Failed", 3), "optional_failure": ("Failed", 2)},
        ),
    ],
)
def test_retries(
    should_fail: bool, outcome: str | None, expected: dict[str, tuple[str, int]]
) -> None:
    state = retries_demo.ui_walkthrough_retries(should_fail, return_state=True)

    assert state.is_failed() is should_fail
    assert state.message == outcome
    # The server takes task runs from events, a little after the flow run has ended.
    for _ in range(100):
        if _task_runs(state) == expected:
            break
        time.sleep(0.1)
    assert _task_runs(state) == expected


def test_retries_are_a_second_apart() -> None:
    assert retries_demo.flaky_transform.retries == 2
    assert retries_demo.flaky_transform.retry_delay_seconds == 1
    assert retries_demo.optional_failure.retries == 1
    assert retries_demo.optional_failure.retry_delay_seconds == 1


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert retries_demo.main([]) == 0
    assert "flaky_transform succeeded at attempt 2" in capsys.readouterr().out
