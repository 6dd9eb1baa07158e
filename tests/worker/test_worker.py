"""A flow run gets one Job for each attempt that it waits for, whatever its worker goes through."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
import anyio
import httpx
import pytest
import tenacity
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_hamilton.flow_pod import attempt
from prefect_hamilton.states import CLAIM
from prefect_hamilton.worker import attempts, taking_up, wake
from prefect_hamilton.worker import kubernetes as worker_kubernetes
from prefect_hamilton.worker import worker as worker_module
from prefect_hamilton.worker.taking_up import WAITS
from prefect_hamilton.worker.worker import OUT_OF_TIME, Worker
from tests import services
from tests.server.tcp_proxy import TcpProxy, proxy
from tests.worker.conftest import Pool
from tests.worker.kubernetes_api import KubernetesApi

pytestmark = [pytest.mark.services, pytest.mark.anyio]


@asynccontextmanager
async def hearing(pool: Pool, api_url: str | None = None, **options: Any) -> AsyncIterator[Worker]:
    """A worker of the pool, which looks for flow runs when it hears of one."""
    url = f"{api_url or pool.server.url}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        options |= {"work_pool_name": pool.name, "create_pool_if_not_found": False}
        async with Worker(**options) as worker:
            yield worker


@asynccontextmanager
async def working(pool: Pool, api_url: str | None = None, **options: Any) -> AsyncIterator[Worker]:
    """A worker without a stream of events, which polls when the test calls it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wake, "get_events_subscriber", Mock(side_effect=ConnectionError))
        async with hearing(pool, api_url, **options) as worker:
            yield worker


async def take_up(worker: Worker, run: UUID) -> None:
    """Poll and submit, to the end of the submission."""
    await worker.get_and_submit_flow_runs()
    await until(lambda: run not in worker._submitting_flow_run_ids)


async def until(condition: Callable[[], bool]) -> None:
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_result(lambda holds: not holds),
        stop=tenacity.stop_after_delay(60),
        wait=tenacity.wait_fixed(0.05),
    )

    async def ask() -> bool:
        return condition()

    await retrying(ask)


def end(pool: Pool, run: UUID) -> None:
    """What the flow's pod does."""
    for state in ("RUNNING", "COMPLETED"):
        assert pool.api.propose(run, state) == "ACCEPT"


@pytest.fixture
def slow_path(pool: Pool) -> Iterator[TcpProxy]:
    """A way to the pool's server on which requests can be held."""
    with proxy(urlsplit(pool.server.url).port or 0) as path:
        yield path


async def hold_take_up(path: TcpProxy, pool: Pool, kubernetes: KubernetesApi) -> UUID:
    """Worker A's Pending hangs, B runs the flow run to its end, A's Pending arrives."""
    async with working(pool, f"http://127.0.0.1:{path.port}") as a, working(pool) as b:
        run = pool.new_run()
        found = await a._get_scheduled_flow_runs()
        path.hold(b"/set_state")
        submission = asyncio.create_task(a._submit_run(found[0].flow_run))
        a._submitting_flow_run_ids.add(run)
        await take_up(b, run)
        end(pool, run)
        path.speak()
        await submission
    return run


async def test_a_delayed_pending_request_creates_no_second_job(
    pool: Pool, slow_path: TcpProxy, kubernetes: KubernetesApi
) -> None:
    run = await hold_take_up(slow_path, pool, kubernetes)

    assert len(kubernetes.jobs) == 1
    states = pool.api.states(run)
    assert states[0] == "SCHEDULED"
    assert set(states[1:-2]) == {"PENDING"}
    assert states[-2:] == ["RUNNING", "COMPLETED"]


async def test_the_final_state_is_restored_on_a_plain_prefect_server(
    prefect_server: services.Service, kubernetes: KubernetesApi
) -> None:
    pool = Pool(prefect_server)
    with proxy(urlsplit(prefect_server.url).port or 0) as path:
        run = await hold_take_up(path, pool, kubernetes)

    assert len(kubernetes.jobs) == 1
    assert pool.api.state(run)["type"] == "COMPLETED"


@pytest.mark.parametrize("known_by", ["condition", "time", ""])
async def test_a_flow_whose_pod_was_ended_by_its_deadline_is_not_executed_again(
    pool: Pool, kubernetes: KubernetesApi, known_by: str
) -> None:
    """The pod, which is ended like any other, has rescheduled its run."""
    run = pool.new_run()
    async with working(pool) as worker:
        await take_up(worker, run)
        [job] = kubernetes.jobs.values()
        job["spec"]["activeDeadlineSeconds"] = 3600
        age = timedelta(seconds=3601 if known_by == "time" else 60)
        job["status"] = {"startTime": (datetime.now(UTC) - age).isoformat()}
        if known_by == "condition":
            kubernetes.finish(job["metadata"]["name"], "FailureTarget", "DeadlineExceeded")
        pool.api.propose(run, "RUNNING")
        pool.api.propose(run, "SCHEDULED", name="AwaitingRetry")
        await take_up(worker, run)

    state = pool.api.state(run)
    if known_by:
        assert (state["type"], state["message"]) == ("CRASHED", OUT_OF_TIME.format(3600))
    assert len(kubernetes.jobs) == (1 if known_by else 2)


