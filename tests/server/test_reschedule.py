"""A flow pod that receives SIGTERM while its flow ends never starts the flow run again."""

import asyncio
from collections.abc import Callable
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_hamilton.flow_pod.launcher import reschedule
from tests import services
from tests.server.runs import Api

pytestmark = pytest.mark.services


@pytest.fixture
def run(api: Api) -> UUID:
    """A flow run of a deployment, which can be rescheduled, while it is running."""
    flow = api.post("/flows/", name="ends")
    deployment = api.post("/deployments/", name="ends", flow_id=flow["id"])
    scheduled = {"type": "SCHEDULED"}
    path = f"/deployments/{deployment['id']}/create_flow_run"
    run = UUID(api.post(path, state=scheduled)["id"])
    for state in ("PENDING", "RUNNING"):
        assert api.propose(run, state) == "ACCEPT"
    return run


def reschedule_after(server: services.Service, run: UUID, act: Callable[[], object]) -> None:
    """Reschedule the run; `act` happens once, between the reading of its state and the proposal."""
    reads = 0

    async def on_response(response: httpx.Response) -> None:
        nonlocal reads
        if response.request.method == "GET" and str(run) in response.request.url.path:
            reads += 1
            if reads == 1:
                act()

    async def reschedule_with_hook() -> None:
        hooks = {"response": [on_response]}
        async with get_client(httpx_settings={"event_hooks": hooks}) as client:
            assert await reschedule(client, run)

    with temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
        asyncio.run(reschedule_with_hook())


@pytest.mark.parametrize("end", ["COMPLETED", "FAILED", "CANCELLED"])
def test_a_run_that_ends_at_this_moment_keeps_its_state(
    own_server: services.Service, api: Api, run: UUID, end: str
) -> None:
    reschedule_after(own_server, run, lambda: api.propose(run, end))
    assert api.states(run)[-1] == end


@pytest.mark.parametrize("moved_on", ["RUNNING", "CRASHED"])
def test_a_run_that_has_not_earned_an_end_is_rescheduled(
    own_server: services.Service, api: Api, run: UUID, moved_on: str
) -> None:
    # A run that its flow retries is Running again; an observer may have seen the end of the pod.
    def act() -> None:
        if moved_on == "RUNNING":
            api.patch(f"/flow_runs/{run}", empirical_policy={"retries": 1, "retry_delay": 0})
            assert api.propose(run, "FAILED") == "REJECT"
        assert api.propose(run, moved_on) == "ACCEPT"

    reschedule_after(own_server, run, act)
    state = api.state(run)
    assert (state["type"], state["name"]) == ("SCHEDULED", "AwaitingRetry")


@pytest.mark.parametrize("at_once", [False, True])
def test_a_run_that_is_suspended_waits_for_its_resumption(
    own_server: services.Service, api: Api, run: UUID, at_once: bool
) -> None:
    """Its process may still be ending. The run would go on as if somebody had resumed it."""

    def suspend() -> None:
        details = {"pause_reschedule": True, "pause_key": "approval"}
        assert api.propose(run, "PAUSED", name="Suspended", details=details) == "ACCEPT"

    if not at_once:
        suspend()
    reschedule_after(own_server, run, suspend if at_once else lambda: None)
    assert api.state(run)["name"] == "Suspended"


def test_a_run_that_waits_in_its_process_is_rescheduled(
    own_server: services.Service, api: Api, run: UUID
) -> None:
    assert api.propose(run, "PAUSED", name="Paused") == "ACCEPT"
    reschedule_after(own_server, run, lambda: None)
    assert api.state(run)["name"] == "AwaitingRetry"
