"""How a worker takes a flow run up: from the state in which it was found, if it is not too late."""

from typing import Any

import anyio
import httpx
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Pending

from prefect_hamilton.states import propose
from prefect_hamilton.worker import late

AnyWorker: Any = object

ANSWER_SECONDS = 15
"""How long the API may take to answer a proposal before the client repeats it."""

PROPOSAL_SECONDS = 60
"""How long the worker tries to take a run up. Its next poll finds the run again."""


class TakingUp(AnyWorker):  # type: ignore[misc]
    """Mixin of a Prefect worker: it takes a run up once, and skips one that is too late."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._skip_late_after = late.limit()

    def _pending(self) -> State[Any]:
        """Return the state that takes a run up."""
        return Pending()

    def _is_taken_up(self, flow_run: FlowRun, state: State[Any]) -> None:
        """Note that the run is Pending now, by this state."""

    async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
        """Take the run up, if it is in the state in which it was found and not too late."""
        if flow_run.state is None:
            return bool(await super()._propose_pending_state(flow_run))
        after = self._skip_late_after
        skipped = after and late.skipped(flow_run, after)
        answer = await self._propose(flow_run, flow_run.state, skipped or self._pending())
        if answer is None or skipped:
            return False
        self._is_taken_up(flow_run, answer)
        return True

    async def _propose(
        self, flow_run: FlowRun, found: State[Any], wanted: State[Any]
    ) -> State[Any] | None:
        """Propose a state for a run that is in the state `found`; None, and a log, if refused."""
        logger = self.get_flow_run_logger(flow_run)
        try:
            with anyio.fail_after(PROPOSAL_SECONDS):
                answer = await propose(
                    self.client,
                    flow_run.id,
                    wanted,
                    found.id,
                    timeout=ANSWER_SECONDS,
                )
        except (httpx.HTTPError, TimeoutError) as error:
            logger.warning(
                "Flow run '%s' was not taken up, because the API did not answer: %s: %s",
                flow_run.id,
                type(error).__name__,
                error,
            )
            return None
        # A server that refuses answers with the current state, which another worker may have set.
        refused = answer.status is SetStateStatus.ABORT
        if refused or answer.state is None or answer.state.type is not wanted.type:
            logger.info("Flow run '%s' was not taken up: %s", flow_run.id, answer.details)
            return None
        if not answer.state.is_pending():
            logger.warning("Flow run '%s' is skipped: %s", flow_run.id, wanted.message)
        return answer.state
