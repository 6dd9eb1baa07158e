"""The Hamilton UI's database: its schema, and the retention of runs."""

import logging
from datetime import datetime, timedelta

import tenacity
from django.core.management import call_command
from django.db import OperationalError, connection, transaction
from django.db.models import OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.utils import timezone
from trackingserver_run_tracking.models import (
    DAGRun,
    ExecutionStatus,
    NodeRun,
    NodeRunAttribute,
)

logger = logging.getLogger(__name__)

MIGRATION_LOCK = 8241  # any number that all migrating processes share
RUNS_A_TRANSACTION = 200


def wait(seconds: float) -> None:
    """Return when the database accepts a connection; OperationalError after `seconds`."""
    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(OperationalError),
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_fixed(1),
        before_sleep=lambda _: logger.info("the database does not answer yet"),
        reraise=True,
    ):
        with attempt:
            connection.ensure_connection()


def migrate() -> None:
    """Bring the database to the package's schema, one process at a time.

    Two processes that migrate an empty database at once make one of them fail: the lock, which
    PostgreSQL gives up when the connection ends, makes the second wait and find nothing to do.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        try:
            call_command("migrate", interactive=False, verbosity=0)
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [MIGRATION_LOCK])
    logger.info("the database has the schema of this version")


def delete_runs(older_than: timedelta) -> int:
    """Delete the runs that were started longer ago, with all that they captured.

    Returns how many. The versions of the dataflows that they ran stay.
    """
    before = timezone.now() - older_than
    deleted = 0
    while runs := list(_runs_before(before).values_list("pk", flat=True)[:RUNS_A_TRANSACTION]):
        # The models set the reference of what a deleted run captured to null instead.
        with transaction.atomic():
            NodeRunAttribute.objects.filter(dag_run__in=runs).delete()
            NodeRun.objects.filter(dag_run__in=runs).delete()
            DAGRun.objects.filter(pk__in=runs).delete()
        deleted += len(runs)
    return deleted


def end_stale_runs(older_than: timedelta) -> int:
    """Mark runs as failed that are RUNNING, but have not been updated for this time.

    Their process was killed: nothing else ends them. They end when their last node did, or when
    they started. Returns how many.
    """
    last_node = (
        NodeRun.objects.filter(dag_run=OuterRef("pk"), end_time__isnull=False)
        .order_by("-end_time")
        .values("end_time")[:1]
    )
    # Without those whose run is gone: nothing is `NOT IN` a list that holds a null.
    heard_of_since = NodeRun.objects.filter(
        updated_at__gte=timezone.now() - older_than, dag_run__isnull=False
    )
    with transaction.atomic():
        stale = list(
            _runs_before(timezone.now() - older_than)
            .filter(run_status=ExecutionStatus.RUNNING)
            .exclude(pk__in=heard_of_since.values("dag_run"))
            .values_list("pk", flat=True)
        )
        NodeRun.objects.filter(dag_run__in=stale, status=ExecutionStatus.RUNNING).update(
            status=ExecutionStatus.FAILURE
        )
        DAGRun.objects.filter(pk__in=stale).update(
            run_status=ExecutionStatus.FAILURE,
            run_end_time=Coalesce(Subquery(last_node), "run_start_time"),
        )
    return len(stale)


def _runs_before(moment: datetime) -> "QuerySet[DAGRun]":
    runs: QuerySet[DAGRun] = DAGRun.objects.filter(created_at__lt=moment).order_by("pk")
    return runs
