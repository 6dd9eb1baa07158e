"""States of flow runs: functions that Prefect's client lacks.

`propose` is accepted only while the run is in the state that its sender saw. A request can arrive
long after it was sent: its sender was stopped, or the network was. A header names the state that
the sender saw; this project's server refuses the proposal when the run has moved on. Another
Prefect server does not know the header and decides by its own rules.
"""

import os
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import AwaitingRetry, to_state_create
from prefect.types import DateTime

from prefect_hamilton import _headers

TAKEN_UP = "Pending"
"""Name of the state with which a worker takes a run up; its id identifies the attempt."""

CLAIM = "flow-pod-"
"""Prefix of the flow run's input that says who has an attempt at it."""

GIVEN_UP = "given-up"
"""Claimant of an attempt that a worker reschedules: a pod that starts later must not execute it."""

CONFLICT = 409

NO_ANSWER = os.EX_UNAVAILABLE
"""Exit code of a pod that ended before its flow started because the Prefect API did not answer."""

NOT_RESCHEDULED = os.EX_TEMPFAIL
"""Exit code of a pod that was ended by SIGTERM while the Prefect API did not answer.

The Job of a flow pod has a rule for it, so that it says this after its pod is gone.
"""


def rescheduled(message: str | None = None, due: DateTime | None = None) -> State[Any]:
    """Return a state AwaitingRetry that is due at once, by the clock of the server.

    The clock of this node may differ. `due` is when the run was due before: with it, the run keeps
    its place among those that wait.
    """
    state: State[Any] = AwaitingRetry(message=message)
    state.state_details.scheduled_time = due  # Without it, the server fills in its own time.
    return state


def beginning(states: Sequence[State[Any]]) -> int | None:
    """Return the position of the state with which a worker last took the run up.

    What follows under another name, such as InfrastructurePending, belongs to the same attempt.
    """
    taken_up = (i for i in reversed(range(len(states))) if states[i].name == TAKEN_UP)
    return next(taken_up, None)


def due_before(states: Sequence[State[Any]]) -> DateTime | None:
    """Return when the run was due that a worker took up last; None if no state says it."""
    scheduled = (state for state in reversed(states[: beginning(states)]) if state.is_scheduled())
    return next((state.state_details.scheduled_time for state in scheduled), None)


async def propose(
    client: PrefectClient, flow_run_id: UUID, state: State[Any], expected: UUID, **options: Any
) -> OrchestrationResult[Any]:
    """Propose a state for a run that is in the state `expected`; returns the server's answer.

    The client repeats the request under one transition id, that of the state if it has one, so
    that the server counts it once. `options` are those of an HTTP request.
    """
    proposed = to_state_create(state)
    proposed.state_details.flow_run_id = flow_run_id
    proposed.state_details.transition_id = state.state_details.transition_id or uuid4()
    response = await client.request(
        "POST",
        "/flow_runs/{id}/set_state",
        path_params={"id": flow_run_id},
        json={"state": proposed.model_dump(mode="json", serialize_as_any=True), "force": False},
        headers={_headers.EXPECTED_STATE: str(expected)},
        **options,
    )
    return OrchestrationResult[Any].model_validate(response.json())


async def claim_attempt(
    client: PrefectClient, flow_run_id: UUID, attempt: UUID, claimant: str
) -> str:
    """Return who has an attempt at the run: its pod, or `GIVEN_UP` if a worker did.

    The server keeps one input per name and flow run: that of the first claimant.
    """
    key = f"{CLAIM}{attempt}"
    try:
        await client.create_flow_run_input(flow_run_id, key=key, value=claimant)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != CONFLICT:
            raise
        # It may be the claimant's own, of a request whose answer was lost.
        return str(await client.read_flow_run_input(flow_run_id, key=key))
    return claimant


async def restore(client: PrefectClient, flow_run_id: UUID, earned: State[Any]) -> None:
    """Set a state again, with its message and the reference to its result.

    `set_flow_run_state` would drop the reference.
    """
    state = earned.model_dump(mode="json", include={"type", "name", "message", "data"})
    details = earned.state_details.model_dump(
        mode="json", exclude={"transition_id", "deployment_concurrency_lease_id"}
    )
    state["state_details"] = details | {"transition_id": str(uuid4())}
    await client.request(
        "POST",
        "/flow_runs/{id}/set_state",
        path_params={"id": flow_run_id},
        json={"state": state, "force": True},
    )
