"""A late or repeated proposal never starts a flow run a second time."""

import json
import socket
from contextlib import closing
from uuid import UUID, uuid4

import pytest

from prefect_hamilton import _headers
from prefect_hamilton.states import CLAIM
from tests import services
from tests.server.runs import FINAL, Api

pytestmark = pytest.mark.services


@pytest.mark.parametrize("final", FINAL)
def test_pending_that_arrives_after_the_end_changes_nothing(api: Api, final: str) -> None:
    run = api.new_run()
    for state in ("PENDING", "RUNNING", final):
        assert api.propose(run, state) == "ACCEPT"

    assert api.propose(run, "PENDING") == "ABORT"

    assert api.states(run) == ["SCHEDULED", "PENDING", "RUNNING", final]


def test_a_run_that_is_scheduled_again_can_be_pending(api: Api) -> None:
    run = api.new_run()
    for state in ("PENDING", "RUNNING", "CRASHED"):
        api.propose(run, state)
    # A run of no deployment can only be rescheduled from a state that is not final.
    again = api.new_run()
    for state in ("PENDING", "RUNNING", "SCHEDULED", "PENDING"):
        assert api.propose(again, state) == "ACCEPT"


def test_a_state_proposal_is_refused_if_the_run_has_moved_on(api: Api) -> None:
    run = api.new_run()
    seen = {_headers.EXPECTED_STATE: api.state(run)["id"]}
    for state in ("PENDING", "RUNNING", "SCHEDULED"):
        assert api.propose(run, state) == "ACCEPT"

    assert api.propose(run, "PENDING", **seen) == "ABORT"

    now = {_headers.EXPECTED_STATE: api.state(run)["id"]}
    assert api.propose(run, "PENDING", **now) == "ACCEPT"


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("late", ["RUNNING", "SCHEDULED", *FINAL])
def test_what_a_pod_reports_after_its_run_was_taken_up_again_changes_nothing(
    api: Api, late: str, force: bool
) -> None:
    run = api.new_run()
    api.propose(run, "PENDING")
    earlier = attempt_at(run, api.state(run)["id"])
    for state in ("RUNNING", "SCHEDULED", "PENDING"):
        assert api.propose(run, state, **earlier) == "ACCEPT"
    latest = attempt_at(run, api.state(run)["id"])
    api.propose(run, "PENDING", name="InfrastructurePending")
    begin(api, run)

    assert api.propose(run, late, force=force, **earlier) == "ABORT"

    assert api.states(run) == ["SCHEDULED", "PENDING", "RUNNING", "SCHEDULED", *["PENDING"] * 2]
    for state in ("RUNNING", late):
        assert api.propose(run, state, **latest) in ("ACCEPT", "REJECT")


def test_a_flow_that_has_completed_is_not_begun_again(api: Api) -> None:
    """Its pod was ended, and reports it after another worker has taken the run up."""
    run = api.new_run()
    api.propose(run, "PENDING")
    earlier = attempt_at(run, api.state(run)["id"])
    for state in ("RUNNING", "SCHEDULED", "PENDING"):
        assert api.propose(run, state, **earlier) == "ACCEPT"
    for state in ("FAILED", "CRASHED"):
        assert api.propose(run, state, **earlier) == "ABORT"

    assert api.propose(run, "COMPLETED", **earlier) == "ACCEPT"


def begin(api: Api, run: UUID) -> None:
    """Do what a pod does before it begins the flow."""
    taken_up = next(s for s in reversed(api.all_states(run)) if s["name"] == "Pending")
    body = {"key": f"{CLAIM}{taken_up['id']}", "value": "a pod"}
    api.post(f"/flow_runs/{run}/input", **body)


def test_an_attempt_at_one_run_says_nothing_about_another(api: Api) -> None:
    """A subflow, or a run that the flow cancels."""
    other = attempt_at(api.new_run(), str(uuid4()))
    run = api.new_run()
    for state in ("PENDING", "RUNNING", "COMPLETED"):
        assert api.propose(run, state, **other) == "ACCEPT"


def attempt_at(run: UUID, taken_up: str) -> dict[str, str]:
    """The header of a pod."""
    return {_headers.ATTEMPT: f"{run}:{taken_up}"}


def test_a_request_whose_client_disconnected_changes_nothing(
    own_server: services.Service, api: Api
) -> None:
    """The server is stopped, a worker asks and gives up; the server goes on."""
    run = api.new_run()
    body = json.dumps({"state": {"type": "PENDING"}}).encode()
    head = [
        f"POST /api/flow_runs/{run}/set_state HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"{_headers.EXPECTED_STATE}: {api.state(run)['id']}",
    ]
    own_server.freeze()
    try:
        with closing(socket.create_connection(("127.0.0.1", own_server.port))) as worker:
            worker.sendall("\r\n".join([*head, "", ""]).encode() + body)
    finally:
        own_server.thaw()

    assert api.propose(run, "PENDING") == "ACCEPT"
    assert api.states(run) == ["SCHEDULED", "PENDING"]
