"""What `helm test` runs, against a real Prefect server and a real Hamilton UI."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests import services

pytestmark = pytest.mark.services

PASSWORD = "prefect:of the server"
KEY = "key of the Hamilton UI"


def run(*pools: str, **env: str) -> tuple[int, list[str]]:
    """Exit code and lines of the program."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect_hamilton.server.check_release", *pools],
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_a_server_is_ready_when_a_worker_of_each_pool_is_online(tmp_path: Path) -> None:
    with services.prefect_server(tmp_path, PREFECT_SERVER_API_AUTH_STRING=PASSWORD) as server:
        url = f"{server.url}/api"
        settings = {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": PASSWORD}
        with httpx.Client(base_url=url, auth=("prefect", "of the server")) as api:
            api.post("work_pools/", json={"name": "pool", "type": "kubernetes"}).raise_for_status()
            before = run("pool", "other", **settings)
            path = "work_pools/pool/workers/heartbeat"
            api.post(path, json={"name": "a worker"}).raise_for_status()
            after = run("pool", **settings)

    refuses = "ok      the Prefect API refuses requests without a password"
    assert before[0] == 1
    assert before[1][0] == refuses
    assert before[1][1].startswith("FAILED  work pool pool is ready: 200 {")
    assert before[1][2].startswith("FAILED  work pool other is ready: 404 ")
    assert after == (0, [refuses, "ok      work pool pool is ready"])


def test_the_hamilton_ui_answers_to_its_key_alone(tmp_path: Path) -> None:
    with services.hamilton_ui(tmp_path, global_key=KEY) as ui:
        well = run(HAMILTON_API_URL=ui.url, HAMILTON_API_KEY=KEY)
        wrong = run(HAMILTON_API_URL=ui.url, HAMILTON_API_KEY="of another one")

    refuses = "ok      the Hamilton UI refuses requests without a key"
    assert well == (0, [refuses, "ok      the Hamilton UI answers"])
    assert wrong[0] == 1
    assert wrong[1][1].startswith("FAILED  the Hamilton UI answers: 401")


def test_what_does_not_answer_is_reported() -> None:
    code, lines = run("pool", PREFECT_API_URL="http://127.0.0.1:9/api")

    assert code == 1
    assert lines == ["FAILED  work pool pool is ready: [Errno 111] Connection refused"]
