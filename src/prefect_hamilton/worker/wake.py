"""A worker looks for flow runs as soon as an event announces one, and hardly polls meanwhile.

Without it, a flow run that is to start now waits for the next poll: half the interval on average.
Polls find runs whose time comes, and what a broken stream has missed. While no stream is open, they
are made at their interval.
"""

import time
from collections.abc import Awaitable, Callable
from logging import Logger, LoggerAdapter
from typing import TYPE_CHECKING, Any

import anyio
import prefect.types._datetime
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter
from prefect.events.schemas.events import ResourceSpecification

if TYPE_CHECKING:
    from prefect.client.schemas.responses import WorkerFlowRunResponse

AnyWorker: Any = object

EVENTS = "prefect.flow-run."
"""Prefix of the events of a flow run, which are named after its states."""

TAKEN_UP = ("Pending", "Submitting", "InfrastructurePending", "Running", "heartbeat")
"""The events after which a worker has nothing to look for.

After any other, the flow run waits for a worker, or has left a slot of a limit to another.
"""

POLL_SECONDS = 10
"""Maximum time between two polls while the worker listens to events and finds nothing."""

PAUSE_SECONDS = 0.1
"""Minimum time between two queries, so that a burst of events causes one."""

RECONNECT_SECONDS = 10
"""Time before the stream is opened again after an error; the worker continues to poll."""


class Wake:
    """Calls `look` when the stream of events names a flow run that waits in the pool."""

    def __init__(
        self,
        pool: str,
        look: Callable[[], Awaitable[Any]],
        logger: Logger | LoggerAdapter[Any],
    ) -> None:
        self._filter = EventFilter(
            event=EventNameFilter(
                prefix=[EVENTS], exclude_name=[f"{EVENTS}{name}" for name in TAKEN_UP]
            ),
            any_resource=EventAnyResourceFilter(
                labels=ResourceSpecification(
                    {"prefect.resource.role": "work-pool", "prefect.resource.name": pool}
                )
            ),
        )
        self._look = look
        self._logger = logger
        self._heard = anyio.Event()
        self.listens = False
        """Whether the stream is open. One that hangs is closed after missed pings."""

    async def run_forever(self, scope: anyio.CancelScope) -> None:
        """Listen and look until `scope` is cancelled."""
        with scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen)
                while True:
                    await self._heard.wait()
                    self._heard = anyio.Event()
                    try:
                        await self._look()
                    except Exception:
                        # The poll meets it as well, and decides what becomes of the worker.
                        self._logger.debug("Failed to look for flow runs.", exc_info=True)
                    await anyio.sleep(PAUSE_SECONDS)

    async def _listen(self) -> None:
        while True:
            try:
                # The client would reconnect silently and miss the flow runs in between.
                stream = get_events_subscriber(self._filter, reconnection_attempts=0)
                async with stream as events:
                    # What waits already.
                    self._heard.set()
                    self.listens = True
                    async for _ in events:
                        self._heard.set()
            except Exception as error:
                self._logger.info("The worker receives no events and only polls: %r", error)
            finally:
                self.listens = False
            await anyio.sleep(RECONNECT_SECONDS)


class Listening(AnyWorker):  # type: ignore[misc]
    """Mixin of a Prefect worker: it listens to events, and skips most of its polls meanwhile."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._looking = anyio.Lock()
        self._wake: Wake | None = None
        self._found_nothing_at = float("-inf")

    async def setup(self) -> None:
        """Prepare the worker, and begin to listen."""
        await super().setup()
        self._wake = Wake(self._work_pool_name, self._look_after_event, self._logger)
        self._run_beside(self._wake.run_forever)

    def _run_beside(self, run_forever: Callable[[anyio.CancelScope], Any]) -> None:
        """Run a coroutine function until the worker ends."""
        assert self._runs_task_group is not None  # noqa: S101  # as in Prefect
        scope = anyio.CancelScope()
        # Cancelled when the worker ends.
        self._scheduled_task_scopes.add(scope)
        self._runs_task_group.start_soon(run_forever, scope)

    async def get_and_submit_flow_runs(self) -> Any:
        """Poll, unless events make it superfluous."""
        if self._may_skip_poll():
            # The health of the worker depends on it.
            self._last_polled_time = prefect.types._datetime.now("UTC")
            return []
        return await self._look()

    def _may_skip_poll(self) -> bool:
        """Whether the stream is open and the last query was recent and found nothing.

        A run whose time comes sends no event: it is found while at least half of the time is left
        in which the worker prepares it.
        """
        seconds = min(POLL_SECONDS, self._prefetch_seconds / 2)
        if self._wake is None or not self._wake.listens:
            return False
        return bool(time.monotonic() - self._found_nothing_at < seconds)

    async def _look_after_event(self) -> Any:
        # The event precedes its commit: if this comes too early, the next poll is not skipped.
        try:
            return await self._look()
        finally:
            self._found_nothing_at = float("-inf")

    async def _look(self) -> Any:
        """Query and submit; one at a time, since each submits what it finds."""
        async with self._looking:
            return await super().get_and_submit_flow_runs()

    async def _get_scheduled_flow_runs(self) -> "list[WorkerFlowRunResponse]":
        asked_at, self._found_nothing_at = time.monotonic(), float("-inf")
        found: list[WorkerFlowRunResponse] = await super()._get_scheduled_flow_runs()
        if not found:
            self._found_nothing_at = asked_at
        return found
