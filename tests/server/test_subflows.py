"""Subflows end with the flow run in whose process they ran."""

from uuid import UUID

import pytest

from tests.server.runs import Api

pytestmark = pytest.mark.services


def child_of(api: Api, parent: UUID, deployment: str | None = None) -> UUID:
    """A run that a flow has called, or started by its deployment; it is running."""
    task_run = api.post("/task_runs/", flow_run_id=str(parent), task_key="sub", dynamic_key="0")
    flow = api.post("/flows/", name="sub")
    run = api.post(
        "/flow_runs/",
        flow_id=flow["id"],
        parent_task_run_id=task_run["id"],
        deployment_id=deployment,
        state={"type": "PENDING"},
    )
    assert api.propose(UUID(run["id"]), "RUNNING") == "ACCEPT"
    return UUID(run["id"])


def parent_of(api: Api) -> UUID:
    run = api.new_run()
    for state in ("PENDING", "RUNNING"):
        assert api.propose(run, state) == "ACCEPT"
    return run


@pytest.mark.parametrize("end", ["CRASHED", "CANCELLED"])
def test_subflows_end_with_a_run_that_crashed_or_was_cancelled(api: Api, end: str) -> None:
    parent = parent_of(api)
    name = api.get(f"/flow_runs/{parent}")["name"]
    child = child_of(api, parent)
    grandchild = child_of(api, child)

    assert api.propose(parent, end) == "ACCEPT"

    for run in (child, grandchild):
        assert api.states(run) == ["PENDING", "RUNNING", end]
    assert api.state(child)["message"] == f"Its parent '{name}' is {end.title()}."
    # So that a parent that runs again calls the subflow anew.
    task_run = api.get(f"/flow_runs/{child}")["parent_task_run_id"]
    assert api.get(f"/task_runs/{task_run}")["state_type"] == end


@pytest.mark.parametrize("end", ["COMPLETED", "FAILED", "SCHEDULED"])
def test_subflows_outlast_a_run_that_reports_its_end_or_runs_again(api: Api, end: str) -> None:
    parent = parent_of(api)
    child = child_of(api, parent)

    assert api.propose(parent, end) == "ACCEPT"

    assert api.state(child)["type"] == "RUNNING"


def test_ended_subflows_and_runs_of_deployments_are_left_alone(api: Api) -> None:
    parent = parent_of(api)
    flow = api.post("/flows/", name="sub")
    deployment = api.post("/deployments/", name="own", flow_id=flow["id"])["id"]
    with_own_pod = child_of(api, parent, deployment)
    ended = child_of(api, parent)
    api.propose(ended, "COMPLETED")

    assert api.propose(parent, "CRASHED") == "ACCEPT"

    assert api.state(with_own_pod)["type"] == "RUNNING"
    assert api.state(ended)["type"] == "COMPLETED"
