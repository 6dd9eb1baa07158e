"""What a worker serves to Prometheus about its work."""

import time

import httpx
import pytest
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from prefect_hamilton.worker import metrics, pod_security
from prefect_hamilton.worker.worker import Worker
from tests import services
from tests.worker.conftest import Pool, Served
from tests.worker.kubernetes_api import KubernetesApi
from tests.worker.test_worker import outlast_an_outage, take_up, until, working

pytestmark = [pytest.mark.services, pytest.mark.anyio]

DELAY = "prefect_worker_submission_delay_seconds"
LAST_POLL = "prefect_worker_last_poll_timestamp_seconds"


async def test_a_flow_run_is_submitted_some_time_after_it_was_due(
    pool: Pool, kubernetes: KubernetesApi, served: Served
) -> None:
    async with working(pool, prefetch_seconds=7200) as worker:
        assert served.submissions(pool) == (0, 0)
        late, early = pool.new_run(in_seconds=-30), pool.new_run(in_seconds=3600)
        await take_up(worker, late)
        await take_up(worker, early)

        assert len(kubernetes.jobs) == 2
        assert served.submissions(pool) == (2, 0)
        assert served.value(f"{DELAY}_count", work_pool=pool.name) == 2
        assert served.value(f"{DELAY}_sum", work_pool=pool.name) >= 30
        # A flow run that is prepared before its time has no delay.
        assert served.value(f"{DELAY}_bucket", work_pool=pool.name, le="1.0") == 1


async def test_a_retry_counts_from_its_own_time(
    pool: Pool, kubernetes: KubernetesApi, served: Served
) -> None:
    async with working(pool) as worker:
        run = pool.new_run(in_seconds=-600)
        pool.api.propose(run, "PENDING")
        pool.api.propose(run, "SCHEDULED", name="AwaitingRetry")
        await take_up(worker, run)

        assert served.value(f"{DELAY}_count", work_pool=pool.name) == 1
        assert served.value(f"{DELAY}_sum", work_pool=pool.name) < 600


async def test_a_run_that_kubernetes_refuses_is_not_submitted(
    pool: Pool, kubernetes: KubernetesApi, served: Served
) -> None:
    async with working(pool) as worker:
        kubernetes.is_full = True
        run = pool.new_run()
        await take_up(worker, run)
        await until(lambda: pool.api.state(run)["type"] == "CRASHED")

        assert served.submissions(pool) == (0, 1)
        assert served.value(f"{DELAY}_count", work_pool=pool.name) == 0


async def test_a_run_that_breaks_a_rule_is_not_submitted(
    pool: Pool, kubernetes: KubernetesApi, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(pod_security.SERVICE_ACCOUNTS, "only-this")
    async with working(pool) as worker:
        run = pool.new_run()
        await take_up(worker, run)
        await until(lambda: pool.api.state(run)["type"] == "CRASHED")

        assert served.submissions(pool) == (0, 1)


async def test_each_try_of_an_outage_is_a_submission_that_failed(
    pool: Pool, kubernetes: KubernetesApi, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_KUBERNETES_WORKER_CREATE_JOB_RETRY_MAX_RETRIES", "1")
    async with working(pool) as worker:
        await outlast_an_outage(worker, pool, kubernetes)

        assert served.submissions(pool) == (1, 1)


async def test_a_run_that_no_longer_waits_is_no_submission(
    pool: Pool, kubernetes: KubernetesApi, served: Served
) -> None:
    async with working(pool) as worker:
        run = pool.new_run()
        [found] = await worker._get_scheduled_flow_runs()
        assert await worker._propose_pending_state(found.flow_run)
        pool.api.propose(run, "CANCELLED")
        await worker._submit_run_and_capture_errors(found.flow_run)

        assert not kubernetes.jobs
        assert served.submissions(pool) == (0, 0)


async def test_a_poll_is_one_that_the_api_has_answered(
    pool: Pool, kubernetes: KubernetesApi, served: Served
) -> None:
    async with working(pool) as worker:
        before = time.time()
        await worker.get_and_submit_flow_runs()
        polled = served.value(LAST_POLL, work_pool=pool.name)
        assert before <= polled <= time.time()

        await fail_to_poll(worker)
        assert served.value(LAST_POLL, work_pool=pool.name) == polled


async def fail_to_poll(worker: Worker) -> None:
    """Poll an API that is not there."""
    address, worker.client._client.base_url = (
        worker.client._client.base_url,
        httpx.URL(f"http://127.0.0.1:{services.free_port()}/api"),
    )
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), pytest.raises(httpx.ConnectError):
        await worker.get_and_submit_flow_runs()
    worker.client._client.base_url = address


async def test_no_label_tells_which_run_it_was(
    pool: Pool, kubernetes: KubernetesApi, served: Served
) -> None:
    async with working(pool) as worker:
        run = pool.new_run()
        await take_up(worker, run)
        name = pool.api.get(f"/flow_runs/{run}")["name"]

        assert str(run) not in served.text()
        assert name not in served.text()


async def test_without_a_port_nothing_is_served(
    pool: Pool, kubernetes: KubernetesApi, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(metrics.PORT)
    async with working(pool):
        with pytest.raises(httpx.ConnectError):
            served.text()
