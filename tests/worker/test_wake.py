"""A worker takes a flow run up when an event announces it, without waiting for its next poll."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from unittest.mock import AsyncMock
from urllib.parse import urlsplit

import httpx
import pytest
from prefect.events.clients import PrefectEventSubscriber, get_events_subscriber

from prefect_hamilton.worker import wake
from prefect_hamilton.worker.wake import Wake
from prefect_hamilton.worker.worker import Worker
from tests.server.tcp_proxy import proxy
from tests.worker.conftest import Pool
from tests.worker.kubernetes_api import KubernetesApi
from tests.worker.test_worker import end, hearing, until, working

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


class Queries:
    """Counts a worker's queries for flow runs."""

    def __init__(self, worker: Worker) -> None:
        self.count = 0
        worker.client._client.event_hooks["request"].append(self._hear)

    async def _hear(self, request: httpx.Request) -> None:
        self.count += request.url.path.endswith("/get_scheduled_flow_runs")


@asynccontextmanager
async def polling(worker: Worker) -> AsyncIterator[None]:
    """The worker polls again and again, without a pause between two polls."""

    async def poll() -> None:
        while True:
            await worker.get_and_submit_flow_runs()
            await asyncio.sleep(0.01)

    polls = asyncio.create_task(poll())
    try:
        yield
    finally:
        polls.cancel()


async def until_quiet(worker: Worker) -> None:
    """Return when the worker listens, and has found nothing."""
    await until(lambda: worker._wake is not None and worker._wake.listens)
    await worker.get_and_submit_flow_runs()


async def test_polls_are_skipped_while_the_stream_is_open(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    async with hearing(pool) as worker:
        await until_quiet(worker)
        queries, polled = Queries(worker), worker._last_polled_time
        for _ in range(20):
            await worker.get_and_submit_flow_runs()
        assert queries.count <= 1
        assert worker._last_polled_time > polled, "the worker would be restarted"


async def test_no_poll_is_skipped_without_the_stream(pool: Pool, kubernetes: KubernetesApi) -> None:
    async with working(pool) as worker:
        queries = Queries(worker)
        for _ in range(3):
            await worker.get_and_submit_flow_runs()
    assert queries.count == 3


async def test_a_run_whose_time_comes_is_found_while_polls_are_skipped(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    async with hearing(pool, prefetch_seconds=1) as worker, polling(worker):
        await until_quiet(worker)
        pool.new_run(in_seconds=3)
        await until(lambda: len(kubernetes.jobs) == 1)


async def test_polls_find_what_a_hanging_stream_misses(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(urlsplit(pool.server.url).port or 0) as path:
        monkeypatch.setattr(
            wake,
            "get_events_subscriber",
            partial(PrefectEventSubscriber, f"http://127.0.0.1:{path.port}/api"),
        )
        async with hearing(pool, prefetch_seconds=1) as worker, polling(worker):
            await until_quiet(worker)
            path.silence()
            pool.new_run()
            await until(lambda: len(kubernetes.jobs) == 1)
            assert worker._wake is not None
            assert worker._wake.listens, "the worker has seen that the stream hangs"


async def test_the_end_of_a_run_leaves_its_slot_to_the_next(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    """This worker never polls."""
    pool.limit(1)
    async with hearing(pool) as worker:
        first = pool.new_run()
        await until(lambda: len(kubernetes.jobs) == 1)
        pool.new_run()
        await until(lambda: first not in worker._submitting_flow_run_ids)
        end(pool, first)
        await until(lambda: len(kubernetes.jobs) == 2)


async def test_a_poll_takes_up_what_the_limit_of_the_worker_left(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    async with hearing(pool, limit=1) as worker:
        await until_quiet(worker)
        worker.limiter.acquire_on_behalf_of_nowait("another run")
        queries = Queries(worker)
        pool.new_run()
        await until(lambda: queries.count > 0)
        worker.limiter.release_on_behalf_of("another run")
        await until_quiet(worker)
        await until(lambda: len(kubernetes.jobs) == 1)