async def test_a_run_waits_for_the_pod_of_a_job_that_was_deleted(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes deletes the Job at once; its pod has rescheduled the run and is ending."""
    monkeypatch.setattr(worker_module, "END_SECONDS", 60)
    pods_with, seen = worker_kubernetes.pods_with, []

    async def pods(*arguments: Any) -> Any:
        seen.append(found := await pods_with(*arguments))
        return found

    monkeypatch.setattr(worker_kubernetes, "pods_with", pods)
    run = pool.new_run()
    async with working(pool) as worker:
        await take_up(worker, run)
        [former] = kubernetes.jobs
        kubernetes.start_pods()
        pod = kubernetes.pod(former)
        pool.api.propose(run, "RUNNING")
        del kubernetes.jobs[former]
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        pool.api.propose(run, "SCHEDULED", name="AwaitingRetry")
        await worker.get_and_submit_flow_runs()
        await until(lambda: len(seen) > 1)
        assert not kubernetes.jobs
        kubernetes.end_pod(former)
        await until(lambda: run not in worker._submitting_flow_run_ids)

    assert len(kubernetes.jobs) == 1


@pytest.mark.parametrize("changed", ["", "CANCELLED"])
async def test_a_run_begins_again_when_its_former_pod_has_ended(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    monkeypatch.setattr(worker_module, "END_SECONDS", 60)
    jobs_of_flow_runs, asked = worker_kubernetes.jobs_of_flow_runs, []

    async def jobs(*arguments: Any) -> Any:
        asked.append(arguments)
        return await jobs_of_flow_runs(*arguments)

    monkeypatch.setattr(worker_kubernetes, "jobs_of_flow_runs", jobs)
    run = pool.new_run()
    async with working(pool) as worker:
        await take_up(worker, run)
        [former] = kubernetes.jobs
        pool.api.propose(run, "RUNNING")
        pool.api.propose(run, "SCHEDULED", name="AwaitingRetry")
        await worker.get_and_submit_flow_runs()
        await until(lambda: len(asked) > 1)
        assert list(kubernetes.jobs) == [former]
        if changed:
            pool.api.propose(run, changed)
        kubernetes.finish(former, "Complete")
        await until(lambda: run not in worker._submitting_flow_run_ids)

    assert len(kubernetes.jobs) == (1 if changed else 2)


async def test_a_worker_that_was_stopped_makes_no_job_for_a_later_attempt(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    """Between its Pending and its Job, the run was rescheduled and taken up by another."""
    async with working(pool) as stopped, working(pool) as other:
        run = pool.new_run()
        [found] = await stopped._get_scheduled_flow_runs()
        assert await stopped._propose_pending_state(found.flow_run)
        pool.api.propose(run, "SCHEDULED", name="AwaitingRetry")
        await take_up(other, run)
        state = pool.api.state(run)

        await stopped._submit_run_and_capture_errors(found.flow_run)

    assert len(kubernetes.jobs) == 1
    assert pool.api.state(run) == state


async def test_of_two_workers_that_find_a_run_one_takes_it_up(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    """The server refuses the second Pending and answers with the first worker's state."""
    async with working(pool) as a, working(pool) as b:
        run = pool.new_run()
        [found] = await b._get_scheduled_flow_runs()
        assert await a._propose_pending_state(found.flow_run)

        assert not await b._propose_pending_state(found.flow_run)

    assert run in a._attempts
    assert run not in b._attempts


@pytest.mark.usefixtures("kubernetes")
async def test_a_run_has_the_labels_that_prefects_worker_sets(pool: Pool) -> None:
    async with working(pool) as worker:
        run, other = pool.new_run(), pool.new_run(in_seconds=600)
        await take_up(worker, run)
        await worker._give_worker_labels_to_flow_run(other)

    def of_worker(run: UUID) -> dict[str, Any]:
        labels: dict[str, Any] = pool.api.get(f"/flow_runs/{run}")["labels"]
        own = ("prefect.worker.", "prefect.work-pool.")
        return {name: value for name, value in labels.items() if name.startswith(own)}

    assert len(of_worker(other)) == 4
    assert of_worker(run) == of_worker(other)


async def test_attempts_in_quick_succession_have_separate_jobs(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    async with working(pool) as worker:
        run = pool.new_run()
        await take_up(worker, run)
        pool.api.propose(run, "RUNNING")
        pool.api.propose(run, "SCHEDULED", name="AwaitingRetry")
        await take_up(worker, run)

    assert len(kubernetes.jobs) == 2
    attempts_of = {
        job["metadata"]["labels"][attempts.ATTEMPT_LABEL]: job["spec"]["template"]["spec"]
        for job in kubernetes.jobs.values()
    }
    assert len(attempts_of) == 2
    # Its pod says in its requests which one it has.
    for taken_up, pod in attempts_of.items():
        variable = {"name": attempt.VARIABLE, "value": f"{run}:{taken_up}"}
        assert variable in pod["containers"][0]["env"]


async def outlast_an_outage(worker: Worker, pool: Pool, kubernetes: KubernetesApi) -> UUID:
    """A run that is taken up while Kubernetes is away, and again when it is back."""
    run = pool.new_run()
    kubernetes.is_away = True
    await take_up(worker, run)
    await until(lambda: pool.api.state(run)["name"] == "AwaitingRetry")
    kubernetes.is_away = False
    await take_up(worker, run)
    return run


async def test_a_run_waits_while_kubernetes_is_away(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_KUBERNETES_WORKER_CREATE_JOB_RETRY_MAX_RETRIES", "1")
    async with working(pool) as worker:
        run = await outlast_an_outage(worker, pool, kubernetes)

    assert len(kubernetes.jobs) == 1
    assert pool.api.state(run)["type"] == "PENDING"


@pytest.mark.parametrize(("before", "seconds"), [(0, 1), (4, 16), (9, 60)])
async def test_each_outage_in_a_row_doubles_the_wait(
    pool: Pool, kubernetes: KubernetesApi, before: int, seconds: int
) -> None:
    """Otherwise, a worker that hears of its own rescheduling tries without end."""
    run = pool.new_run()
    waits = {
        "type": "SCHEDULED",
        "name": "AwaitingRetry",
        "message": f"{WAITS} Kubernetes is away.",
    }
    for _ in range(before):
        pool.api.propose(run, "PENDING")
        pool.api.post(f"/flow_runs/{run}/set_state", state=waits)
    kubernetes.is_away = True
    async with working(pool) as worker:
        await worker.get_and_submit_flow_runs()
        await until(lambda: len(pool.api.states(run)) == 2 * before + 4)

    state = pool.api.state(run)
    due = datetime.fromisoformat(state["state_details"]["scheduled_time"])
    wait = (due - datetime.fromisoformat(state["timestamp"])).total_seconds()
    # Less the time that the proposal took.
    assert seconds - 9 < wait <= seconds


async def test_a_run_that_its_pod_has_taken_up_is_not_rescheduled(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes created the Job, and answered none of the worker's requests."""
    run = pool.new_run()

    async def create_job(worker: Worker, *_: Any) -> None:
        key = f"{CLAIM}{worker._attempts[run]}"
        await worker.client.create_flow_run_input(run, key=key, value="pod")
        raise aiohttp.ServerDisconnectedError

    monkeypatch.setattr(Worker, "_create_job", create_job)
    async with working(pool) as worker:
        await take_up(worker, run)

    assert pool.api.state(run)["type"] == "PENDING"


async def test_a_job_is_not_created_twice_when_the_response_is_lost(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    async with working(pool) as worker:
        run = pool.new_run()
        kubernetes.loses_answers = 1
        await take_up(worker, run)

    [job] = kubernetes.jobs
    pid = pool.api.get(f"/flow_runs/{run}")["infrastructure_pid"]
    assert pid == f"default:{job}"


async def test_a_worker_gives_up_an_api_that_does_not_respond(
    pool: Pool, slow_path: TcpProxy, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking_up, "PROPOSAL_SECONDS", 0.5)
    async with working(pool, f"http://127.0.0.1:{slow_path.port}") as worker:
        run = pool.new_run()
        slow_path.hold(b"/set_state")
        await take_up(worker, run)
        assert pool.api.states(run) == ["SCHEDULED"]
        slow_path.refuse()

    assert kubernetes.jobs == {}


@pytest.mark.parametrize("where", ["read_deployment", "read_flow_run_states"])
async def test_an_api_that_fails_during_a_submission_does_not_end_the_worker(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    failed: list[UUID] = []

    async def fail(*_: Any) -> Any:
        failed.append(run)
        raise httpx.ReadTimeout("The API does not answer.")

    async with working(pool, limit=1) as worker:
        run = pool.new_run()
        with monkeypatch.context() as patch:
            patch.setattr(worker.client, where, fail)
            await take_up(worker, run)
        assert failed
        if where == "read_flow_run_states":  # the sweep finds it
            pool.api.propose(run, "SCHEDULED", name="AwaitingRetry")
        await take_up(worker, run)

    assert len(kubernetes.jobs) == 1
    assert pool.api.state(run)["type"] == "PENDING"


async def test_the_program_starts_a_worker_of_type_kubernetes(
    pool: Pool, kubernetes: KubernetesApi, tmp_path: Path
) -> None:
    pool.new_run()
    program = [sys.executable, "-P", "-m", "prefect_hamilton.worker", "start", "--run-once"]
    done = await anyio.run_process(
        [*program, "--type=kubernetes", f"--pool={pool.name}"],
        env=os.environ | {"PREFECT_API_URL": f"{pool.server.url}/api", "HOME": str(tmp_path)},
        stderr=subprocess.STDOUT,
    )

    assert b"Warning" not in done.stdout
    [job] = kubernetes.jobs.values()
    assert attempts.ATTEMPT_LABEL in job["metadata"]["labels"]
