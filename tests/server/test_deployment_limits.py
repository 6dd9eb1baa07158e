"""Flow runs that wait for the concurrency limit of their deployment, in one queue."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID, uuid4

import pytest

from tests.server.runs import Api

pytestmark = pytest.mark.services


class Limited:
    """A deployment whose only slot is taken."""

    def __init__(self, api: Api, name: str) -> None:
        self.api = api
        flow = api.post("/flows/", name=name)
        deployment = api.post("/deployments/", name=name, flow_id=flow["id"], concurrency_limit=1)
        self.run = {"flow_id": flow["id"], "deployment_id": deployment["id"]}
        assert api.propose(self.new_run(), "PENDING") == "ACCEPT"

    def new_run(self) -> UUID:
        run = self.api.post("/flow_runs/", **self.run, state={"type": "SCHEDULED"})
        return UUID(run["id"])

    def refused(self) -> datetime:
        """Return when a run, which finds no slot, is due again."""
        run = self.new_run()
        assert self.api.propose(run, "PENDING") == "REJECT"
        assert self.api.state(run)["name"] == "AwaitingConcurrencySlot"
        due = self.api.get(f"/flow_runs/{run}")["next_scheduled_start_time"]
        return datetime.fromisoformat(due)


@pytest.fixture
def limited(api: Api) -> Limited:
    return Limited(api, str(uuid4()))


def test_runs_that_wait_for_a_slot_are_due_one_after_the_other(limited: Limited) -> None:
    """A poll returns 200 runs: those of one deployment leave room for others."""
    began = datetime.now(UTC)
    dues = [limited.refused() for _ in range(5)]
    assert dues[0] >= began + timedelta(seconds=30)
    for before, after in pairwise(dues):
        assert after - before >= timedelta(seconds=0.25)


def test_a_run_waits_for_five_minutes_at_most(limited: Limited) -> None:
    last = limited.new_run()
    state = {"name": "AwaitingConcurrencySlot", "type": "SCHEDULED"}
    far = datetime.now(UTC) + timedelta(hours=1)
    details = {"scheduled_time": far.isoformat()}
    limited.api.post(f"/flow_runs/{last}/set_state", state={**state, "state_details": details})

    due = limited.refused()

    assert due <= datetime.now(UTC) + timedelta(minutes=5)
    assert due >= datetime.now(UTC) + timedelta(minutes=4)


def test_runs_of_another_deployment_do_not_lengthen_the_wait(api: Api, limited: Limited) -> None:
    for _ in range(3):
        limited.refused()
    other = Limited(api, str(uuid4()))

    before = datetime.now(UTC)
    due = other.refused()

    assert before <= due - timedelta(seconds=30) <= datetime.now(UTC)
