"""How a worker takes a flow run up: from the state in which it was found, if it is not too late.

If an outage keeps the run from its process or Job, it is rescheduled and not Crashed.
"""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import anyio
import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Pending
from prefect.types import DateTime
from prefect.workers.base import _is_transient_api_error

from prefect_hamilton.states import propose, rescheduled
from prefect_hamilton.worker import attempts, late

AnyWorker: Any = object

WAITS = "Waits for another try."
"""How the message begins of each state that follows an outage. The states are counted by it."""

WAIT_SECONDS = 60
"""How long a run waits at most after an outage. The time doubles from 1 s."""

ANSWER_SECONDS = 15
"""How long the API may take to answer a proposal before the client repeats it."""

PROPOSAL_SECONDS = 60
"""How long the worker tries to take a run up. Its next poll finds the run again."""


class TakingUp(AnyWorker):  # type: ignore[misc]
    """Mixin of a Prefect worker: it takes a run up once, and skips one that is too late."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._skip_late_after = late.limit()
        self._attempts: dict[UUID, UUID] = {}
        """The attempts at the runs that are being submitted."""
        self._server_ahead = timedelta()
        """By how much the clock of the server is ahead of this one."""

    def _pending(self) -> State[Any]:
        """Return the state that takes a run up."""
        return Pending()

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Submit a run. An error must not end the worker: the run is found again."""
        try:
            await super()._submit_run(flow_run)
        except Exception as error:
            self._logger.warning(
                "Flow run '%s' was not submitted: %s: %s",
                flow_run.id,
                type(error).__name__,
                error,
                exc_info=not isinstance(error, httpx.HTTPError),
            )
            self._release_limit_slot(flow_run.id)
            self._submitting_flow_run_ids.discard(flow_run.id)
            if self._cancelling_observer is not None:
                self._cancelling_observer.remove_in_flight_flow_run_id(flow_run.id)
        finally:
            self._attempts.pop(flow_run.id, None)

    async def _propose_crashed_state(
        self, flow_run: FlowRun, message: str, client: PrefectClient | None = None
    ) -> None:
        """Crash the run; reschedule it instead if an API was unavailable before it could start.

        Prefect calls this while it handles the error that kept the run from starting.
        """
        attempt, error = self._attempts.get(flow_run.id), sys.exception()
        try:
            await self._await_answer()
            if attempt is None or not self._is_outage(error):
                await super()._propose_crashed_state(flow_run, message, client)
            else:
                await self._reschedule(flow_run, attempt, message)
        except httpx.HTTPError:
            # On Kubernetes, the sweep finds the run when the API is back.
            self._logger.warning("The state of a flow run could not be set.", exc_info=True)

    async def _reschedule(self, flow_run: FlowRun, attempt: UUID, message: str) -> None:
        states = await self.client.read_flow_run_states(flow_run.id)
        if attempts.is_waited_for(states, attempt) and await self._give_up(flow_run, attempt):
            waits: State[Any] = rescheduled(f"{WAITS} {message}", self._after_outage(states))
            await propose(self.client, flow_run.id, waits, states[-1].id)

    async def _await_answer(self) -> None:
        """Wait for the API, if nobody else would find the run later."""

    def _is_outage(self, error: BaseException | None) -> bool:
        """Whether the error means that the Prefect API was unavailable."""
        return isinstance(error, httpx.HTTPError) and _is_transient_api_error(error)

    async def _give_up(self, flow_run: FlowRun, attempt: UUID) -> bool:
        """Whether nothing has started for the attempt, and nothing will."""
        return True

    def _after_outage(self, states: Sequence[State[Any]]) -> DateTime:
        """Return when a run is due again that an outage kept from its start."""
        outages = attempts.waits_in_a_row(states, WAITS)
        wait = timedelta(seconds=min(2**outages, WAIT_SECONDS))
        return cast(DateTime, datetime.now(UTC) + self._server_ahead + wait)

    async def _propose_pending_state(self, flow_run: FlowRun) -> bool:
        """Take the run up, if it is in the state in which it was found and not too late."""
        if flow_run.state is None:
            return bool(await super()._propose_pending_state(flow_run))
        after = self._skip_late_after
        skipped = after and late.skipped(flow_run, after)
        answer = await self._propose(flow_run, flow_run.state, skipped or self._pending())
        if answer is None or skipped:
            return False
        self._attempts[flow_run.id] = answer.id
        return True

    async def _propose(
        self, flow_run: FlowRun, found: State[Any], wanted: State[Any]
    ) -> State[Any] | None:
        """Propose a state for a run that is in the state `found`; None, and a log, if refused."""
        logger = self.get_flow_run_logger(flow_run)
        wanted.state_details.transition_id = uuid4()
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
            accepted = await self._find_accepted(flow_run, wanted)
            if accepted is not None:
                return accepted
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
        self._server_ahead = answer.state.timestamp - datetime.now(UTC)
        if not answer.state.is_pending():
            logger.warning("Flow run '%s' is skipped: %s", flow_run.id, wanted.message)
        return answer.state

    async def _find_accepted(self, flow_run: FlowRun, wanted: State[Any]) -> State[Any] | None:
        """Return the run's state if it is the proposed one: then only the answer was lost.

        The machine may have slept, for example. No poll would find a run that is Pending.
        """
        try:
            await self._await_answer()
            with anyio.fail_after(ANSWER_SECONDS):
                state = (await self.client.read_flow_run(flow_run.id)).state
        except (httpx.HTTPError, TimeoutError):
            return None
        same = state and state.state_details.transition_id == wanted.state_details.transition_id
        return state if same else None
