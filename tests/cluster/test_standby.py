"""Standby pods: runs that begin in one, runs that need another pod, and what becomes of both."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import standby_pods, wait_for_standbys, wait_for_workers
from tests.clusters import RELEASE, Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

COUNT = 4
WORKERS = 2
WORKER = f"deploy/{RELEASE}-worker-kubernetes"
LABEL = "prefect-hamilton/standby"
BEGINS = "begins in the standby pod"


@pytest.fixture(scope="module", autouse=True)
def _standbys(cluster: Cluster) -> Iterator[None]:
    """Two workers, which keep four standby pods; the release is as before afterwards."""
    with standby_pods(cluster, COUNT, "--set", f"worker.replicas={WORKERS}"):
        yield


@pytest.fixture(autouse=True)
def _all_are_idle(cluster: Cluster) -> None:
    wait_for_standbys(cluster, COUNT)


def idle(cluster: Cluster, kind: str = "pods") -> list[Any]:
    return list(cluster.get(kind, "-l", f"{LABEL}=idle")["items"])


def kind_of(cluster: Cluster, run_id: str) -> str | None:
    """Whether the only pod of a run was a standby: `claimed`, or None."""
    (pod,) = cluster.pods(run_id)
    kind: str | None = pod["metadata"]["labels"].get(LABEL)
    return kind


def test_a_run_begins_in_a_standby_pod(cluster: Cluster) -> None:
    before = {pod["metadata"]["uid"] for pod in idle(cluster)}
    run_id = cluster.start(cluster.probe("tells"), variable="PREFECT__FLOW_RUN_ID")

    run = cluster.wait_for_state(run_id, "Completed")
    cluster.wait_for_log(run_id, f"PREFECT__FLOW_RUN_ID is {run_id}")
    # The worker sends its lines every two seconds: the flow run may have ended before.
    cluster.wait_for_log(run_id, BEGINS)
    (pod,) = cluster.pods(run_id)
    assert pod["metadata"]["uid"] in before
    assert pod["metadata"]["labels"][LABEL] == "claimed"
    (job,) = cluster.get("jobs", "-l", f"prefect.io/flow-run-id={run_id}")["items"]
    assert run["infrastructure_pid"].endswith(f":{job['metadata']['name']}")
    text = json.dumps([job, pod])
    for name, key in (("auth", "auth-string"), ("hamilton-ui", "api-key")):
        assert cluster.secret(name, key) not in text
    # The pod confirms its run to the worker, so the rights suffice.
    log = cluster.kubectl("logs", pod["metadata"]["name"])
    assert f"Standby pod begins flow run '{run_id}'" in log
    workers = cluster.kubectl("logs", "-l", "app.kubernetes.io/component=worker", "--tail=-1")
    assert "may not attach" not in workers
    assert "did not confirm" not in workers


def test_a_run_that_needs_another_pod_gets_a_new_one(cluster: Cluster) -> None:
    runs = [
        cluster.start(cluster.probe("tells"), job_variables=variables, variable="OWN")
        for variables in ({"memory_request": "140Mi"}, {"env": {"OWN": "value"}})
    ]
    for run_id in runs:
        cluster.wait_for_state(run_id, "Completed")
        assert kind_of(cluster, run_id) is None
    cluster.wait_for_log(runs[1], "OWN is value")


def test_runs_at_once_are_neither_lost_nor_doubled(cluster: Cluster) -> None:
    deployment = cluster.probe("tells")
    runs = [cluster.start(deployment, variable="HOME") for _ in range(10)]
    for run_id in runs:
        assert cluster.wait_for_state(run_id, "Completed")["run_count"] == 1
    kinds = [kind_of(cluster, run_id) for run_id in runs]
    assert kinds.count("claimed") >= COUNT
    jobs = cluster.get("jobs", "-l", f"prefect.io/flow-run-id in ({','.join(runs)})")["items"]
    assert len(jobs) == len(runs)


def test_an_idle_pod_that_is_killed_is_replaced(cluster: Cluster) -> None:
    name = idle(cluster)[0]["metadata"]["name"]
    cluster.kubectl("delete", "pod", name, "--grace-period=0", "--force")
    assert name not in [pod["metadata"]["name"] for pod in idle(cluster)]
    wait_for_standbys(cluster, COUNT)


def test_a_claimed_pod_that_is_killed_is_rescheduled(cluster: Cluster) -> None:
    run_id = cluster.start(cluster.probe("waits"))
    cluster.wait_for_state(run_id, "Running")
    (pod,) = cluster.pods(run_id)
    assert pod["metadata"]["labels"][LABEL] == "claimed"
    cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")

    @eventually
    def runs_again() -> None:
        assert cluster.flow_run(run_id)["run_count"] == 2

    runs_again()
    cluster.let_go(run_id)
    assert cluster.wait_for_state(run_id, "Completed")["run_count"] == 2


def test_cancellation_ends_a_claimed_pod(cluster: Cluster) -> None:
    run_id = cluster.start(cluster.probe("waits"))
    cluster.wait_for_state(run_id, "Running")
    assert kind_of(cluster, run_id) == "claimed"
    cluster.cancel(run_id)
    cluster.wait_for_state(run_id, "Cancelled")

    @eventually
    def has_ended() -> None:
        assert not [pod for pod in cluster.pods(run_id) if pod["status"]["phase"] == "Running"]

    has_ended()


def test_a_flow_out_of_memory_in_a_standby_pod_is_reported(cluster: Cluster) -> None:
    run_id = cluster.start(cluster.probe("eats_memory"))
    cluster.wait_for_state(run_id, "Crashed")
    cluster.wait_for_log(run_id, "OOMKilled")


@pytest.fixture
def pending_run(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """A run that a worker has taken up and made no Job for, and its attempt."""
    pool = "/work_pools/kubernetes"
    deployment = cluster.probe("tells")
    assert cluster.api.patch(pool, json={"is_paused": True}).is_success
    try:
        run_id = cluster.start(deployment, variable="HOME")
        state = {"type": "PENDING", "name": "Pending"}
        answer = cluster.post(f"/flow_runs/{run_id}/set_state", state=state)
        assert answer["status"] == "ACCEPT", answer
        yield run_id, answer["state"]["id"]
    finally:
        assert cluster.api.patch(pool, json={"is_paused": False}).is_success


def test_the_claim_of_a_worker_that_died_is_finished(
    cluster: Cluster, pending_run: tuple[str, str]
) -> None:
    """It died when the Job was claimed and its pod knew nothing."""
    run_id, attempt = pending_run
    job = idle(cluster, "jobs")[0]["metadata"]
    assignment = {"attempt": attempt, "environment": {"PREFECT__FLOW_RUN_ID": run_id}}
    labels = {
        LABEL: "claimed",
        "prefect.io/flow-run-id": run_id,
        "prefect-hamilton/attempt": attempt,
    }
    annotations = {"prefect-hamilton/flow-run": json.dumps(assignment)}
    patch = {"metadata": {"labels": labels, "annotations": annotations, "ownerReferences": None}}
    cluster.kubectl("patch", "job", job["name"], "--type=merge", f"-p={json.dumps(patch)}")

    assert cluster.wait_for_state(run_id, "Completed")["run_count"] == 1
    (pod,) = cluster.pods(run_id)
    assert pod["metadata"]["ownerReferences"][0]["name"] == job["name"]


def test_idle_pods_go_with_the_workers_and_a_claimed_one_stays(cluster: Cluster) -> None:
    run_id = cluster.start(cluster.probe("waits"))
    cluster.wait_for_state(run_id, "Running")
    assert kind_of(cluster, run_id) == "claimed"
    cluster.kubectl("scale", WORKER, "--replicas=0")

    @eventually
    def none_is_idle() -> None:
        assert not idle(cluster)
        assert not idle(cluster, "jobs")

    try:
        none_is_idle()
        assert cluster.flow_run(run_id)["state_name"] == "Running"
    finally:
        cluster.kubectl("scale", WORKER, f"--replicas={WORKERS}")
        wait_for_workers(cluster)
    cluster.let_go(run_id)
    assert cluster.wait_for_state(run_id, "Completed")["run_count"] == 1
