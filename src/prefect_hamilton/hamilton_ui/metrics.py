"""Serves the metrics of the Hamilton UI: those of requests, and those of the runs in its database.

Each process that handles requests counts them in a file of its own. Nothing has to be done when one
ends: what it has counted stays.
"""

import logging
import os
import shutil
import threading
import time
from pathlib import Path

from django.db import Error, connections, transaction
from django.db.models import Count, Min, Value
from django.db.models.functions import Coalesce
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from trackingserver_run_tracking.models import DAGRun

from prefect_hamilton._addresses import EVERY_ADDRESS

logger = logging.getLogger(__name__)

DATABASE = "metrics"
"""The name in the settings of the database with timeouts."""

KEPT_SECONDS = 30.0
STATEMENT_MILLISECONDS = 2000
LABELS = ("project", "status")


def serve(port: int) -> None:
    """Serve /metrics from threads of this process, before it makes those that handle requests.

    Raises OSError if the port is in use.
    """
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    # What a process before a restart of the container has counted is there still.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    registry.register(StoredRuns())
    start_http_server(port, EVERY_ADDRESS, registry)


class StoredRuns(Collector):
    """What the database tells about runs: one query, whose answer is kept for a while."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._metrics: list[GaugeMetricFamily] = []
        self._valid_until = 0.0

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the metrics; without those of runs if the database does not answer."""
        up = GaugeMetricFamily(
            "hamilton_ui_database_up", "1 if the database has answered how many runs it stores."
        )
        with self._lock:
            if time.monotonic() >= self._valid_until:
                try:
                    self._metrics = _read()
                    self._valid_until = time.monotonic() + KEPT_SECONDS
                except Error as error:
                    self._metrics = []
                    logger.warning("the runs are not counted: %s", " ".join(str(error).split()))
            up.add_metric((), bool(self._metrics))
            return [up, *self._metrics]


def _read() -> list[GaugeMetricFamily]:
    """Read the database. Raises django.db.Error."""
    runs = GaugeMetricFamily(
        "hamilton_ui_runs", "Runs in the database, by project and status.", labels=LABELS
    )
    oldest = GaugeMetricFamily(
        "hamilton_ui_oldest_run_timestamp_seconds",
        "Time at which the oldest run in the database was created, by project and status.",
        labels=LABELS,
    )
    groups = (
        DAGRun.objects.using(DATABASE)
        .values_list(Coalesce("dag_template__project__name", Value("")), "run_status")
        .annotate(Count("pk"), Min("created_at"))
    )
    try:
        with transaction.atomic(using=DATABASE), connections[DATABASE].cursor() as cursor:
            # Not as an option of the connection: PgBouncer refuses those.
            cursor.execute(f"SET LOCAL statement_timeout = {STATEMENT_MILLISECONDS}")
            for *labels, count, created in groups:
                runs.add_metric(labels, count)
                oldest.add_metric(labels, created.timestamp())
    finally:
        # Each scrape is a thread, and each thread has a connection.
        connections[DATABASE].close()
    return [runs, oldest]
