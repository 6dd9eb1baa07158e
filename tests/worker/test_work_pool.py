"""How a worker waits for its work pool, against a real Prefect server."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prefect_kubernetes.worker import KubernetesWorker

from prefect_hamilton import logs
from prefect_hamilton.server.api import client
from prefect_hamilton.worker import work_pool
from tests import services

pytestmark = pytest.mark.services

PASSWORD = "prefect:of the server"
UNREACHABLE = "http://127.0.0.1:9/api"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    home = tmp_path_factory.mktemp("server")
    with services.prefect_server(home, PREFECT_SERVER_API_AUTH_STRING=PASSWORD) as server:
        yield server


@pytest.fixture
def api(server: services.Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setenv("PREFECT_API_URL", f"{server.url}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", PASSWORD)
    with client() as api:
        yield api


@contextmanager
def started(
    server: services.Service, home: Path, pool: str, *options: str
) -> Iterator[subprocess.Popen[str]]:
    """A worker as the chart starts it; it is ended by SIGTERM."""
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{server.url}/api",
        "PREFECT_API_AUTH_STRING": PASSWORD,
        "PREFECT_WORKER_WEBSERVER_PORT": str(services.free_port()),
        "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "INFO",
    }
    command = [sys.executable, "-u", "-m", "prefect_hamilton.worker", "start", "--type=kubernetes"]
    command += [f"--pool={pool}", "--no-create-pool-if-not-found", "--name=one", *options]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_worker_has_imported_everything_when_its_pool_is_created(
    server: services.Service, api: httpx.Client, tmp_path: Path
) -> None:
    with started(server, tmp_path, "a pool", "--with-healthcheck") as process:
        assert process.stdout
        first = process.stdout.readline()
        if sys.platform == "linux":
            # An extension module of what the worker imports last.
            assert "aiohttp" in Path(f"/proc/{process.pid}/maps").read_text()
        template = KubernetesWorker.get_default_base_job_template()
        pool = {"name": "a pool", "type": "kubernetes", "base_job_template": template}
        api.post("work_pools/", json=pool).raise_for_status()
        output = [process.stdout.readline() for _ in range(2)]

    assert first == "Waiting for work pool a pool: the bootstrap creates it.\n"
    assert output == ["The work pool a pool exists.\n", "Worker 'one' started!\n"]


def test_a_worker_that_waits_ends_at_sigterm(server: services.Service, tmp_path: Path) -> None:
    with started(server, tmp_path, "never created") as process:
        assert process.stdout
        process.stdout.readline()
        process.terminate()
        assert process.wait(timeout=30) == -signal.SIGTERM


def test_a_wrong_credential_is_reported(
    server: services.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{server.url}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "prefect:of another server")
    with client() as api:
        reason = work_pool.wait(api, "kubernetes", seconds=0)

    assert reason == f"{server.url}/api refuses the credential (401): check the Secret of `auth`."


def test_the_reason_is_printed_once_and_returned_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", UNREACHABLE)
    with client() as api:
        reason = work_pool.wait(api, "kubernetes", seconds=1.5)

    assert reason.startswith(f"Waiting for the Prefect API at {UNREACHABLE} (")
    assert capsys.readouterr().out == f"{reason}\n"


def test_an_api_key_is_sent_as_prefect_cloud_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", UNREACHABLE)
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_1")
    with client() as api:
        assert api.headers["Authorization"] == "Bearer pnu_1"


def test_the_wait_is_logged_as_json_where_log_lines_are(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api.post("work_pools/", json={"name": "of JSON", "type": "process"}).raise_for_status()
    monkeypatch.setenv(logs.VARIABLE, "json")
    work_pool.await_creation("of JSON")

    line = json.loads(capsys.readouterr().out)
    assert line["message"] == "The work pool of JSON exists."
    assert line["logger"] == "prefect_hamilton.worker.work_pool"
