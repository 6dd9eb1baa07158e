"""A flow with retries whose pod is ended runs again in another pod, and keeps its retries."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from prefect_hamilton import _headers
from tests.server.runs import Api

pytestmark = pytest.mark.services


class Waiting:
    """A work pool with a flow run whose flow has one retry, and which runs."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.pool = api.post("/work_pools/", name=f"pool-{uuid4()}", type="kubernetes")["name"]
        flow = api.post("/flows/", name="retries")
        deployment = api.post(
            "/deployments/", name=self.pool, flow_id=flow["id"], work_pool_name=self.pool
        )
        path = f"/deployments/{deployment['id']}/create_flow_run"
        self.run = UUID(api.post(path, state={"type": "SCHEDULED"})["id"])
        self.begin()
        # As Prefect's engine does when the flow begins.
        api.patch(f"/flow_runs/{self.run}", empirical_policy={"retries": 1, "retry_delay": 0})

    def begin(self) -> None:
        """Do what a worker and then the flow's engine do."""
        for state in ("PENDING", "RUNNING"):
            assert self.api.propose(self.run, state) == "ACCEPT"

    def fail(self) -> str:
        """Report a failure of the flow; returns the name of the state that follows."""
        self.api.propose(self.run, "FAILED")
        return self.api.state(self.run)["name"]

    def fail_twice(self) -> None:
        """Use up the one retry, and fail."""
        assert self.fail() == "AwaitingRetry"
        assert self.api.propose(self.run, "RUNNING") == "ACCEPT"
        assert self.fail() == "Failed"

    def reschedule(self) -> None:
        """Do what a pod does at SIGTERM."""
        assert self.api.propose(self.run, "SCHEDULED", name="AwaitingRetry") == "ACCEPT"

    def policy(self) -> Any:
        return self.api.get(f"/flow_runs/{self.run}")["empirical_policy"]

    def taken_up(self) -> bool:
        """Whether a worker is given the run."""
        found = self.api.post(f"/work_pools/{self.pool}/get_scheduled_flow_runs")
        return [each["flow_run"]["id"] for each in found] == [str(self.run)]


@pytest.fixture
def waiting(api: Api) -> Waiting:
    return Waiting(api)


@pytest.mark.parametrize("is_in_delay", [False, True])
def test_a_run_that_its_flow_retried_is_taken_up_by_another_pod(
    waiting: Waiting, is_in_delay: bool
) -> None:
    assert waiting.fail() == "AwaitingRetry"
    assert not waiting.taken_up()  # the pod goes on
    if not is_in_delay:
        assert waiting.api.propose(waiting.run, "RUNNING") == "ACCEPT"

    waiting.reschedule()

    assert waiting.taken_up()


@pytest.mark.parametrize("was", ["PENDING", "RUNNING", "retried"])
def test_what_a_pod_that_was_ended_sends_late_does_not_start_its_run(
    waiting: Waiting, was: str
) -> None:
    """The run would be Running without a pod."""
    if was == "PENDING":
        waiting.reschedule()
        assert waiting.api.propose(waiting.run, "PENDING") == "ACCEPT"
    elif was == "retried":
        assert waiting.fail() == "AwaitingRetry"
    waiting.reschedule()

    assert waiting.api.propose(waiting.run, "RUNNING") == "ABORT"

    assert waiting.taken_up()
    waiting.begin()


def test_a_run_that_was_retried_and_suspended_is_taken_up_when_it_is_resumed(
    waiting: Waiting,
) -> None:
    assert waiting.fail() == "AwaitingRetry"
    assert waiting.api.propose(waiting.run, "RUNNING") == "ACCEPT"
    details = {"pause_reschedule": True, "pause_key": "approval"}
    waiting.api.propose(waiting.run, "PAUSED", name="Suspended", details=details)
    waiting.api.post(f"/flow_runs/{waiting.run}/resume")
    assert waiting.taken_up()


@pytest.mark.parametrize("is_in_delay", [False, True])
def test_a_run_that_was_retried_and_crashed_is_taken_up_when_a_person_retries_it(
    waiting: Waiting, is_in_delay: bool
) -> None:
    """The engine forces Crashed, and the command line and the new UI force Scheduled."""
    assert waiting.fail() == "AwaitingRetry"
    if not is_in_delay:
        assert waiting.api.propose(waiting.run, "RUNNING") == "ACCEPT"
    for state in ("CRASHED", "SCHEDULED"):
        assert waiting.api.propose(waiting.run, state, force=True) == "ACCEPT"
    assert waiting.taken_up()


def test_a_failure_that_a_pod_that_was_ended_reports_late_uses_up_no_retry(
    waiting: Waiting,
) -> None:
    waiting.reschedule()
    assert waiting.fail() == "AwaitingRetry"
    assert waiting.taken_up()


def test_a_failure_that_a_pod_reports_late_is_final_without_retries(waiting: Waiting) -> None:
    waiting.api.patch(f"/flow_runs/{waiting.run}", empirical_policy={"retries": 0})
    waiting.reschedule()
    assert waiting.fail() == "Failed"


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_crash_that_is_noticed_before_its_pod_reschedules_uses_up_no_retry(
    waiting: Waiting, has_begun: bool
) -> None:
    """An observer of the pods may be faster. An attempt that has not begun is no try."""
    if not has_begun:
        waiting.reschedule()
        assert waiting.api.propose(waiting.run, "PENDING") == "ACCEPT"
    assert waiting.api.propose(waiting.run, "CRASHED") == "ACCEPT"
    waiting.reschedule()
    waiting.begin()

    waiting.fail_twice()


def test_a_failure_that_is_reported_again_because_its_answer_was_lost_counts_once(
    waiting: Waiting,
) -> None:
    request = {"transition_id": str(uuid4())}
    for _ in range(2):
        assert waiting.api.propose(waiting.run, "FAILED", details=request) == "REJECT"
    assert waiting.api.states(waiting.run)[-2:] == ["RUNNING", "SCHEDULED"]


@pytest.mark.parametrize("was", ["RUNNING", "PAUSED"])
def test_an_execution_that_was_ended_uses_up_no_retry(waiting: Waiting, was: str) -> None:
    if was == "PAUSED":
        assert waiting.api.propose(waiting.run, was) == "ACCEPT"
    waiting.reschedule()
    waiting.begin()

    waiting.fail_twice()


def test_a_flow_without_retries_has_none_after_it_was_ended(waiting: Waiting) -> None:
    waiting.api.patch(f"/flow_runs/{waiting.run}", empirical_policy={"retries": 0})
    waiting.reschedule()
    waiting.begin()
    assert waiting.fail() == "Failed"


def test_a_refused_proposal_changes_nothing(waiting: Waiting) -> None:
    assert waiting.fail() == "AwaitingRetry"
    before = waiting.policy()
    refused = {_headers.EXPECTED_STATE: str(uuid4())}
    assert waiting.api.propose(waiting.run, "SCHEDULED", **refused) == "ABORT"
    assert waiting.policy() == before
