"""Rules about the slots of a deployment's concurrency limit."""

from datetime import UTC, datetime, timedelta
from typing import cast

import sqlalchemy as sa
from packaging.version import Version
from prefect.server.database.orm_models import FlowRun
from prefect.server.orchestration.core_policy import (
    ReleaseFlowConcurrencySlots,
    SecureFlowConcurrencySlots,
    _release_concurrency_lease,
)
from prefect.server.orchestration.dependencies import (
    MIN_CLIENT_VERSION_FOR_CONCURRENCY_LIMIT_LEASING,
)
from prefect.server.orchestration.rules import FlowOrchestrationContext
from prefect.server.schemas.states import Scheduled, State, StateType
from prefect.settings import get_current_settings
from prefect.types import DateTime

WAITING = ("AwaitingRetry", "AwaitingConcurrencySlot")
"""Names of the states in which a run that was rescheduled waits for a worker."""

BETWEEN_TRIES = timedelta(seconds=0.25)
"""How long after one run of a deployment the next tries to get a slot."""

LONGEST_WAIT = timedelta(minutes=5)
"""How long a run waits at most for another try: those before it may be cancelled meanwhile."""


class QueueForDeploymentSlot(SecureFlowConcurrencySlots):
    """Takes a slot of a deployment's concurrency limit; runs that find none wait in one queue.

    Prefect has each of them try again after the same time. When many wait, workers, which get 200
    runs at a time, see only these, and the deployments whose limit is not reached starve.
    """

    async def reject_transition(self, state: State | None, reason: str) -> None:
        """Put a run that is to wait behind those of its deployment that wait already.

        A rescheduled run waits also where new ones are cancelled: it had a slot.
        """
        before = self.context.initial_state
        if state is not None and state.is_cancelled() and before and before.name in WAITING:
            wait = get_current_settings().server.deployments.concurrency_slot_wait_seconds
            due = datetime.now(UTC) + timedelta(seconds=wait)
            state = Scheduled(cast(DateTime, due), name="AwaitingConcurrencySlot")
        if state is not None and state.is_scheduled() and state.state_details.scheduled_time:
            first = state.state_details.scheduled_time
            due = min(await self._after_last(state, first), datetime.now(UTC) + LONGEST_WAIT)
            state.state_details.scheduled_time = cast(DateTime, max(first, due))
        await super().reject_transition(state, reason)

    async def _after_last(self, state: State, first: datetime) -> datetime:
        last: datetime | None = await self.context.session.scalar(
            sa.select(sa.func.max(FlowRun.next_scheduled_start_time)).where(
                FlowRun.deployment_id == self.context.run.deployment_id,
                FlowRun.state_type == StateType.SCHEDULED,
                FlowRun.state_name == state.name,
                FlowRun.id != self.context.run.id,
            )
        )
        return last + BETWEEN_TRIES if last else first


class KeepSlotWhilePaused(ReleaseFlowConcurrencySlots):
    """Gives the slot of a run back when it ends, but not while its process waits in a pause.

    Prefect takes it away at the pause. The process cannot renew it then, and crashes the run.
    """

    async def after_transition(self, context: FlowOrchestrationContext) -> None:  # type: ignore[override]
        """Release the slot if the run no longer needs it."""
        before, after = context.initial_state, context.proposed_state
        if self.nullified_transition() or after is None:
            return
        if waits_in_process(after) and _is_renewed(context):
            return
        if waits_in_process(before) and not (after.is_running() or after.is_cancelling()):
            await give_back(context, before)
        await super().after_transition(context)


def waits_in_process(state: State | None) -> bool:
    """Whether a run is paused, and its process waits until it is resumed."""
    return state is not None and state.is_paused() and not state.state_details.pause_reschedule


def _is_renewed(context: FlowOrchestrationContext) -> bool:
    """Whether the process renews the lease of its slot; clients before 3.4.11 do not."""
    before, version = context.initial_state, context.client_version
    return bool(
        before
        and before.state_details.deployment_concurrency_lease_id
        and version
        and Version(version) >= MIN_CLIENT_VERSION_FOR_CONCURRENCY_LIMIT_LEASING
    )


async def give_back(context: FlowOrchestrationContext, state: State | None) -> None:
    """Release the slot that a run has in a state, if it has one."""
    lease = state and state.state_details.deployment_concurrency_lease_id
    if lease:
        await _release_concurrency_lease(context.session, lease)
