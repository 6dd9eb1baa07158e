"""What becomes of old and stale runs of the Hamilton UI, in a real PostgreSQL."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from scripts.hamilton_ui import package_folder

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


@pytest.fixture
def database(postgres: str) -> Iterator[dict[str, str]]:
    """The environment that names a new database."""
    server = urlsplit(postgres)
    with psycopg.connect(f"{postgres}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE hamilton_ui")
        yield {
            "DB_HOST": server.hostname or "",
            "DB_PORT": str(server.port),
            "DB_USER": server.username or "",
            "DB_PASSWORD": "unused",
            "DB_NAME": "hamilton_ui",
        }
        connection.execute("DROP DATABASE hamilton_ui")


def test_a_silent_run_ends_despite_an_update_for_an_unknown_run(
    database: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ
        | database
        | {
            "PYTHONPATH": str(package_folder()),
            "DJANGO_SETTINGS_MODULE": "server.settings",
            "DJANGO_SECRET_KEY": "of-the-test",
            "HAMILTON_ENV": "mini",
            "HAMILTON_AUTH_MODE": "permissive",
            "HAMILTON_BLOB_STORE": "local",
            "HAMILTON_LOCAL_BLOB_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended, runs = json.loads(done.stdout.splitlines()[-1])
    assert (ended, runs) == (1, {"silent": "FAILURE", "at work": "RUNNING"})
