"""A worker takes a flow run up when it hears of it, without waiting for its next poll."""

from urllib.parse import urlsplit

import pytest

from prefect_hamilton.worker import wake
from tests.server.tcp_proxy import proxy
from tests.worker.conftest import Pool
from tests.worker.kubernetes_api import KubernetesApi
from tests.worker.test_worker import hearing, until

pytestmark = [pytest.mark.services, pytest.mark.anyio]


async def test_a_new_run_and_a_rescheduled_one_are_heard(
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


async def test_runs_of_another_pool_are_not_looked_for(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    other = Pool(pool.server)
    async with hearing(pool) as worker, hearing(other):
        # Its first look is for what waited before the stream.
        began = worker._last_polled_time
        await until(lambda: worker._last_polled_time != began)
        before = worker._last_polled_time
        other.new_run()
        await until(lambda: len(kubernetes.jobs) == 1)
        assert worker._last_polled_time == before


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
