"""A worker looks for flow runs as soon as an event announces one.

Without it, a flow run that is to start now waits for the next poll: half the interval on average.
Polls go on at their interval: they find runs whose time comes, and what a broken stream has missed.
"""

from collections.abc import Awaitable, Callable
from logging import Logger, LoggerAdapter
from typing import Any

import anyio
from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter
from prefect.events.schemas.events import ResourceSpecification

STATES = ("Scheduled", "AwaitingRetry", "AwaitingConcurrencySlot", "Resuming", "Late")
"""Names of the states in which a flow run waits for a worker."""

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
            event=EventNameFilter(name=[f"prefect.flow-run.{state}" for state in STATES]),
            any_resource=EventAnyResourceFilter(
                labels=ResourceSpecification(
                    {"prefect.resource.role": "work-pool", "prefect.resource.name": pool}
                )
            ),
        )
        self._look = look
        self._logger = logger
        self._heard = anyio.Event()

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
                    async for _ in events:
                        self._heard.set()
            except Exception as error:
                self._logger.info("The worker receives no events and only polls: %r", error)
            await anyio.sleep(RECONNECT_SECONDS)
