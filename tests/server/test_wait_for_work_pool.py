"""The worker's init container, against a real Prefect server."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from prefect_hamilton.server import wait_for_work_pool
from prefect_hamilton.server.api import client
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


def test_it_ends_when_the_pool_is_created(api: httpx.Client) -> None:
    command = [sys.executable, "-m", "prefect_hamilton.server.wait_for_work_pool", "a pool"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = process.stdout.readline()
        api.post("work_pools/", json={"name": "a pool", "type": "process"}).raise_for_status()
        output, _ = process.communicate(timeout=60)

    assert first == "Waiting for work pool a pool: the bootstrap creates it.\n"
    assert (process.returncode, output) == (0, "The work pool a pool exists.\n")


def test_a_wrong_credential_is_reported(
    server: services.Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{server.url}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "prefect:of another server")
    with client() as api:
        reason = wait_for_work_pool.wait(api, "kubernetes", seconds=0)

    assert reason == f"{server.url}/api refuses the credential (401): check the Secret of `auth`."


def test_the_reason_is_printed_once_and_returned_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", UNREACHABLE)
    with client() as api:
        reason = wait_for_work_pool.wait(api, "kubernetes", seconds=1.5)

    assert reason.startswith(f"Waiting for the Prefect API at {UNREACHABLE} (")
    assert capsys.readouterr().out == f"{reason}\n"


def test_an_api_key_is_sent_as_prefect_cloud_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", UNREACHABLE)
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_1")
    with client() as api:
        assert api.headers["Authorization"] == "Bearer pnu_1"


def test_it_needs_no_prefect(tmp_path: Path) -> None:
    """The init container of each worker starts in a tenth of the time."""
    program = (
        "import sys; import prefect_hamilton.server.wait_for_work_pool; "
        "sys.exit('prefect' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False)
    assert done.returncode == 0
