"""Metrics of a worker for Prometheus: what neither Prefect's events nor its API tell.

No label ever holds the id or the name of a run.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime

from prefect.client.schemas.objects import FlowRun
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
)

from prefect_hamilton import _metrics_port

PORT = "PREFECT_HAMILTON_WORKER_METRICS_PORT"
"""Variable of the worker: the port of /metrics. Without it, none is served."""

DELAYS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Metrics:
    """The metrics of one worker of a work pool."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        submissions = Counter(
            "prefect_worker_submissions",
            "Flow runs that the worker has taken up, by result: submitted, or failed.",
            ("work_pool", "result"),
            registry=self._registry,
        )
        self._submitted = submissions.labels(pool, "submitted")
        self._failed = submissions.labels(pool, "failed")
        self._delay = Histogram(
            "prefect_worker_submission_delay_seconds",
            "Time from the scheduled time of a flow run to its submission.",
            ("work_pool",),
            buckets=DELAYS,
            registry=self._registry,
        ).labels(pool)
        self._polled = Gauge(
            "prefect_worker_last_poll_timestamp_seconds",
            "Time at which the Prefect API last answered which flow runs are due.",
            ("work_pool",),
            registry=self._registry,
        ).labels(pool)
        self._standby_pods = Gauge(
            "prefect_worker_standby_pods",
            "Standby pods of the work pool: idle, starting, or claimed by a flow run.",
            ("work_pool", "state"),
            registry=self._registry,
        )

    def served(self) -> AbstractContextManager[None]:
        """Serve /metrics, if the environment names a port."""
        return _metrics_port.served(PORT, self._registry)

    def note_poll(self) -> None:
        """Note that the API has answered a poll."""
        self._polled.set_to_current_time()

    def count_submitted(self, run: FlowRun) -> None:
        """Count a run whose Job has been made, or that has a standby Job.

        `run` is as the worker found it. It may be prepared before its time: that is no delay.
        """
        self._submitted.inc()
        due = run.state and run.state.state_details.scheduled_time
        if due:
            self._delay.observe(max((datetime.now(UTC) - due).total_seconds(), 0.0))

    def count_failed(self) -> None:
        """Count a run that has been taken up and for which no Job could be made."""
        self._failed.inc()

    def set_standby_pods(self, counts: Mapping[str, int]) -> None:
        """Set the number of standby pods by state."""
        for state, count in counts.items():
            self._standby_pods.labels(self._pool, state).set(count)
