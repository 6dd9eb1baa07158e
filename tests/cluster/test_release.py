"""The chart on a real cluster: installed from nothing, used, closed to others.

The namespace enforces Pod Security `restricted`, the cluster its NetworkPolicies.
"""

import json
from pathlib import Path

import httpx
import pytest

from tests.cluster.conftest import needs_kind
from tests.clusters import NAMESPACE, RELEASE, Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

K8S = {
    "production-etl-k8s",
    "absenteeism-k8s",
    "walkthrough-k8s",
    "after-production-etl-k8s",
    "on-failure-k8s",
}


@needs_kind
def test_the_ui_addresses_and_the_log_in_are_printed(cluster: Cluster) -> None:
    assert f"http://localhost:{cluster.port}" in cluster.printed
    assert f"http://localhost:{cluster.hamilton_port}" in cluster.printed
    password = cluster.secret("auth", "auth-string")
    assert password not in cluster.printed
    (command,) = [line for line in cluster.printed.splitlines() if "log in" in line]
    assert cluster.run("sh", "-c", command.replace("log in", "")).strip() == password


def test_the_release_passes_helm_test(cluster: Cluster) -> None:
    assert "Succeeded" in cluster.helm("test", RELEASE)


@pytest.mark.usefixtures("demo")
def test_every_deployment_runs_as_a_pod(cluster: Cluster) -> None:
    deployments = {d["id"]: d["name"] for d in cluster.post("/deployments/filter")}
    runs = cluster.post("/flow_runs/filter", limit=200)
    jobs = {
        deployments.get(run["deployment_id"])
        for run in runs
        if (run["infrastructure_pid"] or "").startswith(f"{NAMESPACE}:")
    }
    assert jobs >= K8S


def test_the_server_keeps_a_record_of_what_the_bootstrap_created(cluster: Cluster) -> None:
    of_records = {"slug": {"any_": ["bootstrap-record"]}}
    (record,) = cluster.post("/block_documents/filter", block_types=of_records)
    assert record["data"]["release"] == f"{NAMESPACE}/{RELEASE}"
    objects = record["data"]["objects"].values()
    created = {each["name"].partition("/")[2] for each in objects if each["created"]}
    assert created >= K8S


def test_a_plan_after_the_installation_has_no_change(cluster: Cluster, tmp_path: Path) -> None:
    (job,) = cluster.get("jobs", "-l", "app.kubernetes.io/component=bootstrap")["items"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    container["args"][container["args"].index("apply")] = "plan"
    labels = {
        key: value
        for key, value in job["spec"]["template"]["metadata"]["labels"].items()
        if key.startswith("app.kubernetes.io/")
    }
    plan = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "plan-now"},
        "spec": {
            "backoffLimit": 0,
            "template": {"metadata": {"labels": labels}, "spec": {**pod, "restartPolicy": "Never"}},
        },
    }
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    try:
        cluster.kubectl("create", "-f", str(file))
        until = ("--for=jsonpath={.status.conditions[0].status}=True", "--timeout=180s")
        cluster.kubectl("wait", "job/plan-now", *until)
        log = cluster.kubectl("logs", "job/plan-now")
    finally:
        cluster.kubectl("delete", "job", "plan-now", "--ignore-not-found")
    assert "Plan: 0 created, 0 updated, 0 removed" in log, log


@pytest.mark.usefixtures("demo")
def test_tracked_dataflows_are_in_the_hamilton_ui(cluster: Cluster) -> None:
    artifacts = cluster.post("/artifacts/filter")
    links = [a["data"] for a in artifacts if f":{cluster.hamilton_port}/" in str(a["data"])]
    assert links, "no artifact links to the Hamilton UI as people reach it"


def test_a_wrong_password_is_refused(cluster: Cluster) -> None:
    for auth in (None, ("prefect", "wrong")):
        response = httpx.post(f"{cluster.api_url}/flow_runs/filter", auth=auth, json={})
        assert response.status_code == httpx.codes.UNAUTHORIZED
    projects = f"{cluster.hamilton_url}/api/v1/projects"
    for headers in ({}, {"x-api-key": "wrong"}):
        response = httpx.get(projects, headers={"x-api-user": "prefect", **headers})
        assert response.status_code == httpx.codes.UNAUTHORIZED
    right = {"x-api-user": "prefect", "x-api-key": cluster.secret("hamilton-ui", "api-key")}
    assert httpx.get(projects, headers=right).is_success


def test_old_hamilton_runs_are_deleted_by_a_job(cluster: Cluster) -> None:
    cron = f"cronjob/{RELEASE}-ui-retention"
    cluster.kubectl("create", "job", "retention-now", f"--from={cron}")
    try:
        cluster.kubectl("wait", "job/retention-now", "--for=condition=complete", "--timeout=120s")
        assert "deleted 0 old runs" in cluster.kubectl("logs", "job/retention-now")
    finally:
        cluster.kubectl("delete", "job", "retention-now")


def test_an_unrelated_pod_reaches_only_the_uis(cluster: Cluster) -> None:
    (worker,) = cluster.get("pods", "-l", "app.kubernetes.io/component=worker")["items"]
    # The last is the name that the Service had in 0.1.0.
    uis = {f"{RELEASE}-{name}" for name in ("server:4200", "ui:8241", "hamilton-ui:8241")}
    closed = {
        f"{RELEASE}-postgres:5432",
        f"{RELEASE}-git-server:9418",
        f"{worker['status']['podIP']}:8080",
    }
    assert cluster.reachable(*uis, *closed) == uis


def test_a_pod_that_is_not_restricted_is_refused(cluster: Cluster) -> None:
    answer = cluster.kubectl("run", "root", "--image=postgres:17", check=False)
    assert "violates PodSecurity" in answer
    assert NAMESPACE in cluster.run("kubectl", "get", "namespaces")
