"""The shape of rules that refuse a transition of a flow run."""

from abc import abstractmethod

from prefect.server.orchestration.rules import FlowOrchestrationContext, FlowRunOrchestrationRule
from prefect.server.schemas.states import State


class Refusal(FlowRunOrchestrationRule):
    """Aborts a transition if there is a reason to."""

    async def before_transition(  # type: ignore[override]  # a context of flow runs, as in Prefect
        self,
        initial_state: State | None,
        proposed_state: State | None,
        context: FlowOrchestrationContext,
    ) -> None:
        """Abort the transition with the reason."""
        if reason := await self.reason(initial_state, context):
            await self.abort_transition(reason)

    @abstractmethod
    async def reason(self, state: State | None, context: FlowOrchestrationContext) -> str | None:
        """Return why a run must not leave its state for that of the transition; None if it may."""
