"""Attempts at a flow run: each begins with the Pending of the worker that takes the run up.

The id of that state names the attempt. A Job carries it, so that nobody judges an attempt by the
Job of an earlier one.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State

ATTEMPT_LABEL = "prefect-hamilton/attempt"
"""Label of a Job: the attempt that it was made for."""


def latest(states: Sequence[State[Any]]) -> UUID | None:
    """Return the attempt that a run is in, from all its states, the first one first."""
    return next((state.id for state in reversed(states) if state.name == "Pending"), None)


def is_waited_for(states: Sequence[State[Any]], attempt: UUID) -> bool:
    """Whether the run waits for a Job of the attempt."""
    began = _position(states, attempt)
    return (
        began is not None
        and latest(states) == attempt
        and all(state.is_pending() for state in states[began:])
        and ended_before(states, attempt) is None
    )


def ended_before(states: Sequence[State[Any]], attempt: UUID) -> State[Any] | None:
    """Return the final state that an attempt must not have followed, if it did."""
    began = _position(states, attempt)
    if not began or not states[began - 1].is_final():
        return None
    return states[began - 1]


def _position(states: Sequence[State[Any]], attempt: UUID) -> int | None:
    return next((i for i, state in enumerate(states) if state.id == attempt), None)


async def restore(client: PrefectClient, flow_run_id: UUID, earned: State[Any]) -> None:
    """Set a final state once more, with the reference to its result.

    `set_flow_run_state` would drop the reference.
    """
    state = earned.model_dump(mode="json", include={"type", "name", "message", "data"})
    await client.request(
        "POST",
        "/flow_runs/{id}/set_state",
        path_params={"id": flow_run_id},
        json={"state": state, "force": True},
    )


def mark(job_manifest: dict[str, Any], attempt: UUID) -> None:
    """Give a Job its attempt, and a name that no second Job of the attempt can have."""
    metadata = job_manifest["metadata"]
    metadata.setdefault("labels", {})[ATTEMPT_LABEL] = str(attempt)
    if prefix := metadata.pop("generateName", None):
        metadata.setdefault("name", f"{prefix[:54]}{attempt.hex[:8]}")
