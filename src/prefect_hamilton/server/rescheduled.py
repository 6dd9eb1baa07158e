"""Rules about runs that are rescheduled because the pod or process that ran them was ended.

What it reports late does not count, and the run gets back what that execution has used up.
"""

import sqlalchemy as sa
from prefect.server.database.orm_models import FlowRun, FlowRunState
from prefect.server.orchestration.core_policy import RetryFailedFlows
from prefect.server.orchestration.rules import FlowOrchestrationContext, FlowRunOrchestrationRule
from prefect.server.schemas.states import TERMINAL_STATES, State, StateType

from prefect_hamilton.server.deployment_slots import WAITING, give_back, waits_in_process
from prefect_hamilton.server.refusals import Refusal


class RescheduleForAnotherPod(FlowRunOrchestrationRule):
    """Lets workers take up a run that was rescheduled, and returns the execution to its retries.

    Prefect's server gives workers no run whose flow is retried by the process that runs it, and
    lets it keep its slot. It counts each execution as one of the flow's tries. What Prefect itself
    makes of a failure never passes this rule, since Failed was proposed.
    """

    FROM_STATES = {  # noqa: RUF012
        StateType.SCHEDULED,
        StateType.PENDING,
        StateType.RUNNING,
        StateType.PAUSED,
        # An observer of the pods may have noticed the end before the pod could reschedule the run.
        StateType.CRASHED,
    }
    TO_STATES = {StateType.SCHEDULED}  # noqa: RUF012

    async def after_transition(  # type: ignore[override]  # a context of flow runs, as in Prefect
        self,
        initial_state: State | None,
        validated_state: State | None,
        context: FlowOrchestrationContext,
    ) -> None:
        """Change the policy of the run in the transaction of the new state."""
        policy = context.run.empirical_policy.model_copy()
        if policy.retry_type == "in_process":
            policy.retry_type = "reschedule"
            if initial_state is not None and initial_state.is_scheduled():
                await give_back(context, initial_state)
        if policy.retries is not None and await _was_running(initial_state, context):
            policy.retries += 1
        context.run.empirical_policy = policy


async def _was_running(state: State | None, context: FlowOrchestrationContext) -> bool:
    """Whether the run was executed in this state, or in the one before if it has crashed."""
    if state is None or not state.is_crashed():
        return state is not None and (state.is_running() or waits_in_process(state))
    before: StateType | None = await context.session.scalar(
        sa.select(FlowRunState.type)
        .where(FlowRunState.flow_run_id == context.run.id, FlowRunState.timestamp < state.timestamp)
        .order_by(FlowRunState.timestamp.desc())
        .limit(1)
    )
    return before is StateType.RUNNING


class RecognizeRepeatedFailure(RetryFailedFlows):
    """Retries a failed flow once, also if its failure is reported again: the answer was lost."""

    async def reject_transition(self, state: State | None, reason: str) -> None:
        """Give the state that is set instead the id of the request."""
        proposed = self.context.proposed_state
        if state is not None and proposed is not None:
            state.state_details.transition_id = proposed.state_details.transition_id
        await super().reject_transition(state, reason)


class PreventRunningUntilTakenUp(Refusal):
    """Rejects Running for a run that was rescheduled until a worker has taken it up.

    It is a delayed request of the pod that was ended, and would leave the run Running without one.
    A flow that is retried by the process that runs it goes on.
    """

    FROM_STATES = {StateType.SCHEDULED}  # noqa: RUF012
    TO_STATES = {StateType.RUNNING}  # noqa: RUF012

    async def reason(self, state: State | None, context: FlowOrchestrationContext) -> str | None:
        """Refuse while the run waits."""
        return _wait(state, context.run)


class PreventLateFailure(Refusal):
    """Rejects Failed for a run that was rescheduled and has retries left.

    The pod that was ended reports it late. In time, the run would have been retried.
    """

    FROM_STATES = {StateType.SCHEDULED}  # noqa: RUF012
    TO_STATES = {StateType.FAILED}  # noqa: RUF012

    async def reason(self, state: State | None, context: FlowOrchestrationContext) -> str | None:
        """Refuse while the run waits. The execution that was ended was returned to the retries."""
        retries = context.run.empirical_policy.retries or 0
        return _wait(state, context.run) if context.run.run_count < retries else None


def _wait(state: State | None, run: FlowRun) -> str | None:
    """Return for what a run waits, if its next execution is not by the process of its last one."""
    if (
        state is not None
        and state.name in WAITING
        and run.deployment_id is not None
        and run.empirical_policy.retry_type != "in_process"
    ):
        return "This run was rescheduled and waits for a worker."
    return None


class EndRetryInProcess(FlowRunOrchestrationRule):
    """Ends the time for which only the process that runs a flow may retry it: it has, or ends.

    Prefect remembers this until the flow has no retries left. A run that was suspended after a
    retry, or whose crash a person retries by force, would be given to no worker.
    """

    FROM_STATES = {StateType.SCHEDULED}  # noqa: RUF012
    TO_STATES = {StateType.RUNNING, StateType.CANCELLING, *TERMINAL_STATES}  # noqa: RUF012

    async def after_transition(  # type: ignore[override]
        self,
        initial_state: State | None,
        validated_state: State | None,
        context: FlowOrchestrationContext,
    ) -> None:
        """Change the policy of the run in the transaction of the new state."""
        policy = context.run.empirical_policy
        if policy.retry_type == "in_process":
            context.run.empirical_policy = policy.model_copy(update={"retry_type": None})
            if validated_state is not None and validated_state.is_final():
                await give_back(context, initial_state)
