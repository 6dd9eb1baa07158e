"""All pods of a pool's worker are one worker in Prefect, whether they end or are killed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests import services
from tests.chart import charts
from tests.profiles import wait_until
from tests.worker.conftest import Pool
from tests.worker.kubernetes_api import KubernetesApi

pytestmark = pytest.mark.services


@pytest.fixture
def arguments(pool: Pool) -> list[str]:
    """With which the chart starts the worker of the pool."""
    if not shutil.which("helm"):
        pytest.skip("helm is not on PATH")
    release = charts.render({"workers": {pool.name: {}}})
    [worker] = [
        o for o in release.of("Deployment") if charts.labels(o)[charts.COMPONENT] == "worker"
    ]
    found: list[str] = worker["spec"]["template"]["spec"]["containers"][0]["args"][1:]
    return found


def workers(pool: Pool) -> list[dict[str, Any]]:
    """What Prefect's UI lists for the pool."""
    found: list[dict[str, Any]] = pool.api.post(f"/work_pools/{pool.name}/workers/filter")
    return found


@contextmanager
def pod(pool: Pool, arguments: list[str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process that has started; it is killed."""
    env = {
        "HOME": str(home),
        "PREFECT_API_URL": f"{pool.server.url}/api",
        "PREFECT_WORKER_WEBSERVER_PORT": str(services.free_port()),
    }
    log = home / f"{uuid4()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=os.environ | env, stdout=output, stderr=output
        )
    try:
        wait_until(lambda: "started!" in log.read_text(), seconds=180)
        wait_until(lambda: bool(workers(pool)))
        yield process
    finally:
        process.kill()
        process.wait()


def test_pods_that_were_replaced_or_killed_leave_no_offline_workers(
    pool: Pool, arguments: list[str], kubernetes: KubernetesApi, tmp_path: Path
) -> None:
    with pod(pool, arguments, tmp_path) as old, pod(pool, arguments, tmp_path):
        old.terminate()
        old.wait(timeout=60)
        # The new one is killed.
    with pod(pool, arguments, tmp_path):
        [worker] = workers(pool)

    assert worker["status"] == "ONLINE"
