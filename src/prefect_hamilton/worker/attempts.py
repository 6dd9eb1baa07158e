"""Attempts at a flow run: each begins when a worker takes the run up by setting Pending.

The id of that state identifies the attempt. A Job carries it as a label, so that an attempt is not
judged by the Job of an earlier one.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State

from prefect_hamilton.flow_pod import attempt as of_pod
from prefect_hamilton.states import beginning

ATTEMPT_LABEL = "prefect-hamilton/attempt"
"""Label of a Job: the attempt for which it was created."""


def latest(states: Sequence[State[Any]]) -> UUID | None:
    """Return the attempt that a run is in, from all its states, the first one first."""
    began = beginning(states)
    return None if began is None else states[began].id


def before(states: Sequence[State[Any]], attempt: UUID) -> UUID | None:
    """Return the attempt before this one; None if this is the first."""
    began = _position(states, attempt)
    return None if began is None else latest(states[:began])


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


def waits_in_a_row(states: Sequence[State[Any]], why: str) -> int:
    """Count how often a run has been rescheduled since its flow last ran or the run was created.

    `why` is how the message of these states begins.
    """
    count = 0
    for state in reversed(states):
        if not (state.is_pending() or state.is_scheduled()):
            break
        count += state.is_scheduled() and (state.message or "").startswith(why)
    return count


def _position(states: Sequence[State[Any]], attempt: UUID) -> int | None:
    return next((i for i, state in enumerate(states) if state.id == attempt), None)


def of_job(labels: Mapping[str, str]) -> str | None:
    """Return the attempt that a Job with these labels was made for."""
    return labels.get(ATTEMPT_LABEL)


def mark(job_manifest: dict[str, Any], flow_run_id: UUID, attempt: UUID) -> None:
    """Set a Job's label, and a name that makes a second Job of the same attempt impossible.

    The pod gets a variable with which it knows its attempt.
    """
    variables = of_pod.variables(flow_run_id, attempt)
    container = job_manifest["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [
        *container.get("env", []),
        *({"name": name, "value": value} for name, value in variables.items()),
    ]
    metadata = job_manifest["metadata"]
    metadata.setdefault("labels", {})[ATTEMPT_LABEL] = str(attempt)
    if prefix := metadata.pop("generateName", None):
        # An id of Prefect begins with the time; its end is random.
        metadata.setdefault("name", f"{prefix[:54]}{attempt.hex[-8:]}")
