"""What the background services have received waits while the database cannot store it.

With Prefect alone, states of task runs are dropped after six attempts and events after five, an
event whose evaluation fails goes to the dead letters at the fourth time, without a pause, and an
action that meets the outage fails for good. A few seconds are enough for that.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import asyncpg
import sqlalchemy as sa
import tenacity
from prefect.logging import get_logger
from prefect.server.database import provide_database_interface
from prefect.server.events import actions, triggers
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.server.events.services import event_persister
from prefect.server.events.services.event_persister import EventPersister
from prefect.server.events.storage.database import write_events
from prefect.server.services import task_run_recorder
from prefect.server.services.base import Service
from prefect.server.services.task_run_recorder import TaskRunRecorder
from prefect.settings import get_current_settings
from sqlalchemy.ext.asyncio import AsyncSession

from prefect_hamilton.server import availability

logger = get_logger("server.outages")

PATIENCE_SECONDS = 600.0
"""How long a service waits. What it holds meanwhile is in its memory."""

UNAVAILABLE = ("08", "53", "57P", "58", "25006")
"""Beginnings of SQLSTATE: connection, resources (disk, connections), shutdown, system, read-only.

A statement that takes too long (57014) may always do so.
"""

SQLITE_UNAVAILABLE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR")

CONNECTION_LOST = "8s2b"
"""SQLAlchemy's code of a commit, as in `finally`, after a transaction lost its connection."""

SOON_SECONDS = 2.0
"""With the time that the receiver of a message has, less than Valkey waits before it repeats."""

IN_MEMORY = "prefect.server.utilities.messaging.memory"
"""Broker of a single server."""

_stopping = threading.Event()
_has_already_happened = actions.action_has_already_happened

P = ParamSpec("P")
T = TypeVar("T")


def will_pass(error: BaseException) -> bool:
    """Whether the database could not do it now; not so if it refuses what it was given."""
    if isinstance(error, sa.exc.DBAPIError):
        original: Any = error.orig
        if name := getattr(original, "sqlite_errorname", None):
            return str(name).startswith(SQLITE_UNAVAILABLE)
        state = getattr(original, "sqlstate", None)
        return str(state).startswith(UNAVAILABLE) if state else error.connection_invalidated
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate).startswith(UNAVAILABLE)
    if isinstance(error, sa.exc.PendingRollbackError):
        return error.code == CONNECTION_LOST
    return isinstance(error, Exception) and availability.is_away(error)


class _Outage:
    """How long the database has been unavailable, for all that wait."""

    def __init__(self) -> None:
        self._began: float | None = None

    def goes_on(self) -> None:
        """Note a failure."""
        if self._began is None:
            self._began = time.monotonic()

    def has_ended(self) -> None:
        """Note a success."""
        self._began = None

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return 0.0 if self._began is None else time.monotonic() - self._began


_outage = _Outage()


class _TooLong(tenacity.stop.stop_base):
    """Give up at once when the outage is too long: a service repeats what has given up."""

    def __call__(self, _: tenacity.RetryCallState) -> bool:
        return _outage.seconds > PATIENCE_SECONDS


def outlast(
    what: str, function: Callable[P, Awaitable[T]], seconds: float = PATIENCE_SECONDS
) -> Callable[P, Any]:
    """Repeat a function while the database is unavailable; raises its last error after that time.

    The function must be repeatable. It is not repeated any more when the services are stopped.
    """

    def say(state: tenacity.RetryCallState) -> None:
        _outage.goes_on()
        error = state.outcome and state.outcome.exception()
        if error and state.attempt_number == 1:
            reason = str(error).split("\n")[0]
            logger.warning("%s the database: %s: %s", what, type(error).__name__, reason)

    @wraps(function)
    async def noted(*args: P.args, **kwargs: P.kwargs) -> T:
        result = await function(*args, **kwargs)
        _outage.has_ended()
        return result

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(will_pass),
        stop=tenacity.stop_any(
            tenacity.stop_after_delay(seconds),
            tenacity.stop_when_event_set(_stopping),
            _TooLong(),
        ),
        # Replicas do not repeat it at the same moment.
        wait=tenacity.wait_random(0.5, 1.5),
        after=say,
        reraise=True,
    )
    return retrying.wraps(noted)


def wait() -> None:
    """Let the background services of this process wait."""
    is_shared = get_current_settings().server.events.messaging_broker != IN_MEMORY
    # Valkey delivers a message again that is not done; another replica must not do it meanwhile.
    once = 0.0 if is_shared else PATIENCE_SECONDS
    # Each is what Prefect's module of this name calls.
    setattr(event_persister, "write_events", outlast("Events wait for", _write_events))  # noqa: B010  # an import of Prefect's
    task_run_recorder.record_bulk_task_run_events = outlast(
        "States of task runs wait for", task_run_recorder.record_bulk_task_run_events
    )
    triggers.reactive_evaluation = outlast(
        "The evaluation of an event waits for", triggers.reactive_evaluation, once
    )
    begins = _soon if is_shared else _action_has_already_happened
    setattr(  # noqa: B010  # its parameter is called `id`
        actions, "action_has_already_happened", outlast("An action waits for", begins, once)
    )
    for kind in (EventPersister, TaskRunRecorder):
        _give_up_at_stop(kind)


async def _write_events(session: AsyncSession, events: list[ReceivedEvent]) -> None:
    """Write in a session of its own: the given one cannot be used again after an error."""
    async with provide_database_interface().session_context() as own:
        await write_events(own, events)
        await own.commit()


async def _action_has_already_happened(id_: UUID) -> bool:
    """Ask the database for an answer before the action begins."""
    async with provide_database_interface().session_context() as session:
        await session.execute(sa.text("SELECT 1"))
    return await _has_already_happened(id_)


async def _soon(id_: UUID) -> bool:
    """As `_action_has_already_happened`, and so soon that no other replica begins meanwhile."""
    async with asyncio.timeout(SOON_SECONDS):
        return await _action_has_already_happened(id_)


def _give_up_at_stop(kind: type[Any]) -> None:
    """At its end, a service writes what it holds; it must not wait then."""
    prefects = kind.stop

    @wraps(prefects)
    async def stop(self: Service) -> None:
        _stopping.set()
        await prefects(self)

    kind.stop = stop
