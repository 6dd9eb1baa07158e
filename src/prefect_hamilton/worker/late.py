"""Skip runs of a schedule that are too late to be of use, such as those of an outage."""

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled

VARIABLE = "PREFECT_HAMILTON_WORKER_SKIP_LATE_AFTER"
"""Environment variable: a whole number of seconds; 0 or absent: every run is taken up."""

SKIPPED = "Skipped"
"""Name of the state. Its type is Cancelled, which is final and neither a success nor a failure."""

UNTOUCHED = ("Scheduled", "Late")
"""Names of states in which a run is that nobody has retried and that no limit has held back."""


def limit() -> timedelta | None:
    """Return how late a run may be; None: any time."""
    seconds = int(os.environ.get(VARIABLE) or 0)
    return timedelta(seconds=seconds) if seconds > 0 else None


def skipped(run: FlowRun, after: timedelta) -> State[Any] | None:
    """Return the state of a run that is skipped; None if it is to be taken up.

    Only a schedule's run is: somebody waits for one that a person or an automation created. One
    that was retried or rescheduled counts from the new time, by the state in which it waits.
    """
    state = run.state
    if state is None or state.type is not StateType.SCHEDULED or state.name not in UNTOUCHED:
        return None
    due = state.state_details.scheduled_time
    if not run.auto_scheduled or due is None:
        return None
    late = datetime.now(UTC) - due
    if late <= after:
        return None
    return Cancelled(
        name=SKIPPED,
        message=f"The run was {_seconds(late)} s late when a worker found it, and the worker skips "
        f"runs that are more than {_seconds(after)} s late.",
    )


def _seconds(time: timedelta) -> int:
    return int(time.total_seconds())
