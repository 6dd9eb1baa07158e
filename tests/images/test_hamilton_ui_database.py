"""What becomes of old and stale runs of the Hamilton UI, in a real PostgreSQL."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import services

pytestmark = pytest.mark.services

PROGRAM = """
import json
from datetime import timedelta

import django
from django.utils import timezone

django.setup()
from prefect_hamilton.hamilton_ui import database
from trackingserver_run_tracking.models import DAGRun, NodeRun

database.migrate()
long_ago = timezone.now() - timedelta(hours=25)


def run(name, node_heard_of):
    made = DAGRun.objects.create(
        run_start_time=long_ago, run_status="RUNNING", tags={"name": name}, inputs={}, outputs=[]
    )
    node(made, node_heard_of)
    DAGRun.objects.filter(pk=made.pk).update(created_at=long_ago, updated_at=long_ago)


def node(dag_run, heard_of):
    made = NodeRun.objects.create(
        dag_run=dag_run, node_name="n", node_template_name="n", status="RUNNING"
    )
    NodeRun.objects.filter(pk=made.pk).update(updated_at=heard_of)


run("silent", long_ago)
run("at work", timezone.now())
# The state after a run was deleted meanwhile.
node(None, timezone.now())
ended = database.end_stale_runs(timedelta(hours=24))
print(json.dumps([ended, {each.tags["name"]: each.run_status for each in DAGRun.objects.all()}]))
"""


def test_a_silent_run_ends_despite_an_update_for_an_unknown_run(
    postgres: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | services.hamilton_database(postgres, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended, runs = json.loads(done.stdout.splitlines()[-1])
    assert (ended, runs) == (1, {"silent": "FAILURE", "at work": "RUNNING"})
