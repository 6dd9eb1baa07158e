"""Runs without a Job are rescheduled or crashed; healthy runs are not changed.

Each test is what a worker finds that was away.
"""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest
from kubernetes_asyncio.client import V1Job
from prefect.client.orchestration import PrefectClient, get_client

from prefect_hamilton.states import NOT_RESCHEDULED
from prefect_hamilton.worker import kubernetes as worker_kubernetes
from prefect_hamilton.worker import sweep, takers
from prefect_hamilton.worker.standby import OWNER_NAME
from prefect_hamilton.worker.sweep import Sweep
from prefect_hamilton.worker.verdicts import NOT_STARTED, UNREPORTED
from tests.worker.conftest import Pool
from tests.worker.kubernetes_api import KubernetesApi
from tests.worker.test_worker import end, take_up, working

pytestmark = [pytest.mark.services, pytest.mark.anyio]

LOGGER = logging.getLogger("tests.sweep")


@pytest.fixture
async def client(pool: Pool) -> AsyncIterator[PrefectClient]:
    async with get_client() as client:
        yield client


def sweep_of(pool: Pool, client: PrefectClient) -> Sweep:
    return Sweep(client, pool.name, LOGGER, grace_seconds=0)


async def with_job(pool: Pool) -> UUID:
    """A run whose worker has made its Job and is gone."""
    run = pool.new_run()
    async with working(pool) as worker:
        await take_up(worker, run)
    return run


async def test_a_run_whose_worker_died_before_the_job_is_rescheduled_once(
    pool: Pool, client: PrefectClient, kubernetes: KubernetesApi
) -> None:
    run = pool.new_run()
    pool.api.propose(run, "PENDING")
    pool.api.propose(run, "PENDING", name="Submitting")

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(sweep_of(pool, client).sweep)

    assert pool.api.states(run) == ["SCHEDULED", "PENDING", "PENDING", "SCHEDULED"]
    async with working(pool) as worker:
        await take_up(worker, run)
    assert len(kubernetes.jobs) == 1


async def test_a_later_attempt_without_a_job_is_rescheduled(
    pool: Pool, client: PrefectClient, kubernetes: KubernetesApi
) -> None:
    run = await with_job(pool)
    pool.api.propose(run, "RUNNING")
    pool.api.propose(run, "SCHEDULED", name="AwaitingRetry")
    [job] = kubernetes.jobs
    kubernetes.finish(job, "Failed")
    pool.api.propose(run, "PENDING")

    await sweep_of(pool, client).sweep()

    assert pool.api.state(run)["name"] == "AwaitingRetry"


@pytest.mark.parametrize("is_deleted", [True, False])
async def test_a_running_run_whose_job_is_gone_crashes(
    pool: Pool, client: PrefectClient, kubernetes: KubernetesApi, is_deleted: bool
) -> None:
    run = await with_job(pool)
    pool.api.propose(run, "RUNNING")
    [job] = kubernetes.jobs
    kubernetes.finish(job, "Failed")
    if is_deleted:
        kubernetes.jobs.clear()

    await sweep_of(pool, client).sweep()

    state = pool.api.state(run)
    assert (state["type"], state["message"]) == ("CRASHED", sweep.GONE)


async def test_a_running_run_whose_pod_was_ended_while_the_api_was_away_waits_again(
    pool: Pool, client: PrefectClient, kubernetes: KubernetesApi
) -> None:
    run = await with_job(pool)
    pool.api.propose(run, "RUNNING")
    [job] = kubernetes.jobs
    kubernetes.fail_by_rule(job, NOT_RESCHEDULED)

    await sweep_of(pool, client).sweep()

    state = pool.api.state(run)
    assert (state["name"], state["message"]) == ("AwaitingRetry", UNREPORTED)


@pytest.mark.parametrize("is_gone", [True, False])
async def test_a_run_whose_pod_is_gone_between_two_tries_of_its_flow_is_taken_up_again(
    pool: Pool, client: PrefectClient, kubernetes: KubernetesApi, is_gone: bool
) -> None:
    run = await with_job(pool)
    pool.api.propose(run, "RUNNING")
    pool.api.patch(f"/flow_runs/{run}", empirical_policy={"retries": 1, "retry_delay": 3600})
    assert pool.api.propose(run, "FAILED") == "REJECT"
    due = pool.api.state(run)["state_details"]["scheduled_time"]
    [job] = kubernetes.jobs
    if is_gone:
        kubernetes.finish(job, "Failed")

    await sweep_of(pool, client).sweep()

    state = pool.api.state(run)
    assert (state["message"] == sweep.NOT_RETRIED) is is_gone
    assert state["state_details"]["scheduled_time"] == due
    found = await client.get_scheduled_flow_runs_for_work_pool(pool.name)
    assert [each.flow_run.id for each in found] == ([run] if is_gone else [])


