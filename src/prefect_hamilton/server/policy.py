"""Rules about the states of flow runs, in addition to those of Prefect's server."""

import asyncio
from typing import Annotated, Any
from uuid import UUID

import sqlalchemy as sa
from fastapi import Header, HTTPException, Request
from prefect.server.database.orm_models import FlowRun, FlowRunInput, FlowRunState, TaskRun
from prefect.server.models import flow_runs
from prefect.server.orchestration.core_policy import (
    CoreFlowPolicy,
    MinimalFlowPolicy,
    PreventDuplicateTransitions,
    PreventPendingTransitions,
    ReleaseFlowConcurrencySlots,
    RetryFailedFlows,
    SecureFlowConcurrencySlots,
    WaitForScheduledTime,
)
from prefect.server.orchestration.dependencies import ORCHESTRATION_DEPENDENCIES
from prefect.server.orchestration.rules import (
    ALL_ORCHESTRATION_STATES,
    FlowOrchestrationContext,
    FlowRunOrchestrationRule,
)
from prefect.server.schemas.states import TERMINAL_STATES, State, StateType

from prefect_hamilton import _headers
from prefect_hamilton.server.deployment_slots import KeepSlotWhilePaused, QueueForDeploymentSlot
from prefect_hamilton.server.refusals import Refusal
from prefect_hamilton.server.rescheduled import (
    EndRetryInProcess,
    PreventLateFailure,
    PreventRunningUntilTakenUp,
    RecognizeRepeatedFailure,
    RescheduleForAnotherPod,
)
from prefect_hamilton.states import CLAIM, TAKEN_UP

EXPECTED_STATE = "expected-state"
ATTEMPT = "attempt"

_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"

PREFECTS_FORCED = MinimalFlowPolicy.priority
"""Returns Prefect's rules for a state that is forced."""

INSTEAD: dict[Any, Any] = {
    SecureFlowConcurrencySlots: QueueForDeploymentSlot,
    ReleaseFlowConcurrencySlots: KeepSlotWhilePaused,
    RetryFailedFlows: RecognizeRepeatedFailure,
}
"""Rules that take the place of Prefect's."""


class RequireExpectedState(Refusal):
    """Rejects a proposal if the run is no longer in the state that the sender saw."""

    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = ALL_ORCHESTRATION_STATES

    async def reason(self, state: State | None, context: FlowOrchestrationContext) -> str | None:
        """Refuse if the request names a state that is not the current one."""
        expected: UUID | None = context.parameters.get(EXPECTED_STATE)
        if expected is None or (state is not None and state.id == expected):
            return None
        return "The flow run has left the state that was expected."


class RequireLatestAttempt(Refusal):
    """Rejects what a pod proposes for its flow run after the run was taken up for another pod.

    The request was delayed, or the pod went on where nobody saw it: on a node without network.
    A flow that has completed counts until another pod begins it, so that it does not run again.
    """

    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = ALL_ORCHESTRATION_STATES

    async def reason(self, state: State | None, context: FlowOrchestrationContext) -> str | None:
        """Refuse if the sender's attempt at this run is not the latest one."""
        run, attempt = context.parameters.get(ATTEMPT) or (None, None)
        if run != context.run.id:
            return None  # It may be a subflow.
        latest = await context.session.scalar(
            sa.select(FlowRunState.id)
            .where(FlowRunState.flow_run_id == run, FlowRunState.name == TAKEN_UP)
            .order_by(FlowRunState.timestamp.desc())
            .limit(1)
        )
        if latest in (None, attempt):
            return None
        proposed = context.proposed_state
        is_completed = proposed is not None and proposed.is_completed()
        if is_completed and state is not None and state.is_pending():
            claim = sa.select(FlowRunInput.key).where(
                FlowRunInput.flow_run_id == run, FlowRunInput.key == f"{CLAIM}{latest}"
            )
            if await context.session.scalar(claim) is None:
                return None
        return "Another pod has taken up this run since."


