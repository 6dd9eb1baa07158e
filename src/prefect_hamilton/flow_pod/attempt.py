"""Whether a flow run still waits for this pod.

A worker takes a run up by setting it to Pending, and starts a pod for it. A delayed request of a
worker may reach the server long after another worker has taken the run up, and Prefect's server
accepts it even after a final state. A worker may also start a second pod if it got no response
about the first.
"""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State
from prefect.settings import get_current_settings

from prefect_hamilton import _headers
from prefect_hamilton.states import GIVEN_UP, NO_ANSWER, beginning, claim_attempt, restore

VARIABLE = "PREFECT__FLOW_RUN_ATTEMPT"
"""Variable of a process that executes a flow run: the run's id, a colon, and the attempt."""

HEADERS = "PREFECT_CLIENT_CUSTOM_HEADERS"


class NotWaitedForError(Exception):
    """The flow run does not wait for this pod; the message gives the reason."""

    def __init__(self, why: str, exit_code: int) -> None:
        super().__init__(why)
        self.exit_code = exit_code


async def take_up(client: PrefectClient, flow_run_id: UUID, *, is_only_pod: bool) -> UUID | None:
    """Return the attempt if this pod must run the flow; otherwise raise NotWaitedForError.

    `is_only_pod` says that the pod's Job starts no other for the same attempt. None: no worker has
    taken the run up. A pod that does not know its attempt, from a worker that did not name it,
    takes the latest one.
    """
    states = await client.read_flow_run_states(flow_run_id)
    if (earned := earned_state(states)) is not None:
        if states[-1].id != earned.id:
            await restore(client, flow_run_id, earned)
        raise NotWaitedForError(f"it has already ended, in state {earned.name!r}", exit_code=0)
    if (began := beginning(states)) is None:
        return None
    latest = states[began].id
    if is_superseded(states):
        raise NotWaitedForError("it was taken up again, for another pod", exit_code=0)
    if not is_only_pod:
        return latest
    if states[-1].is_scheduled():
        raise NotWaitedForError("it was scheduled again and waits for a worker", exit_code=0)
    pod = f"{socket.gethostname()}-{os.getpid()}-{uuid4()}"
    owner = await claim_attempt(client, flow_run_id, latest, pod)
    if owner == GIVEN_UP:
        raise NotWaitedForError("its worker schedules it again", exit_code=NO_ANSWER)
    if owner != pod:
        # Not 0: a Job that succeeded would hide the end of the one that runs the flow.
        raise NotWaitedForError("another pod has taken it up", exit_code=1)
    return latest


def is_superseded(states: Sequence[State[Any]]) -> bool:
    """Whether the run was taken up again after the attempt of this process, by all its states."""
    _, _, own = os.environ.get(VARIABLE, "").partition(":")
    began = beginning(states)
    return bool(own) and began is not None and str(states[began].id) != own


def variables(flow_run_id: UUID, attempt: UUID) -> dict[str, str]:
    """Return the environment that says which attempt a process belongs to."""
    return {VARIABLE: f"{flow_run_id}:{attempt}"}


def name_in_requests() -> None:
    """Have this process's clients of Prefect say in each request which attempt they belong to.

    The server then refuses states that arrive when the run has been taken up again.
    """
    if attempt := os.environ.get(VARIABLE):
        # As a variable it would cost each flow run 50 ms, since all settings would be read again.
        get_current_settings().client.custom_headers[_headers.ATTEMPT] = attempt


def settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the setting of Prefect that does the same, for an interpreter without this package."""
    try:
        headers = dict(json.loads(environment.get(HEADERS) or "{}"))
    except (TypeError, ValueError):  # of which Prefect will complain
        return {}
    if attempt := environment.get(VARIABLE):
        headers[_headers.ATTEMPT] = attempt
    return {HEADERS: json.dumps(headers)} if headers else {}


def earned_state(states: Sequence[State[Any]]) -> State[Any] | None:
    """Return the final state that stands, if the run has ended and was not scheduled again.

    A crash of the latest attempt does not count: an observer of the pods may have seen the end of
    an earlier one, or Kubernetes may retry the pod.
    """
    began = beginning(states) or 0
    for position, state in reversed(list(enumerate(states))):
        if state.is_pending() or (state.is_crashed() and position > began):
            continue
        return state if state.is_final() else None
    return None
