"""The observer judges a flow run by the Job of its latest attempt."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import kopf
import pytest
from prefect.client.orchestration import get_client
from prefect.logging.configuration import PROCESS_LOGGING_CONFIG
from prefect_kubernetes import _logging
from prefect_kubernetes import observer as prefect_observer

from prefect_hamilton.states import NO_ANSWER, NOT_RESCHEDULED
from prefect_hamilton.worker import observer
from prefect_hamilton.worker.verdicts import NOT_STARTED, UNREPORTED
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
async def test_the_job_of_the_latest_attempt_decides(
    pool: Pool, kubernetes: KubernetesApi, observing: None, kind: str, message: str
) -> None:
    run, name = await with_job(pool, kubernetes)
    pool.api.propose(run, "RUNNING")
    job = kubernetes.jobs[name]
    if kind == "DELETED":
        del kubernetes.jobs[name]
    else:
        kubernetes.finish(name, "Failed")

    await see(job, kind)

    judged = pool.api.state(run)
    assert (judged["type"], judged["message"]) == ("CRASHED", message)


@pytest.mark.parametrize("exit_code", [NOT_RESCHEDULED, NOT_RESCHEDULED + 1])
async def test_a_run_whose_pod_was_ended_while_the_api_was_away_waits_again(
    pool: Pool, kubernetes: KubernetesApi, observing: None, exit_code: int
) -> None:
    run, name = await with_job(pool, kubernetes)
    pool.api.propose(run, "RUNNING")
    kubernetes.fail_by_rule(name, exit_code)

    await see(kubernetes.jobs[name])

    state = pool.api.state(run)
    is_own = exit_code == NOT_RESCHEDULED
    assert state["name"] == ("AwaitingRetry" if is_own else "Crashed")
    assert state["message"] == (UNREPORTED if is_own else observer.FAILED)


def deleted(kubernetes: KubernetesApi, job: str) -> None:
    pod = kubernetes.add_pod(job, 137)
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"


def evicted(kubernetes: KubernetesApi, job: str) -> None:
    pod = kubernetes.add_pod(job, 137)
    pod["status"] |= {"reason": "Evicted", "message": "The node was low on memory."}


def drained(kubernetes: KubernetesApi, job: str) -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    pod = kubernetes.add_pod(job, 143)
    pod["status"]["conditions"] = [condition | {"message": "Eviction API: evicting"}]


def lost_with_its_node(kubernetes: KubernetesApi, job: str) -> None:
    kubernetes.add_pod(job, 255, "Unknown")


def unanswered(kubernetes: KubernetesApi, job: str) -> None:
    """The Prefect API was away for longer than the pod waits."""
    kubernetes.add_pod(job, NO_ANSWER)


def unable_to_reschedule(kubernetes: KubernetesApi, job: str) -> None:
    """It was ended while the Prefect API was away."""
    kubernetes.add_pod(job, NOT_RESCHEDULED)


def gone(kubernetes: KubernetesApi, job: str) -> None:
    """Deleted by force."""


TAKEN = {
    deleted: "the pod was deleted",
    evicted: "Evicted, The node was low on memory",
    drained: "EvictionByEvictionAPI, Eviction API: evicting",
    lost_with_its_node: "container 'prefect-job' ended with exit code 255 (Unknown)",
    unanswered: "the Prefect API did not answer the pod",
    unable_to_reschedule: "the Prefect API did not answer the pod",
    gone: "the pod no longer exists",
}


@pytest.mark.parametrize("taken", TAKEN)
async def test_a_run_whose_pod_was_taken_before_its_flow_started_waits_again(
    pool: Pool, kubernetes: KubernetesApi, observing: None, taken: Callable[..., None]
) -> None:
    run, name = await with_job(pool, kubernetes)
    pool.api.propose(run, "PENDING", name="InfrastructurePending")
    kubernetes.finish(name, "Failed")
    taken(kubernetes, name)

    await see(kubernetes.jobs[name])

    judged = pool.api.state(run)
    assert judged["name"] == "AwaitingRetry"
    assert judged["message"] == f"{NOT_STARTED}: {TAKEN[taken]}. Try 1 of 3."


async def test_a_run_whose_job_was_deleted_before_its_flow_started_waits_again(
    pool: Pool, kubernetes: KubernetesApi, observing: None
) -> None:
    run, name = await with_job(pool, kubernetes)

    await see(kubernetes.jobs.pop(name), "DELETED")

    assert pool.api.state(run)["name"] == "AwaitingRetry"


async def lose_pod(pool: Pool, kubernetes: KubernetesApi, run: UUID) -> None:
    """A worker takes the run up, and its pod is evicted."""
    async with working(pool) as worker:
        await take_up(worker, run)
    name = list(kubernetes.jobs)[-1]
    kubernetes.finish(name, "Failed")
    evicted(kubernetes, name)
    await see(kubernetes.jobs[name])


async def test_the_third_lost_pod_crashes_the_run(
    pool: Pool, kubernetes: KubernetesApi, observing: None
) -> None:
    run = pool.new_run()
    for _ in range(3):
        await lose_pod(pool, kubernetes, run)

    judged = pool.api.state(run)
    assert (judged["type"], judged["message"]) == (
        "CRASHED",
        f"{NOT_STARTED}, 3 times in a row. The last time: Evicted, The node was low on memory.",
    )


async def test_only_pods_since_the_flow_last_ran_are_counted(
    pool: Pool, kubernetes: KubernetesApi, observing: None
) -> None:
    run = pool.new_run()
    for _ in range(2):
        await lose_pod(pool, kubernetes, run)
    pool.api.propose(run, "PENDING")
    pool.api.propose(run, "RUNNING")
    pool.api.propose(run, "SCHEDULED", name="AwaitingRetry")

    await lose_pod(pool, kubernetes, run)

    assert pool.api.state(run)["message"].endswith("Try 1 of 3.")


@pytest.mark.parametrize(
    ("exit_code", "reason", "message"),
    [
        (1, "Error", "container 'prefect-job' ended with exit code 1 (Error)"),
        (128, "StartError", "container 'prefect-job' ended with exit code 128 (StartError)"),
        (137, "OOMKilled", "container 'prefect-job' ended with exit code 137 (OOMKilled)"),
    ],
)
async def test_a_container_that_fails_by_itself_crashes_the_run_at_once(
    pool: Pool,
    kubernetes: KubernetesApi,
    observing: None,
    exit_code: int,
    reason: str,
    message: str,
) -> None:
    run, name = await with_job(pool, kubernetes)
    kubernetes.finish(name, "Failed")
    kubernetes.add_pod(name, exit_code, reason)

    await see(kubernetes.jobs[name])

    judged = pool.api.state(run)
    assert (judged["type"], judged["message"]) == ("CRASHED", f"{NOT_STARTED}: {message}.")


async def test_a_job_that_met_its_deadline_before_its_flow_started_crashes_the_run(
    pool: Pool, kubernetes: KubernetesApi, observing: None
) -> None:
    """As one whose image cannot be pulled; Kubernetes has deleted its pod."""
    run, name = await with_job(pool, kubernetes)
    kubernetes.finish(name, "Failed", "DeadlineExceeded")

    await see(kubernetes.jobs[name])

    judged = pool.api.state(run)
    assert judged["type"] == "CRASHED"
    assert "DeadlineExceeded" in judged["message"]


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


def test_lines_of_kopf_have_the_shape_of_all_others(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kopf_logger = logging.getLogger("kopf")
    monkeypatch.setattr(kopf_logger, "handlers", [])
    monkeypatch.setattr(kopf_logger, "propagate", True)
    formatter = _logging.KopfObjectJsonFormatter
    monkeypatch.setattr(_logging, "KopfObjectJsonFormatter", formatter)
    monkeypatch.setattr(prefect_observer, "_observer_thread_entry", lambda: None)
    monkeypatch.setitem(PROCESS_LOGGING_CONFIG, "handlers", {"console": {"formatter": "json"}})
    before = kopf.get_default_registry()
    try:
        observer.install()
        prefect_observer.start_observer()
        job = {"kind": "Job", "namespace": "flows", "name": "a-run", "uid": "1", "apiVersion": "v1"}
        logging.getLogger("kopf.objects").error("Watch failed.", extra={"k8s_ref": job})
    finally:
        prefect_observer.stop_observer()
        kopf.set_default_registry(before)

    line = json.loads(capfd.readouterr().err)
    assert (line["logger"], line["message"]) == ("kopf.objects", "Watch failed.")
    assert line["object"] == {"kind": "Job", "namespace": "flows", "name": "a-run"}