async def test_every_run_is_looked_at_also_beside_what_cannot_be_settled(
    pool: Pool,
    client: PrefectClient,
    kubernetes: KubernetesApi,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There are more runs than the server returns at once, and one cannot be read."""
    runs = [pool.new_run() for _ in range(5)]
    for run in runs:
        pool.api.propose(run, "PENDING")
    other = await with_job(pool)
    [job] = kubernetes.jobs
    kubernetes.jobs[job]["metadata"]["labels"]["prefect.io/flow-run-id"] = "by-hand"
    monkeypatch.setattr(sweep, "PAGE", 2)
    unreadable = runs[2]
    read = client.read_flow_run_states

    async def read_flow_run_states(run: UUID) -> Any:
        if run == unreadable:
            raise OSError("broken")
        return await read(run)

    monkeypatch.setattr(client, "read_flow_run_states", read_flow_run_states)

    await sweep_of(pool, client).sweep()

    settled = {run for run in [*runs, other] if pool.api.state(run)["type"] == "SCHEDULED"}
    assert settled == {*runs, other} - {unreadable}
    assert "which has no Job: OSError: broken" in caplog.text


@pytest.mark.parametrize("condition", ["Complete", "Failed"])
async def test_a_run_whose_job_ended_before_its_flow_started_waits_again(
    pool: Pool, client: PrefectClient, kubernetes: KubernetesApi, condition: str
) -> None:
    run = await with_job(pool)
    pool.api.propose(run, "PENDING", name="InfrastructurePending")
    [job] = kubernetes.jobs
    kubernetes.finish(job, condition)
    if condition == "Complete":
        kubernetes.add_pod(job, 0, "Completed")

    await sweep_of(pool, client).sweep()

    state = pool.api.state(run)
    assert state["name"] == "AwaitingRetry"
    assert state["message"].startswith(NOT_STARTED)


async def test_a_pod_that_failed_by_itself_before_its_flow_started_is_a_crash(
    pool: Pool, client: PrefectClient, kubernetes: KubernetesApi
) -> None:
    run = await with_job(pool)
    [job] = kubernetes.jobs
    kubernetes.finish(job, "Failed")
    kubernetes.add_pod(job, 1)

    await sweep_of(pool, client).sweep()

    state = pool.api.state(run)
    assert state["type"] == "CRASHED"
    assert state["message"].endswith("ended with exit code 1 (Error).")


async def test_runs_with_a_job_ended_runs_and_runs_of_other_pools_are_unchanged(
    pool: Pool, client: PrefectClient, kubernetes: KubernetesApi
) -> None:
    waits, runs, ended = [await with_job(pool) for _ in range(3)]
    pool.api.propose(runs, "RUNNING")
    end(pool, ended)
    foreign = await with_job(pool)
    pool.api.propose(foreign, "RUNNING")
    [its_job] = [
        name
        for name, job in kubernetes.jobs.items()
        if job["metadata"]["labels"]["prefect.io/flow-run-id"] == str(foreign)
    ]
    del kubernetes.jobs[its_job]
    await client.update_flow_run_labels(foreign, {sweep.LOCATION_LABEL: "another/default"})
    other_pool = Pool(pool.server)
    other = other_pool.new_run()
    other_pool.api.propose(other, "PENDING")
    before = [pool.api.state(run) for run in (waits, runs, ended, foreign, other)]

    await sweep_of(pool, client).sweep()

    assert [pool.api.state(run) for run in (waits, runs, ended, foreign, other)] == before


async def test_the_grace_period_starts_at_the_latest_state(
    pool: Pool, client: PrefectClient, kubernetes: KubernetesApi
) -> None:
    run = pool.new_run()
    pool.api.propose(run, "PENDING")
    now = 0.0
    patient = Sweep(client, pool.name, LOGGER, clock=lambda: now)

    await patient.sweep()
    now += sweep.GRACE_SECONDS - 1
    pool.api.propose(run, "PENDING", name="Submitting")
    await patient.sweep()
    now += sweep.GRACE_SECONDS - 1
    await patient.sweep()
    assert pool.api.state(run)["name"] == "Submitting"

    now += 1
    await patient.sweep()
    assert pool.api.state(run)["name"] == "AwaitingRetry"


@pytest.fixture
def this(
    tmp_path: Path, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> takers.Taker:
    """This process is in a pod of the cluster."""
    (tmp_path / "namespace").write_text("default")
    (tmp_path / "ca.crt").write_text(kubernetes.url)
    monkeypatch.setattr(takers, "FOLDER", tmp_path)
    monkeypatch.setenv(OWNER_NAME, "this")
    found = takers.Taker.this()
    assert found is not None
    return found


async def taken_up(pool: Pool, client: PrefectClient, taker: takers.Taker) -> UUID:
    """A run that a worker took up, and for which it has created no Job."""
    run = pool.new_run()
    await client.set_flow_run_state(run, taker.pending())
    pool.api.propose(run, "PENDING", name="Submitting")
    return run


async def test_a_run_of_a_process_that_is_gone_waits_again_at_once(
    pool: Pool, client: PrefectClient, kubernetes: KubernetesApi, this: takers.Taker
) -> None:
    kubernetes.workers = {"alive": "Running", "evicted": "Failed"}
    gone = [
        await taken_up(pool, client, replace(this, pod="deleted")),
        await taken_up(pool, client, replace(this, pod="evicted")),
        await taken_up(pool, client, replace(this, process="before")),
    ]
    kept = [
        await taken_up(pool, client, this),
        await taken_up(pool, client, replace(this, pod="alive")),
        await taken_up(pool, client, replace(this, pod="a", cluster="another")),
        await taken_up(pool, client, replace(this, pod="b", namespace="another")),
    ]

    await Sweep(client, pool.name, LOGGER).sweep()

    for run in gone:
        state = pool.api.state(run)
        assert (state["name"], state["message"]) == ("AwaitingRetry", sweep.ABANDONED)
    assert {pool.api.state(run)["name"] for run in kept} == {"Submitting"}


@pytest.mark.parametrize("grace_seconds", [0, sweep.GRACE_SECONDS])
async def test_a_run_that_waits_again_keeps_its_place(
    pool: Pool,
    client: PrefectClient,
    kubernetes: KubernetesApi,
    this: takers.Taker,
    grace_seconds: float,
) -> None:
    first = await taken_up(pool, client, replace(this, pod="deleted"))
    second = pool.new_run()

    await Sweep(client, pool.name, LOGGER, grace_seconds=grace_seconds).sweep()

    due = await client.get_scheduled_flow_runs_for_work_pool(pool.name)
    assert [each.flow_run.id for each in due] == [first, second]


async def test_a_worker_that_may_not_list_its_pods_waits_for_the_grace(
    pool: Pool, client: PrefectClient, this: takers.Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await taken_up(pool, client, replace(this, pod="deleted"))
    monkeypatch.delenv(OWNER_NAME)

    await Sweep(client, pool.name, LOGGER).sweep()

    assert pool.api.state(run)["name"] == "Submitting"


async def test_a_job_of_the_last_request_of_a_killed_pod_keeps_its_run(
    pool: Pool,
    client: PrefectClient,
    this: takers.Taker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was created after the sweep had listed the Jobs."""
    with monkeypatch.context() as patch:
        patch.setenv(OWNER_NAME, "deleted")
        run = await with_job(pool)
    jobs_of_flow_runs, listed = worker_kubernetes.jobs_of_flow_runs, []

    async def jobs(*arguments: Any) -> list[V1Job]:
        listed.append(await jobs_of_flow_runs(*arguments))
        return listed[-1] if len(listed) > 1 else []

    monkeypatch.setattr(worker_kubernetes, "jobs_of_flow_runs", jobs)
    await Sweep(client, pool.name, LOGGER).sweep()

    assert len(listed) == 2
    assert pool.api.state(run)["name"] != "AwaitingRetry"


async def test_a_worker_sweeps_its_pool_periodically(
    pool: Pool,
    client: PrefectClient,
    kubernetes: KubernetesApi,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep, "INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(Sweep.__init__, "__kwdefaults__", {"grace_seconds": 0, "clock": lambda: 0})
    run = pool.new_run()
    pool.api.propose(run, "PENDING")

    async with working(pool):
        with anyio.fail_after(60):
            while pool.api.state(run)["name"] != "AwaitingRetry":
                await anyio.sleep(0.1)
