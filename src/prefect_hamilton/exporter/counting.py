"""What each event means for the metrics."""

import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.schemas.objects import TERMINAL_STATES
from prefect.events import Event
from prefect.events.filters import EventFilter, EventNameFilter
from pydantic import ValidationError

from prefect_hamilton.exporter import families
from prefect_hamilton.exporter.series import Labels, Series
from prefect_hamilton.metrics import EVENT, TRACKING_EVENT, TaskMetrics

STATES = frozenset(
    {
        "Scheduled",
        "Late",
        "AwaitingRetry",
        "AwaitingConcurrencySlot",
        "Resuming",
        "Pending",
        "Submitting",
        "InfrastructurePending",
        "Running",
        "Retrying",
        "Paused",
        "Suspended",
        "Cancelling",
        "Cancelled",
        "Completed",
        "Cached",
        "RolledBack",
        "Failed",
        "TimedOut",
        "Crashed",
    }
)
"""Names of Prefect's states. Flows may invent others without limit: their type replaces them."""
ENDED = frozenset(state.value for state in TERMINAL_STATES)
REMEMBERED_RUNS = 20_000
REMEMBERED_LOOKUPS = 200  # the API returns 200 runs at once

RUN = "prefect.flow-run."
POD = "prefect.kubernetes.pod."
ACTION = "prefect.automation.action."
DEPLOYMENT = "prefect.deployment."


def state_label(name: str, type_: str) -> str:
    """Return the value of the label `state` for a state's name and type."""
    return name if name in STATES else type_.title()


def wanted() -> EventFilter:
    """Return a filter of the events that are counted."""
    names = EventNameFilter(
        prefix=[RUN, POD, ACTION, DEPLOYMENT, EVENT, TRACKING_EVENT],
        exclude_name=[f"{RUN}heartbeat", f"{ACTION}triggered"],
    )
    return EventFilter(event=names)


@dataclass(slots=True)
class _Run:
    """When a flow run that has not ended became pending, and started."""

    pending: datetime | None = None
    started: datetime | None = None


@dataclass
class Counting:
    """Counts events. Each event must come once."""

    series: Series
    delayed: dict[UUID, str] = field(default_factory=dict)
    """Runs that have started, with their work pools: when they should have is not in the event."""
    ended: dict[UUID, Labels] = field(default_factory=dict)
    """Runs that have ended and whose start was not seen, with their labels."""
    deployments: dict[Labels, datetime] = field(default_factory=dict)
    """Flow and deployment, or "" without one, of runs, and when they were last seen."""
    pools: dict[str, datetime] = field(default_factory=dict)
    """Name of each work pool, and when it was last seen."""
    queues: dict[Labels, datetime] = field(default_factory=dict)
    """Pool and name of each work queue, and when it was last seen."""
    automations: dict[str, datetime] = field(default_factory=dict)
    """Name of each automation that has acted, and when it last did."""
    deployments_changed: bool = True
    _runs: OrderedDict[UUID, _Run] = field(default_factory=OrderedDict)

    def count(self, event: Event) -> None:
        """Count one event."""
        name = event.event
        if name.startswith(RUN):
            self._count_state(event)
        elif name == EVENT:
            self._count_task(event)
        elif name == TRACKING_EVENT:
            self.series.add(families.TRACKING_FAILURES, self._flow(event))
        elif name.startswith(DEPLOYMENT):
            self._note_deployment(event)
        elif name.startswith(ACTION):
            automation = event.resource.name or ""
            self.automations[automation] = datetime.now(UTC)
            labels = (automation, name.removeprefix(ACTION))
            self.series.add(families.AUTOMATION_ACTIONS, labels)
        elif diagnosis := event.resource.get("kubernetes.diagnosis"):
            self.series.add(families.POD_DIAGNOSES, (diagnosis,))

    def drop_deployment(self, key: Labels) -> None:
        """Drop the series of a deployment: flow and name."""
        self.deployments.pop(key, None)
        self.series.drop(lambda labels: (labels.get("flow"), labels.get("deployment")) == key)

    def _count_state(self, event: Event) -> None:
        type_ = event.resource.get("prefect.state-type")
        if not type_:
            return
        state = state_label(event.resource.get("prefect.state-name") or "", type_)
        flow, pool = self._flow(event), _related(event, "work-pool")
        queue = _related(event, "work-queue")
        if pool:
            self.pools[pool] = self.queues[pool, queue] = datetime.now(UTC)
        labels = (*flow, pool, queue, state)
        self.series.add(families.TRANSITIONS, labels)
        run = UUID(event.resource.id.removeprefix(RUN))
        self._follow(run, type_, event, flow, pool, state)

    def _follow(
        self, run: UUID, type_: str, event: Event, flow: Labels, pool: str, state: str
    ) -> None:
        known = self._runs.pop(run, None) or _Run()
        if type_ in ENDED:
            if state == "Completed" and flow[1]:
                self.series.raise_to(families.LAST_SUCCESS, flow, event.occurred.timestamp())
            if known.started:
                seconds = (event.occurred - known.started).total_seconds()
                self.series.observe(families.DURATION, (*flow, state), max(seconds, 0.0))
            elif len(self.ended) < REMEMBERED_LOOKUPS:
                self.ended[run] = (*flow, state)
            return
        if type_ == "SCHEDULED":
            known.pending = None
        elif type_ == "PENDING":
            known.pending = known.pending or event.occurred
        elif type_ == "RUNNING":
            self._start(run, known, event, pool)
        self._runs[run] = known
        if len(self._runs) > REMEMBERED_RUNS:
            self._runs.popitem(last=False)

    def _start(self, run: UUID, known: _Run, event: Event, pool: str) -> None:
        if known.pending:
            seconds = (event.occurred - known.pending).total_seconds()
            self.series.observe(families.PENDING, (pool,), max(seconds, 0.0))
            known.pending = None
        is_first = event.resource.get("prefect.run-count") == "1"
        if is_first and not known.started and len(self.delayed) < REMEMBERED_LOOKUPS:
            self.delayed[run] = pool
        known.started = known.started or event.occurred

    def _count_task(self, event: Event) -> None:
        try:
            metrics = TaskMetrics.model_validate(event.payload)
        except ValidationError:  # someone else's event of this name
            return
        labels = (*self._flow(event), metrics.task)
        for kind, family in families.ROWS.items():
            self.series.add(family, labels, max(getattr(metrics, f"rows_{kind}"), 0))
        self.series.observe(families.TASK_SECONDS, labels, max(metrics.seconds, 0.0))

    def _note_deployment(self, event: Event) -> None:
        change = event.event.removeprefix(DEPLOYMENT)
        if change not in {"created", "updated", "deleted"}:
            return
        self.deployments_changed = True
        key = (_related(event, "flow"), event.resource.name or "")
        if change == "deleted":
            self.drop_deployment(key)

    def _flow(self, event: Event) -> Labels:
        key = (_related(event, "flow"), _related(event, "deployment"))
        self.deployments[key] = datetime.now(UTC)
        return key


def _related(event: Event, role: str) -> str:
    resource = event.resource_in_role.get(role)
    # Interned, as each event brings the same few names.
    return sys.intern(resource.name or "") if resource else ""
