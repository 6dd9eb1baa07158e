"""Standby Jobs: each becomes the Job of at most one flow run, and no flow run gets two."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import anyio
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings
from prefect_kubernetes.worker import KubernetesWorker

from prefect_hamilton.flow_pod import attempt
from prefect_hamilton.flow_pod import standby as pod_standby
from prefect_hamilton.worker import attempts, claim, pod_security, reserve, standby
from prefect_hamilton.worker.worker import Worker
from tests.chart.charts import render
from tests.chart.test_flow_pods import template
from tests.server.tcp_proxy import proxy
from tests.worker.conftest import Pool, Served
from tests.worker.kubernetes_api import KubernetesApi
from tests.worker.test_sweep import sweep_of
from tests.worker.test_worker import take_up, until, working

pytestmark = [pytest.mark.services, pytest.mark.anyio]

FLOW_RUN = "prefect.io/flow-run-id"
NAME = "prefect-hamilton-worker"


@pytest.fixture(autouse=True)
def _two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two standby pods, which are kept by the test's own calls."""
    monkeypatch.setenv(standby.COUNT, "2")
    monkeypatch.setattr(reserve, "QUIET_SECONDS", 0)
    monkeypatch.setattr(reserve, "RENDERED_SECONDS", 0)
    monkeypatch.setattr(reserve.Reserve, "run_forever", _never)


async def _never(_: reserve.Reserve, scope: anyio.CancelScope) -> None:
    with scope:
        await anyio.sleep_forever()


@asynccontextmanager
async def keeping(pool: Pool, kubernetes: KubernetesApi) -> AsyncIterator[Worker]:
    """A worker whose standby pods are there."""
    async with working(pool, name=NAME) as worker:
        await keep(worker)
        kubernetes.start_pods()
        yield worker


async def keep(worker: Worker) -> bool:
    assert worker._reserve
    return await worker._reserve.keep()


def of_kind(kubernetes: KubernetesApi, kind: str | None) -> dict[str, Any]:
    """The Jobs that are idle or claimed, or neither, by name."""
    return {
        name: job
        for name, job in kubernetes.jobs.items()
        if job["metadata"]["labels"].get(standby.LABEL) == kind
    }


def runs_of(kubernetes: KubernetesApi) -> list[UUID]:
    """The flow run of each Job that has one."""
    labels = [job["metadata"]["labels"] for job in kubernetes.jobs.values()]
    return sorted(UUID(each[FLOW_RUN]) for each in labels if FLOW_RUN in each)


def environment(container: dict[str, Any]) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container["env"]}


