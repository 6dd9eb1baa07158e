"""The observer judges a flow run by the Job of its latest attempt."""

import logging
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import kopf
import pytest
from prefect.client.orchestration import get_client
from prefect_kubernetes import observer as prefect_observer

from prefect_hamilton.worker import observer
from tests.worker.conftest import Pool
from tests.worker.kubernetes_api import KubernetesApi
from tests.worker.test_worker import take_up, working

pytestmark = [pytest.mark.services, pytest.mark.anyio]


@pytest.fixture
async def observing(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The client that the observer's operator has."""
    async with get_client() as client:
        monkeypatch.setattr(prefect_observer, "orchestration_client", client)
        yield


async def with_job(pool: Pool, kubernetes: KubernetesApi) -> tuple[UUID, str]:
    run = pool.new_run()
    async with working(pool) as worker:
        await take_up(worker, run)
    return run, list(kubernetes.jobs)[-1]


async def see(job: dict[str, Any], kind: str = "MODIFIED") -> None:
    """What the operator does when Kubernetes reports a Job."""
    metadata = job["metadata"]
    await observer.judge_job(
        event={"type": kind, "object": job},  # type: ignore[arg-type, typeddict-item]
        name=metadata["name"],
        namespace="default",
        uid=metadata["uid"],
        labels=metadata["labels"],
        status=job["status"],
        spec=job["spec"],
        logger=logging.getLogger("tests.observer"),
    )


@pytest.mark.parametrize("kind", ["MODIFIED", "DELETED"])
async def test_the_job_of_an_earlier_attempt_does_not_crash_a_later_one(
    pool: Pool, kubernetes: KubernetesApi, observing: None, kind: str
) -> None:
    """The pod was deleted, its run rescheduled; the next worker died before it made a Job."""
    run, name = await with_job(pool, kubernetes)
    pool.api.propose(run, "RUNNING")
    pool.api.propose(run, "SCHEDULED", name="AwaitingRetry")
    pool.api.propose(run, "PENDING")
    kubernetes.finish(name, "Failed")
    job = kubernetes.jobs.pop(name) if kind == "DELETED" else kubernetes.jobs[name]
    before = pool.api.state(run)

    await see(job, kind)

    assert pool.api.state(run) == before


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("MODIFIED", observer.FAILED),
        ("DELETED", observer.DELETED),
    ],
)
@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
async def test_the_job_of_the_latest_attempt_decides(
    pool: Pool, kubernetes: KubernetesApi, observing: None, kind: str, message: str, state: str
) -> None:
    run, name = await with_job(pool, kubernetes)
    if state == "RUNNING":
        pool.api.propose(run, "RUNNING")
    job = kubernetes.jobs[name]
    if kind == "DELETED":
        del kubernetes.jobs[name]
    else:
        kubernetes.finish(name, "Failed")

    await see(job, kind)

    judged = pool.api.state(run)
    assert (judged["type"], judged["message"]) == ("CRASHED", message)


async def test_an_active_or_unlabelled_job_does_not_change_the_run(
    pool: Pool, kubernetes: KubernetesApi, observing: None
) -> None:
    run, name = await with_job(pool, kubernetes)
    pool.api.propose(run, "RUNNING")

    await see(kubernetes.jobs[name])
    await see(kubernetes.jobs[name], "DELETED")

    assert pool.api.state(run)["type"] == "RUNNING"


async def test_a_second_active_pod_keeps_the_run(
    pool: Pool, kubernetes: KubernetesApi, observing: None
) -> None:
    run, name = await with_job(pool, kubernetes)
    pool.api.propose(run, "RUNNING")
    twin = kubernetes.jobs[name] | {"metadata": dict(kubernetes.jobs[name]["metadata"], name="b")}
    kubernetes.add(twin)
    kubernetes.finish(name, "Failed")

    await see(kubernetes.jobs[name])

    assert pool.api.state(run)["type"] == "RUNNING"


async def test_a_job_of_prefects_own_worker_is_judged_as_prefect_does(
    pool: Pool, kubernetes: KubernetesApi, observing: None
) -> None:
    run, name = await with_job(pool, kubernetes)
    pool.api.propose(run, "RUNNING")
    del kubernetes.jobs[name]["metadata"]["labels"]["prefect-hamilton/attempt"]
    kubernetes.finish(name, "Failed")

    await see(kubernetes.jobs[name] | {"spec": {"backoffLimit": 0}})

    judged = pool.api.state(run)
    assert judged["message"] == "No active or succeeded pods found for any job"


def test_kopf_uses_this_observer_only() -> None:
    before = kopf.get_default_registry()
    try:
        observer.install()
        handlers = kopf.get_default_registry()._watching._handlers
    finally:
        kopf.set_default_registry(before)

    judges = [handler.fn for handler in handlers if handler.fn.__name__ != "_replicate_pod_event"]
    assert judges == [observer.judge_job]
