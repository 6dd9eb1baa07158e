"""The spans of flow runs and task runs, which Prefect starts: when they end, and their ids.

Prefect ends the span of a flow that fails and is tried again in the same process, and never ends
that of a task that times out or waits for one that failed.
"""

import threading
from functools import wraps
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import SpanContext
from prefect.client.schemas.objects import State, StateType
from prefect.task_engine import SyncTaskRunEngine
from prefect.telemetry.run_telemetry import RunTelemetry

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import Span

RUN_ID = "prefect.run.id"
"""Attribute of the span of a run."""

STATE_TYPE = "prefect.state.type"
"""Attribute of the event that Prefect adds to a span for each state of its run."""

REMEMBERED = 1000
"""Number of flow runs, and of task runs, whose spans are known."""

_flow_runs: dict[str, SpanContext] = {}
_task_runs: dict[str, SpanContext] = {}
_lock = threading.Lock()


def note(span: "Span") -> None:
    """Remember the span if it is that of a run, for what is logged after its end."""
    attributes = span.attributes or {}
    if run_id := attributes.get(RUN_ID):
        of_type = _flow_runs if attributes.get("prefect.run.type") == "flow" else _task_runs
        with _lock:  # tasks begin in threads
            of_type[str(run_id)] = span.context
            if len(of_type) > REMEMBERED:
                del of_type[next(iter(of_type))]


def context_of(run_id: object) -> SpanContext | None:
    """Return the ids of the span of a run, if it is one of the last in this process."""
    return _flow_runs.get(str(run_id)) or _task_runs.get(str(run_id))


def last_state(span: Any) -> StateType | None:
    """Return the type of the last state of the run whose span it is."""
    events = getattr(span, "events", ())  # one that the sampler leaves out has none
    states = [e.attributes[STATE_TYPE] for e in events if STATE_TYPE in (e.attributes or {})]
    return StateType(states[-1]) if states else None


def correct() -> None:
    """Let Prefect end the spans of this process with their runs."""
    end_on_failure = RunTelemetry.end_span_on_failure
    update_state = RunTelemetry.update_state
    handle_timeout = SyncTaskRunEngine.handle_timeout

    @wraps(end_on_failure)
    def end_span_on_failure(self: RunTelemetry, terminal_message: str | None = None) -> None:
        # The state of a flow that is tried again has no message; that of any failure has one.
        is_tried_again = (
            terminal_message is None
            and self.span is not None
            and last_state(self.span) is StateType.RUNNING
        )
        if not is_tried_again:
            end_on_failure(self, terminal_message)

    @wraps(update_state)
    def end_where_nothing_ran(self: RunTelemetry, new_state: State[Any]) -> None:
        update_state(self, new_state)
        if new_state.name == "NotReady":
            end_on_failure(self, new_state.message)

    @wraps(handle_timeout)
    def end_at_timeout(self: SyncTaskRunEngine[Any, Any], exc: TimeoutError) -> None:
        handle_timeout(self, exc)
        if self.state.is_final():
            self._telemetry.record_exception(exc)
            self._telemetry.end_span_on_failure(self.state.message)

    RunTelemetry.end_span_on_failure = end_span_on_failure  # type: ignore[method-assign]
    RunTelemetry.update_state = end_where_nothing_ran  # type: ignore[method-assign]
    SyncTaskRunEngine.handle_timeout = end_at_timeout  # type: ignore[method-assign]