async def test_a_pool_has_its_standbys_which_belong_to_no_flow_run(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(standby.OWNER_NAME, "worker-pod")
    monkeypatch.setenv(standby.OWNER_UID, "a-uid")
    monkeypatch.setenv(pod_standby.PRELOAD, "pandas,hamilton")
    async with keeping(pool, kubernetes) as worker:
        assert await keep(worker)

    assert len(kubernetes.jobs) == 2
    for name, job in of_kind(kubernetes, standby.IDLE).items():
        assert name.startswith(f"{NAME}-standby-")
        assert job["metadata"]["ownerReferences"][0]["uid"] == "a-uid"
        pod = job["spec"]["template"]
        for metadata in (job["metadata"], pod["metadata"]):
            assert not [key for key in metadata["labels"] if standby.is_of_run(key)]
            assert metadata["labels"][standby.LABEL] == standby.IDLE
        (container,) = pod["spec"]["containers"]
        assert container["stdin"]
        variables = environment(container)
        assert not [variable for variable in variables if variable.startswith("PREFECT__")]
        assert variables[pod_standby.PRELOAD] == "pandas,hamilton"
        assert int(variables[pod_standby.SECONDS]) > standby.Settings().max_age_seconds


async def test_a_worker_that_starts_while_the_api_is_away_keeps_standbys_later(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
    with proxy(urlsplit(pool.server.url).port or 0) as path:
        path.refuse()
        async with working(pool, f"http://127.0.0.1:{path.port}", name=NAME) as worker:
            assert worker._reserve is None
            path.listen()
            await worker.sync_with_backend()
            await keep(worker)

    assert len(of_kind(kubernetes, standby.IDLE)) == 2


async def test_standbys_are_counted_by_state(
    pool: Pool, kubernetes: KubernetesApi, served: Served
) -> None:
    def counts() -> dict[str, float]:
        name = "prefect_worker_standby_pods"
        return {
            state: served.value(name, work_pool=pool.name, state=state)
            for state in ("idle", "starting", "claimed")
        }

    async with working(pool, name=NAME) as worker:
        await keep(worker)
        await keep(worker)
        assert counts() == {"idle": 0, "starting": 2, "claimed": 0}
        kubernetes.start_pods()
        await keep(worker)
        assert counts() == {"idle": 2, "starting": 0, "claimed": 0}
        await take_up(worker, pool.new_run())
        await keep(worker)
        assert counts() == {"idle": 1, "starting": 0, "claimed": 1}
        assert served.submissions(pool) == (1, 0)
        [claimed] = of_kind(kubernetes, standby.CLAIMED)
        kubernetes.finish(claimed, "Complete")
        await keep(worker)
        assert counts() == {"idle": 1, "starting": 1, "claimed": 0}


async def test_a_run_gets_a_standby(pool: Pool, kubernetes: KubernetesApi) -> None:
    async with keeping(pool, kubernetes) as worker:
        run = pool.new_run()
        await take_up(worker, run)

    assert len(kubernetes.jobs) == 2
    [(name, job)] = of_kind(kubernetes, standby.CLAIMED).items()
    labels = job["metadata"]["labels"]
    assert labels[FLOW_RUN] == str(run)
    assert attempts.ATTEMPT_LABEL in labels
    assert not job["metadata"]["ownerReferences"]
    assert pool.api.get(f"/flow_runs/{run}")["infrastructure_pid"] == f"default:{name}"
    pod = kubernetes.pod(name)["metadata"]
    assert pod["labels"][FLOW_RUN] == str(run)
    assert pod["labels"][standby.LABEL] == standby.CLAIMED
    (line,) = kubernetes.heard[pod["name"]]
    assignment = pod["annotations"][pod_standby.ANNOTATION]
    assert line.strip() == assignment == job["metadata"]["annotations"][pod_standby.ANNOTATION]
    assert pod_standby.parsed(assignment.encode()).keys() <= standby.RUN_VARIABLES
    environment = pod_standby.parsed(assignment.encode())
    assert environment["PREFECT__FLOW_RUN_ID"] == str(run)
    assert environment[attempt.VARIABLE] == f"{run}:{labels[attempts.ATTEMPT_LABEL]}"
    assert pool.api.state(run)["name"] == "Pending"


@pytest.mark.parametrize(
    "variables",
    [
        {"image": "another:1"},
        {"memory_request": "1Gi"},
        {"env": {"OWN": "value"}},
        {"labels": {"kueue.x-k8s.io/queue-name": "team"}},
        {"annotations": {"sidecar.example.org/inject": "true"}},
        {"service_account_name": "reader"},
        {"command": "python -m other"},
    ],
    ids=lambda variables: next(iter(variables)),
)
async def test_a_run_that_needs_another_pod_gets_a_new_one(
    pool: Pool, kubernetes: KubernetesApi, variables: dict[str, Any]
) -> None:
    async with keeping(pool, kubernetes) as worker:
        run = pool.new_run(**variables)
        await take_up(worker, run)

    assert len(of_kind(kubernetes, standby.IDLE)) == 2
    (job,) = of_kind(kubernetes, None).values()
    assert job["metadata"]["labels"][FLOW_RUN] == str(run)


async def test_without_an_idle_pod_a_run_gets_a_new_one(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    async with working(pool, name=NAME) as worker:
        await keep(worker)  # Jobs, whose pods are not running
        run = pool.new_run()
        await take_up(worker, run)

    assert len(of_kind(kubernetes, standby.IDLE)) == 2
    assert runs_of(kubernetes) == [run]
    assert pool.api.state(run)["name"] == "Submitting"


async def test_of_many_runs_and_two_workers_none_is_lost_or_doubled(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    async with keeping(pool, kubernetes) as a, working(pool, name=NAME) as b:
        runs = [pool.new_run() for _ in range(5)]
        async with anyio.create_task_group() as tasks:
            for worker in (a, b):
                for run in runs:
                    tasks.start_soon(take_up, worker, run)

    assert runs_of(kubernetes) == sorted(runs)
    assert len(of_kind(kubernetes, standby.CLAIMED)) == 2
    heard = [json.loads(line) for lines in kubernetes.heard.values() for line in lines]
    assert len({each["attempt"] for each in heard}) == len(heard) == 2


async def test_two_workers_that_see_the_same_idle_pod_do_not_share_it(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(standby.COUNT, "1")
    seen = 0
    pods_with = claim.kubernetes.pods_with

    async def both_have_seen(client: Any, namespace: str, labels: dict[str, str]) -> list[Any]:
        nonlocal seen
        found = await pods_with(client, namespace, labels)
        assert labels[standby.LABEL] == standby.IDLE
        assert len(found) == 1
        seen += 1
        await until(lambda: seen == 2)
        return found

    monkeypatch.setattr(claim.kubernetes, "pods_with", both_have_seen)
    async with keeping(pool, kubernetes) as a, working(pool, name=NAME) as b:
        runs = [pool.new_run(), pool.new_run()]
        found = await a._get_scheduled_flow_runs()
        async with anyio.create_task_group() as tasks:
            for worker, each in zip((a, b), found, strict=True):
                worker._submitting_flow_run_ids.add(each.flow_run.id)
                tasks.start_soon(worker._submit_run, each.flow_run)

    assert runs_of(kubernetes) == sorted(runs)
    assert len(of_kind(kubernetes, standby.CLAIMED)) == 1


async def test_two_workers_keep_one_set_of_standbys(pool: Pool, kubernetes: KubernetesApi) -> None:
    async with working(pool, name=NAME) as a, working(pool, name=NAME) as b:
        for _ in range(2):
            async with anyio.create_task_group() as tasks:
                for worker in (a, b):
                    tasks.start_soon(keep, worker)
            kubernetes.start_pods()
            assert len(of_kind(kubernetes, standby.IDLE)) == 2
            await take_up(a, pool.new_run())

    assert len(of_kind(kubernetes, standby.CLAIMED)) == 2


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_claim_whose_answer_is_lost_is_made_once(
    pool: Pool, kubernetes: KubernetesApi, lost: int
) -> None:
    async with keeping(pool, kubernetes) as worker:
        run = pool.new_run()
        kubernetes.loses_answers = lost
        await take_up(worker, run)

    assert runs_of(kubernetes) == [run]
    assert len(of_kind(kubernetes, standby.CLAIMED)) == 1


async def test_a_claim_waits_while_kubernetes_is_away(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    """The Job is claimed when the API goes away, and its pod has no assignment yet."""

    def leave(kind: str, name: str) -> None:
        if kind == "pods" and kubernetes.loses_answers == 0:
            kubernetes.loses_answers = 1

    async with keeping(pool, kubernetes) as worker:
        run = pool.new_run()
        kubernetes.before_patch = leave
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_up, worker, run)
            await until(lambda: bool(of_kind(kubernetes, standby.CLAIMED)))
            kubernetes.before_patch = lambda kind, name: None

    assert runs_of(kubernetes) == [run]
    assert len(kubernetes.heard) == 1


async def test_a_standby_whose_pod_ended_before_its_assignment_is_replaced(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    ended: list[str] = []

    def end(kind: str, name: str) -> None:
        if kind == "jobs" and not ended:
            ended.append(name)
            kubernetes.end_pod(name)

    async with keeping(pool, kubernetes) as worker:
        kubernetes.before_patch = end
        run = pool.new_run()
        await take_up(worker, run)

    assert runs_of(kubernetes) == [run]
    assert ended[0] not in kubernetes.jobs
    assert pool.api.state(run)["type"] == "PENDING"


async def test_a_pod_that_does_not_confirm_reads_the_annotation(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "HEARD_SECONDS", 0.1)
    kubernetes.answers_attach = False
    async with keeping(pool, kubernetes) as worker:
        run = pool.new_run()
        await take_up(worker, run)

    [name] = of_kind(kubernetes, standby.CLAIMED)
    assert runs_of(kubernetes) == [run]
    assignment = kubernetes.pod(name)["metadata"]["annotations"][pod_standby.ANNOTATION]
    assert str(run) in assignment


async def test_another_worker_finishes_the_claim_of_one_that_died(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: Any) -> bool:
        await anyio.sleep_forever()
        return False

    async with keeping(pool, kubernetes) as dies:
        with monkeypatch.context() as patch:
            patch.setattr(claim.Claims, "deliver", die)
            run = pool.new_run()
            await dies.get_and_submit_flow_runs()
            await until(lambda: bool(of_kind(kubernetes, standby.CLAIMED)))
        [name] = of_kind(kubernetes, standby.CLAIMED)
        pod = kubernetes.pod(name)["metadata"]
        assert not pod["annotations"][pod_standby.ANNOTATION]

        async with working(pool, name=NAME) as next_one:
            await keep(next_one)

        assert pod["labels"][FLOW_RUN] == str(run)
        assert str(run) in kubernetes.heard[pod["name"]][0]
        for scope in dies._scheduled_task_scopes:
            scope.cancel()
        assert dies._runs_task_group
        dies._runs_task_group.cancel_scope.cancel()


async def test_an_unfinished_claim_for_a_run_that_has_changed_is_withdrawn(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was scheduled again meanwhile: another attempt must not begin in the old pod."""
    async with keeping(pool, kubernetes) as worker:
        run = pool.new_run()
        with monkeypatch.context() as patch:
            # As when Kubernetes accepts the claim, and its answers are lost for too long.
            patch.setattr(claim, "_lock", lost_for_good(claim._lock))
            await take_up(worker, run)
        pool.api.propose(run, "SCHEDULED", name="AwaitingRetry")
        [name] = of_kind(kubernetes, standby.CLAIMED)
        pod = kubernetes.pod(name)["metadata"]
        await keep(worker)

    assert name not in kubernetes.jobs
    assert not pod["annotations"][pod_standby.ANNOTATION]
    assert not kubernetes.heard


def lost_for_good(lock: Any) -> Any:
    """A claim that is accepted, and whose caller does not learn it."""

    async def locked(*arguments: Any) -> None:
        await lock(*arguments)
        raise TimeoutError

    return locked


def age(job: dict[str, Any], seconds: float) -> None:
    created = datetime.now(UTC) - timedelta(seconds=seconds)
    job["metadata"]["creationTimestamp"] = created.isoformat()


def passed(job: dict[str, Any], seconds: float) -> None:
    """Let that time pass since a Job has ended."""
    [end] = job["status"]["conditions"]
    for of, key in ((job["metadata"], "creationTimestamp"), (end, "lastTransitionTime")):
        of[key] = (datetime.fromisoformat(of[key]) - timedelta(seconds=seconds)).isoformat()


async def test_old_standbys_are_replaced_some_at_a_time(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = reserve.AT_ONCE + 1
    monkeypatch.setenv(standby.COUNT, str(count))
    async with keeping(pool, kubernetes) as worker:
        await keep(worker)
        kubernetes.start_pods()
        old = set(kubernetes.jobs)
        assert len(old) == count
        for job in kubernetes.jobs.values():
            age(job, standby.Settings().max_age_seconds + 1)
        for _ in range(2):
            await keep(worker)
            assert len(kubernetes.jobs) == count
            # The pods of the others are starting.
            assert len(set(kubernetes.jobs) & old) == 1
        kubernetes.start_pods()
        await keep(worker)

    assert len(kubernetes.jobs) == count
    assert not set(kubernetes.jobs) & old


async def test_standbys_of_an_older_job_template_are_replaced(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    async with keeping(pool, kubernetes) as worker:
        old = set(kubernetes.jobs)
        for job in kubernetes.jobs.values():
            age(job, 10)
        new = KubernetesWorker.get_default_base_job_template()
        new["variables"]["properties"]["memory_request"]["default"] = "99Mi"
        pool.api.patch(f"/work_pools/{pool.name}", base_job_template=new)
        async with working(pool, name=NAME) as newer:
            await keep(newer)
            assert not set(kubernetes.jobs) & old
            # One that still has the older template lets them be.
            current = set(kubernetes.jobs)
            await keep(worker)

    assert set(kubernetes.jobs) == current
    assert len(current) == 2


async def test_a_claimed_job_is_neither_old_nor_superfluous(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    async with keeping(pool, kubernetes) as worker:
        run = pool.new_run()
        await take_up(worker, run)
        for job in kubernetes.jobs.values():
            age(job, 100_000)
        await keep(worker)

    assert runs_of(kubernetes) == [run]
    assert len(of_kind(kubernetes, standby.IDLE)) == 2


@pytest.mark.parametrize(("condition", "lived"), [("Failed", 61), ("Complete", 59)])
async def test_a_standby_that_ends_by_itself_is_reported_and_not_tried_again_at_once(
    pool: Pool,
    kubernetes: KubernetesApi,
    caplog: pytest.LogCaptureFixture,
    condition: str,
    lived: float,
) -> None:
    """Its time without a successor begins with its end, however long it took to start."""
    async with keeping(pool, kubernetes) as worker:
        ended, other = sorted(kubernetes.jobs)
        age(kubernetes.jobs[ended], lived)
        kubernetes.finish(ended, condition)
        await keep(worker)
        assert set(kubernetes.jobs) == {ended, other}
        assert [each for each in caplog.messages if ended in each and "see its log" in each]

        passed(kubernetes.jobs[ended], reserve.FAILED_SECONDS + 1)
        await keep(worker)

    assert ended not in kubernetes.jobs
    assert len(kubernetes.jobs) == 2


async def test_a_standby_whose_time_is_over_is_replaced(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    async with keeping(pool, kubernetes) as worker:
        ended = min(kubernetes.jobs)
        age(kubernetes.jobs[ended], reserve.FAILED_SECONDS + 1)
        kubernetes.finish(ended, "Complete")
        await keep(worker)

    assert ended not in kubernetes.jobs
    assert len(kubernetes.jobs) == 2


async def test_standbys_that_kubernetes_refuses_are_not_tried_again_at_once(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    async with keeping(pool, kubernetes) as worker:
        kubernetes.jobs.clear()
        kubernetes.pods.clear()
        kubernetes.is_full = True
        with pytest.raises(Exception, match="exceeded quota"):
            await keep(worker)
        kubernetes.is_full = False
        assert not await keep(worker)

    assert not kubernetes.jobs


async def test_pods_that_do_not_start_do_not_keep_others_from_starting(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when no node has room, or an image cannot be pulled."""
    monkeypatch.setenv(standby.COUNT, str(reserve.AT_ONCE + 1))
    async with working(pool, name=NAME) as worker:
        await keep(worker)
        stuck = set(kubernetes.jobs)
        assert len(stuck) == reserve.AT_ONCE
        for name in stuck:
            age(kubernetes.jobs[name], reserve.STARTING_SECONDS + 1)
        await keep(worker)
        assert len(kubernetes.jobs) == reserve.AT_ONCE + 1

        for name in stuck:
            age(kubernetes.jobs[name], standby.Settings().max_age_seconds + 1)
        await keep(worker)

    assert not stuck & set(kubernetes.jobs)


async def test_the_deadline_of_a_run_begins_with_its_claim(
    pool: Pool, kubernetes: KubernetesApi
) -> None:
    chart_pool = Pool(pool.server, template(render()))
    async with keeping(chart_pool, kubernetes) as worker:
        for job in kubernetes.jobs.values():
            assert "activeDeadlineSeconds" not in job["spec"]
        for pod in kubernetes.pods:
            age(pod, 500)
        run = chart_pool.new_run(active_deadline_seconds=100)
        await take_up(worker, run)

    (job,) = of_kind(kubernetes, standby.CLAIMED).values()
    assert 600 <= job["spec"]["activeDeadlineSeconds"] < 700


async def test_a_refused_run_claims_no_standby(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(pod_security.SERVICE_ACCOUNTS, "only-this")
    async with working(pool, name=NAME) as worker:
        monkeypatch.delenv(pod_security.SERVICE_ACCOUNTS)
        await keep(worker)
        kubernetes.start_pods()
        monkeypatch.setenv(pod_security.SERVICE_ACCOUNTS, "only-this")
        run = pool.new_run()
        await take_up(worker, run)

    assert pool.api.state(run)["type"] == "CRASHED"
    assert runs_of(kubernetes) == []


SECRET = "admin:pass"


async def test_a_credential_is_never_a_value(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
    with temporary_settings({PREFECT_API_AUTH_STRING: SECRET}):
        async with keeping(pool, kubernetes):
            assert not kubernetes.jobs
        monkeypatch.setenv(f"{prefix}_NAME", "auth")
        monkeypatch.setenv(f"{prefix}_KEY", "auth-string")
        async with keeping(pool, kubernetes) as worker:
            run = pool.new_run()
            await take_up(worker, run)

    assert runs_of(kubernetes) == [run]
    assert len(of_kind(kubernetes, standby.CLAIMED)) == 1
    assert SECRET not in json.dumps([kubernetes.jobs, kubernetes.pods, kubernetes.heard])


async def test_idle_jobs_are_no_jobs_of_flow_runs(pool: Pool, kubernetes: KubernetesApi) -> None:
    async with keeping(pool, kubernetes) as worker:
        claimed = pool.new_run()
        await take_up(worker, claimed)
        lost = pool.new_run()
        pool.api.propose(lost, "PENDING")
        before = pool.api.state(claimed)
        async with get_client() as client:
            await sweep_of(pool, client).sweep()

    assert pool.api.state(claimed) == before
    assert pool.api.state(lost)["name"] == "AwaitingRetry"


async def test_a_worker_without_standbys_asks_for_none(
    pool: Pool, kubernetes: KubernetesApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(standby.COUNT, "0")
    async with working(pool, name=NAME) as worker:
        assert worker._reserve is None
        await take_up(worker, pool.new_run())

    (job,) = kubernetes.jobs.values()
    assert standby.LABEL not in job["metadata"]["labels"]


def test_variables_from_labels_are_in_the_assignment() -> None:
    """A pod's variables keep the labels that it had when it started."""
    value = "k8s.pod.name=$(POD_NAME)&prefect.flow.name=$(FLOW)"
    variables = [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {
            "name": "FLOW",
            "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['prefect.io/flow-name']"}},
        },
        {"name": "RESOURCE", "value": value},
        {"name": "PREFECT__FLOW_RUN_ID", "value": "an-id"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "token"}}},
        {"name": "PLAIN", "value": "secret"},
    ]
    template = {
        "metadata": {"labels": {"prefect.io/flow-name": "etl"}},
        "spec": {"containers": [{"name": "prefect-job", "env": variables}]},
    }
    assignment = standby.assignment({"spec": {"template": template}}, UUID(int=1))
    assert pod_standby.parsed(assignment.encode()) == {
        "FLOW": "etl",
        "RESOURCE": value,
        "PREFECT__FLOW_RUN_ID": "an-id",
    }
