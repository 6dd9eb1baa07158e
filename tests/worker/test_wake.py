"""A worker takes a flow run up when an event announces it, without waiting for its next poll."""

import asyncio
import logging
from unittest.mock import AsyncMock
from urllib.parse import urlsplit

import pytest
from prefect.events.clients import get_events_subscriber

from prefect_hamilton.worker import wake
from prefect_hamilton.worker.wake import Wake
from tests.server.tcp_proxy import proxy
from tests.worker.conftest import Pool
from tests.worker.kubernetes_api import KubernetesApi
from tests.worker.test_worker import hearing, until

pytestmark = [pytest.mark.services, pytest.mark.anyio]


async def test_a_worker_is_notified_of_new_and_rescheduled_runs(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    """This worker never polls."""
    async with hearing(pool) as worker:
        run = pool.new_run()
        await until(lambda: len(kubernetes.jobs) == 1)
        await until(lambda: run not in worker._submitting_flow_run_ids)

        pool.api.propose(run, "RUNNING")
        pool.api.propose(run, "SCHEDULED", name="AwaitingRetry")

        await until(lambda: len(kubernetes.jobs) == 2)


async def test_a_burst_is_submitted_once_each(pool: Pool, kubernetes: KubernetesApi) -> None:
    async with hearing(pool), hearing(pool):
        runs = {str(pool.new_run()) for _ in range(4)}
        await until(lambda: len(kubernetes.jobs) >= 4)
    of_runs = [
        job["metadata"]["labels"]["prefect.io/flow-run-id"] for job in kubernetes.jobs.values()
    ]
    assert sorted(of_runs) == sorted(runs)


async def test_only_runs_of_its_pool_are_heard(pool: Pool) -> None:
    other = Pool(pool.server)
    of_pool = Wake(pool.name, AsyncMock(), logging.getLogger())._filter
    runs: set[str] = set()
    async with get_events_subscriber(of_pool) as events:
        heard = asyncio.ensure_future(anext(events))
        # The server subscribes some time after it has received the filter.
        while not heard.done():
            other.new_run()
            runs.add(f"prefect.flow-run.{pool.new_run()}")
            await asyncio.wait([heard], timeout=0.5)
    assert heard.result().resource.id in runs


async def test_a_stream_that_breaks_is_opened_again(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wake, "RECONNECT_SECONDS", 0.1)
    port = urlsplit(pool.server.url).port or 0
    with proxy(port) as path:
        async with hearing(pool, f"http://127.0.0.1:{path.port}"):
            pool.new_run()
            await until(lambda: len(kubernetes.jobs) == 1)
            path.refuse()
            path.listen()
            pool.new_run()
            await until(lambda: len(kubernetes.jobs) == 2)
