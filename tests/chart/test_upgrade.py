"""The data of an older release's server, after the upgrade to this one's Prefect.

On SQLite, as the local profile, where the server migrates at its start; on PostgreSQL, as the
chart, where `--migrate` does.
"""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import prefect
import pytest
import tenacity
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, temporary_settings

from tests import environments, services
from tests.server.test_migrate import MIGRATE, Database

pytestmark = pytest.mark.services

# The Prefect of release 0.1.0, with the caps that its lock file had.
OLD = ("prefect==3.8.8", "sqlalchemy<2.1", "fastapi<0.151")
CLIENT = Path(__file__).with_name("upgrade_client.py")

eventually = tenacity.retry(
    stop=tenacity.stop_after_delay(60), wait=tenacity.wait_fixed(0.2), reraise=True
)


@pytest.fixture(scope="module")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environments.make(tmp_path_factory.mktemp("old") / "venv", *OLD)


@dataclass
class Storage:
    """A server's database: the settings that name it; `migrate` where the server does not."""

    settings: dict[str, str]
    migrate: Callable[[], None]


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> Storage:
    if request.param == "sqlite":
        return Storage({}, lambda: None)
    database = Database(request.getfixturevalue("postgres"), "upgraded")

    def migrate() -> None:
        code, output = database.run(*MIGRATE)
        assert code == 0, output

    return Storage(database.settings, migrate)


class OldClient:
    """Commands of the older Prefect that talk to the server."""

    def __init__(self, python: Path, api_url: str, home: Path) -> None:
        self._python = python
        self._env = os.environ | {"PREFECT_API_URL": api_url, "PREFECT_HOME": str(home)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self._python, CLIENT, *arguments],
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def prepare(self) -> dict[str, str]:
        process = self.start("prepare")
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        made: dict[str, str] = json.loads(output)
        return made


@eventually
def run_in_flight(client: SyncPrefectClient) -> FlowRun:
    (run,) = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["survives"])))
    assert run.state_type == StateType.RUNNING
    return run


@eventually
def scheduled_by_the_server(client: SyncPrefectClient, deployment_id: UUID) -> list[FlowRun]:
    only = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment_id]))
    runs = [run for run in client.read_flow_runs(flow_run_filter=only) if run.auto_scheduled]
    assert runs, "the scheduler has created no flow run"
    return runs


def test_an_upgrade_keeps_the_database_and_a_run_in_progress_completes(
    storage: Storage, old_python: Path, tmp_path: Path
) -> None:
    home, port, go = tmp_path / "server", services.free_port(), tmp_path / "go"
    url = f"http://127.0.0.1:{port}/api"
    old = OldClient(old_python, url, tmp_path / "client")
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        with services.prefect_server(home, python=old_python, port=port, **storage.settings):
            assert client.request("GET", "/admin/version").json() == "3.8.8"
            made = {name: UUID(id) for name, id in old.prepare().items()}
            survivor = old.start("survive", str(go))
            in_flight = run_in_flight(client)

        storage.migrate()
        # The local profile's server migrates at its start; the chart's does not.
        by_script = {"PREFECT_SERVER_DATABASE_MIGRATE_ON_START": str(not storage.settings)}
        with services.prefect_server(
            home, port=port, background_services=True, **storage.settings, **by_script
        ):
            assert client.request("GET", "/admin/version").json() == prefect.__version__
            assert client.read_flow_run(in_flight.id).state_type == StateType.RUNNING
            go.touch()
            _, errors = survivor.communicate(timeout=120)
            assert survivor.returncode == 0, errors
            assert client.read_flow_run(in_flight.id).state_type == StateType.COMPLETED

            assert client.read_flow_run(made["completed"]).state_type == StateType.COMPLETED
            only = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[made["completed"]]))
            assert "said by the old client" in [line.message for line in client.read_logs(only)]
            assert client.read_flow_run(made["scheduled"]).state_type == StateType.SCHEDULED
            (schedule,) = client.read_deployment(made["deployment"]).schedules
            assert isinstance(schedule.schedule, CronSchedule)
            assert schedule.schedule.cron == "0 9 * * *"
            block = "/block_types/slug/secret/block_documents/name/kept?include_secrets=true"
            assert client.request("GET", block).json()["data"] == {"value": "kept"}
            assert client.request("GET", "/variables/name/kept").json()["value"] == "value"
            assert scheduled_by_the_server(client, made["deployment"])