class PreventPendingAfterEnd(Refusal):
    """Rejects Pending for a run that has ended.

    To start it again, clients propose Scheduled first. Pending without Scheduled is a delayed
    request of a worker, and would cause a second execution of a completed run. Prefect refuses it
    for Cancelled runs (`PreventPendingTransitions`).
    """

    FROM_STATES = {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED}  # noqa: RUF012
    TO_STATES = {StateType.PENDING}  # noqa: RUF012

    async def reason(self, state: State | None, context: FlowOrchestrationContext) -> str | None:
        """Refuse, as Prefect does it for Cancelled runs."""
        if state is None:
            return None
        return f"This run is in a {state.type.name} state and cannot transition to a PENDING state."


class EndSubflows(FlowRunOrchestrationRule):
    """Ends the subflows of a run that has crashed or was cancelled.

    They ran in its process, and nobody else would report their end. A run of a deployment has a
    process of its own, also if a flow has started it.
    """

    FROM_STATES = ALL_ORCHESTRATION_STATES
    TO_STATES = {StateType.CRASHED, StateType.CANCELLED}  # noqa: RUF012

    async def after_transition(  # type: ignore[override]  # a context of flow runs, as in Prefect
        self,
        initial_state: State | None,
        validated_state: State | None,
        context: FlowOrchestrationContext,
    ) -> None:
        """Set the same state, in the transaction of that of the parent."""
        if validated_state is None:
            return
        run = context.run
        left = (
            sa.select(FlowRun.id)
            .join(TaskRun, FlowRun.parent_task_run_id == TaskRun.id)
            .where(
                TaskRun.flow_run_id == run.id,
                FlowRun.deployment_id.is_(None),
                FlowRun.state_type.not_in(TERMINAL_STATES),
            )
        )
        for subflow in (await context.session.scalars(left)).all():
            await flow_runs.set_flow_run_state(
                context.session,
                subflow,
                State(
                    type=validated_state.type,
                    message=f"Its parent '{run.name}' is {validated_state.name}.",
                ),
                flow_policy=FlowPolicy,
            )


class FlowPolicy(CoreFlowPolicy):
    """Prefect's rules and those above, where it matters beside the most similar one."""

    @staticmethod
    def priority() -> list[Any]:
        """Return the rules in their order of evaluation; that about other runs is the last."""
        after: dict[Any, list[Any]] = {
            PreventDuplicateTransitions: [RequireExpectedState, RequireLatestAttempt],
            PreventPendingTransitions: [PreventPendingAfterEnd, PreventRunningUntilTakenUp],
            RetryFailedFlows: [RescheduleForAnotherPod, PreventLateFailure],
            WaitForScheduledTime: [EndRetryInProcess],
        }
        rules: list[Any] = []
        for rule in CoreFlowPolicy.priority():
            rules += [INSTEAD.get(rule, rule), *after.get(rule, [])]
        return [*rules, EndSubflows]


def apply_rules() -> None:
    """Apply the rules in this process, those about attempts, slots, retries also to forced states.

    Prefect forces Crashed when its engine crashes, and Failed for a pause that nobody ended.
    """
    ORCHESTRATION_DEPENDENCIES["flow_policy_provider"] = flow_policy
    prefects = [INSTEAD.get(rule, rule) for rule in PREFECTS_FORCED()]
    forced = [RequireLatestAttempt, *prefects, EndRetryInProcess]
    setattr(MinimalFlowPolicy, "priority", staticmethod(lambda: forced))  # noqa: B010


async def flow_policy() -> type[FlowPolicy]:
    """Return the rules; the server calls this for each proposal."""
    return FlowPolicy


async def orchestration_parameters(
    request: Request,
    expected: Annotated[UUID | None, Header(alias=_headers.EXPECTED_STATE)] = None,
    attempt: Annotated[
        str | None, Header(alias=_headers.ATTEMPT, pattern=f"^{_UUID}:{_UUID}$")
    ] = None,
) -> dict[str, Any]:
    """Take the place of Prefect's `provide_flow_orchestration_parameters`."""
    parameters: dict[str, Any] = {}
    if attempt is not None:
        parameters[ATTEMPT] = tuple(map(UUID, attempt.split(":")))
    if expected is None:
        return parameters
    # The end of a connection is read after its request, and there may be more to read before.
    await asyncio.sleep(0.01)
    if await request.is_disconnected():
        # A worker that gave up would not create the Job for this state.
        raise HTTPException(408, "The sender of the proposal has not waited for its answer.")
    return parameters | {EXPECTED_STATE: expected}
