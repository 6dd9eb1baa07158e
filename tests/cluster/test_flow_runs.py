"""Flow runs as pods: job variables, and reports of pods that cannot start."""

from typing import Any

import pytest

from tests.clusters import RELEASE, Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["spec"]["containers"]
    return dict(found)


def test_job_variables_of_a_run_override_the_deployment(cluster: Cluster) -> None:
    variables = {
        "cpu_request": "31m",
        "cpu_limit": "1",
        "memory_request": "131Mi",
        "memory_limit": "611Mi",
        "env": {"GREETING": "from the run"},
        "labels": {"team": "metrics"},
    }
    run_id = cluster.start(cluster.probe("tells"), job_variables=variables, variable="GREETING")
    cluster.wait_for_state(run_id, "Completed")
    cluster.wait_for_log(run_id, "GREETING is from the run")
    (pod,) = cluster.pods(run_id)
    assert container(pod)["resources"] == {
        "requests": {"cpu": "31m", "memory": "131Mi"},
        "limits": {"cpu": "1", "memory": "611Mi"},
    }
    assert pod["metadata"]["labels"]["team"] == "metrics"


def test_job_variables_of_a_deployment_override_the_template(cluster: Cluster) -> None:
    deployment = cluster.deployment(cluster.probe("tells"))
    image = container_image(cluster)
    # Another name of the same image, where there is one.
    other = f"docker.io/{image}" if image.startswith("prefect-hamilton/") else image
    path = f"/deployments/{deployment['id']}"
    variables = {"image": other, "memory_request": "140Mi"}
    cluster.api.patch(path, json={"job_variables": variables}).raise_for_status()
    try:
        run_id = cluster.start("tells/probe", variable="HOME")
        cluster.wait_for_state(run_id, "Completed")
    finally:
        cluster.api.patch(path, json={"job_variables": {}}).raise_for_status()
    (pod,) = cluster.pods(run_id)
    assert container(pod)["image"] == other
    assert container(pod)["resources"]["requests"]["memory"] == "140Mi"


def container_image(cluster: Cluster) -> str:
    """The image of flow pods."""
    template = cluster.api.get("/work_pools/kubernetes").json()["base_job_template"]
    return str(template["variables"]["properties"]["image"]["default"])


def test_a_schedule_starts_a_run(cluster: Cluster) -> None:
    deployment = cluster.deployment(cluster.probe("tells"))["id"]
    schedule = {"interval": 20}
    answer = cluster.api.patch(
        f"/deployments/{deployment}", json={"parameters": {"variable": "HOME"}}
    )
    assert answer.is_success, answer.text
    answer = cluster.api.post(
        f"/deployments/{deployment}/schedules", json=[{"schedule": schedule, "active": True}]
    )
    assert answer.is_success, answer.text

    @eventually
    def completed() -> None:
        runs = cluster.post(
            "/flow_runs/filter",
            deployments={"id": {"any_": [deployment]}},
            limit=200,
        )
        states = [run["state_name"] for run in runs if run["auto_scheduled"]]
        assert "Completed" in states, states

    (created,) = answer.json()
    try:
        completed()
    finally:
        cluster.api.delete(f"/deployments/{deployment}/schedules/{created['id']}")


def test_secrets_reach_a_pod_as_references(cluster: Cluster) -> None:
    run_id = cluster.start(cluster.probe("tells"), variable="HAMILTON_UI_USERNAME")
    cluster.wait_for_state(run_id, "Completed")
    (pod,) = cluster.pods(run_id)
    environment = {entry["name"]: entry for entry in container(pod)["env"]}
    for name in ("PREFECT_API_AUTH_STRING", "WAREHOUSE_URL", "HAMILTON_API_KEY"):
        assert "secretKeyRef" in environment[name]["valueFrom"], environment[name]
    job = cluster.kubectl("get", "job", "-l", f"prefect.io/flow-run-id={run_id}", "-o", "json")
    for name, key in (("auth", "auth-string"), ("hamilton-ui", "api-key")):
        assert cluster.secret(name, key) not in job


def test_an_out_of_memory_flow_is_reported(cluster: Cluster) -> None:
    run_id = cluster.start(cluster.probe("eats_memory"), job_variables={"memory_limit": "256Mi"})
    cluster.wait_for_state(run_id, "Crashed")
    cluster.wait_for_log(run_id, "OOMKilled")


def test_an_unschedulable_pod_is_reported_and_can_be_cancelled(cluster: Cluster) -> None:
    run_id = cluster.start(cluster.probe("waits"), job_variables={"cpu_request": "64"})
    cluster.wait_for_log(run_id, "Insufficient cpu")
    cluster.cancel(run_id)
    cluster.wait_for_state(run_id, "Cancelled")
    no_pods_of(cluster, run_id)


def test_cancellation_ends_the_pod(cluster: Cluster) -> None:
    run_id = cluster.start(cluster.probe("waits"))
    cluster.wait_for_state(run_id, "Running")
    cluster.cancel(run_id)
    cluster.wait_for_state(run_id, "Cancelled")
    no_pods_of(cluster, run_id)


@eventually
def no_pods_of(cluster: Cluster, run_id: str) -> None:
    running = [p for p in cluster.pods(run_id) if p["status"]["phase"] in ("Pending", "Running")]
    assert not running


def test_a_wrong_branch_is_reported_in_the_log(cluster: Cluster) -> None:
    repository = f"git://{RELEASE}-git-server/flows.git"
    step = {"repository": repository, "branch": "absent"}
    steps = [{"prefect.deployments.steps.git_clone": step}]
    run_id = cluster.start(cluster.probe("waits", pull_steps=steps))
    run = cluster.wait_for_state(run_id, "Failed", "Crashed")
    log = cluster.wait_for_log(run_id, "absent")
    assert "absent" in run["state"]["message"], log
