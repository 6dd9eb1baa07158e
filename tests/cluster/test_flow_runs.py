"""Flow runs as pods: job variables, and reports of pods that cannot start."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.clusters import RELEASE, Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["spec"]["containers"]
    return dict(found)


OF_THE_RUN = {
    "cpu_request": "31m",
    "cpu_limit": "1",
    "memory_request": "131Mi",
    "memory_limit": "611Mi",
    "env": {"GREETING": "from the run"},
    "labels": {"team": "metrics"},
}
ABSENT_BRANCH = {"repository": f"git://{RELEASE}-git-server/flows.git", "branch": "absent"}


@pytest.fixture(scope="module")
def other_image(cluster: Cluster) -> str:
    """Another name of the image of flow pods, where there is one."""
    template = cluster.api.get("/work_pools/kubernetes").json()["base_job_template"]
    image = str(template["variables"]["properties"]["image"]["default"])
    return f"docker.io/{image}" if image.startswith("prefect-hamilton/") else image


@pytest.fixture(scope="module")
def runs(cluster: Cluster, other_image: str) -> dict[str, str]:
    """Runs that go on at the same time, by what is special about them."""
    tells = cluster.probe("tells")
    of_the_deployment = {"image": other_image, "memory_request": "140Mi"}
    other = cluster.probe("tells", name="other-image", job_variables=of_the_deployment)
    absent = [{"prefect.deployments.steps.git_clone": ABSENT_BRANCH}]
    branch = cluster.probe("waits", name="absent-branch", pull_steps=absent)
    return {
        "cancelled": cluster.start(cluster.probe("waits")),
        "variables": cluster.start(tells, job_variables=OF_THE_RUN, variable="GREETING"),
        "deployment": cluster.start(other, variable="HOME"),
        "secrets": cluster.start(tells, variable="HAMILTON_UI_USERNAME"),
        "memory": cluster.start(
            cluster.probe("eats_memory"), job_variables={"memory_limit": "256Mi"}
        ),
        "branch": cluster.start(branch),
    }


@pytest.fixture(scope="module", autouse=True)
def scheduled(cluster: Cluster) -> Iterator[str]:
    """The id of a deployment with a schedule, which becomes due while other runs go on."""
    parameters = {"variable": "HOME"}
    name = cluster.probe("tells", name="scheduled", parameters=parameters)
    deployment = str(cluster.deployment(name)["id"])
    path = f"/deployments/{deployment}/schedules"
    answer = cluster.api.post(path, json=[{"schedule": {"interval": 20}, "active": True}])
    assert answer.is_success, answer.text
    yield deployment
    for schedule in cluster.deployment(name)["schedules"]:
        cluster.api.delete(f"{path}/{schedule['id']}")


def test_job_variables_of_a_run_override_the_deployment(
    cluster: Cluster, runs: dict[str, str]
) -> None:
    run_id = runs["variables"]
    cluster.wait_for_state(run_id, "Completed")
    cluster.wait_for_log(run_id, "GREETING is from the run")
    (pod,) = cluster.pods(run_id)
    assert container(pod)["resources"] == {
        "requests": {"cpu": "31m", "memory": "131Mi"},
        "limits": {"cpu": "1", "memory": "611Mi"},
    }
    assert pod["metadata"]["labels"]["team"] == "metrics"


def test_job_variables_of_a_deployment_override_the_template(
    cluster: Cluster, runs: dict[str, str], other_image: str
) -> None:
    cluster.wait_for_state(runs["deployment"], "Completed")
    (pod,) = cluster.pods(runs["deployment"])
    assert container(pod)["image"] == other_image
    assert container(pod)["resources"]["requests"]["memory"] == "140Mi"


def test_secrets_reach_a_pod_as_references(cluster: Cluster, runs: dict[str, str]) -> None:
    run_id = runs["secrets"]
    cluster.wait_for_state(run_id, "Completed")
    (pod,) = cluster.pods(run_id)
    environment = {entry["name"]: entry for entry in container(pod)["env"]}
    for name in ("PREFECT_API_AUTH_STRING", "WAREHOUSE_URL", "HAMILTON_API_KEY"):
        assert "secretKeyRef" in environment[name]["valueFrom"], environment[name]
    job = cluster.kubectl("get", "job", "-l", f"prefect.io/flow-run-id={run_id}", "-o", "json")
    for name, key in (("auth", "auth-string"), ("hamilton-ui", "api-key")):
        assert cluster.secret(name, key) not in job


@eventually
def completed_by_schedule(cluster: Cluster, deployment: str) -> None:
    of_deployment = {"id": {"any_": [deployment]}}
    runs = cluster.post("/flow_runs/filter", deployments=of_deployment, limit=200)
    states = [run["state_name"] for run in runs if run["auto_scheduled"]]
    assert "Completed" in states, states


def test_a_schedule_starts_a_run(cluster: Cluster, scheduled: str) -> None:
    completed_by_schedule(cluster, scheduled)


def test_an_out_of_memory_flow_is_reported(cluster: Cluster, runs: dict[str, str]) -> None:
    cluster.wait_for_state(runs["memory"], "Crashed")
    cluster.wait_for_log(runs["memory"], "OOMKilled")


def test_an_unschedulable_pod_is_reported_and_can_be_cancelled(cluster: Cluster) -> None:
    run_id = cluster.start(cluster.probe("waits"), job_variables={"cpu_request": "64"})
    cluster.wait_for_log(run_id, "Insufficient cpu")
    cluster.cancel(run_id)
    cluster.wait_for_state(run_id, "Cancelled")
    no_pods_of(cluster, run_id)


def test_cancellation_ends_the_pod(cluster: Cluster, runs: dict[str, str]) -> None:
    run_id = runs["cancelled"]
    cluster.wait_for_state(run_id, "Running")
    cluster.cancel(run_id)
    cluster.wait_for_state(run_id, "Cancelled")
    no_pods_of(cluster, run_id)


@eventually
def no_pods_of(cluster: Cluster, run_id: str) -> None:
    running = [p for p in cluster.pods(run_id) if p["status"]["phase"] in ("Pending", "Running")]
    assert not running


def test_a_wrong_branch_is_reported_in_the_log(cluster: Cluster, runs: dict[str, str]) -> None:
    run = cluster.wait_for_state(runs["branch"], "Failed", "Crashed")
    log = cluster.wait_for_log(runs["branch"], "absent")
    assert "absent" in run["state"]["message"], log
