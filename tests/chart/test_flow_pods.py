"""The base job template as the worker fills it in: what a flow pod looks like."""

import asyncio
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun

from prefect_hamilton.bootstrap.desired_state import (
    FILE,
    DesiredState,
    FromEnvironment,
    WorkPool,
    load,
    resolve,
)
from prefect_hamilton.states import NOT_RESCHEDULED
from prefect_hamilton.worker.job import JobConfiguration
from tests.chart.charts import Object, Release, check, env, render
from tests.chart.conftest import PROFILES, profile_values

NAMESPACE = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}


def template(release: Release, pool: str = "kubernetes") -> Object:
    """Return a pool's base job template as the bootstrap reads it."""
    data = release.get("ConfigMap", "bootstrap")["data"]
    job = release.job("bootstrap")
    variables = {
        name: job["metadata"]["namespace"] if value == NAMESPACE else value
        for name, value in env(job["spec"]["template"]["spec"]["containers"][0]).items()
    }
    content = yaml.safe_load(data[f"base-job-template-{pool}.yaml"])
    read = WorkPool(name=pool, type="kubernetes", base_job_template=content)
    return dict(resolve(read.base_job_template, variables))


def flow_job(base_job_template: Object, variables: Object | None = None) -> Object:
    """Return the Job that a worker would create for a flow run."""
    configuration = asyncio.run(
        JobConfiguration.from_template_and_values(
            base_job_template=base_job_template,
            values=variables or {},
            # Called only for blocks in a template; the chart's template has none.
            client=PrefectClient("http://127.0.0.1:9/api"),
        )
    )
    flow_run = FlowRun(id=uuid.uuid4(), name="quick-fox", flow_id=uuid.uuid4())
    configuration.prepare_for_flow_run(flow_run)
    job = configuration.job_manifest
    if not job["metadata"]["annotations"]:
        del job["metadata"]["annotations"]
    # Prefect requires these two in the pod, where Kubernetes ignores them.
    for key in ("parallelism", "completions"):
        del job["spec"]["template"]["spec"][key]
    return job


@pytest.fixture(autouse=True)
def _worker_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://demo-prefect-hamilton-server:4200/api")


@pytest.mark.parametrize("name", PROFILES)
def test_flow_pods_are_valid_and_restricted(name: str, profiles: dict[str, Release]) -> None:
    for pool in profile_values(name).get("workers", {"kubernetes": {}}):
        slug = {"GPU_pool": "gpu-pool-40d5"}.get(pool, pool)
        check(flow_job(template(profiles[name], slug)))


def test_the_values_are_the_defaults(default: Release) -> None:
    job = flow_job(template(default))
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert job["spec"]["backoffLimit"] == 0
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert rule["onExitCodes"]["values"] == [NOT_RESCHEDULED]
    assert job["spec"]["activeDeadlineSeconds"] == 86400
    assert job["spec"]["ttlSecondsAfterFinished"] == 600
    assert job["metadata"]["namespace"] == "flows"
    assert container["image"] == "prefect-hamilton/flows:0.1.0"
    assert container["resources"] == {
        "requests": {"cpu": "25m", "memory": "128Mi"},
        "limits": {"memory": "512Mi"},
    }
    assert pod["serviceAccountName"] == "demo-prefect-hamilton-flows"
    assert pod["automountServiceAccountToken"] is False
    found = env(container)
    assert found["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    assert found["WAREHOUSE_URL"] == {
        "secretKeyRef": {"name": "demo-prefect-hamilton-postgres", "key": "warehouse-url"}
    }
    assert found["HAMILTON_API_KEY"]["secretKeyRef"]["key"] == "api-key"


def test_job_variables_override_the_template(default: Release) -> None:
    job = flow_job(
        template(default),
        {
            "image": "mine:2",
            "cpu_request": "250m",
            "cpu_limit": "1",
            "memory_limit": "2Gi",
            "env": {"A": "b", "WAREHOUSE_URL": "duckdb:////tmp/warehouse.duckdb"},
            "active_deadline_seconds": 60,
            "node_selector": {"gpu": "yes"},
            "labels": {"team": "data"},
            "annotations": {"example.org/a": "b"},
            "command": "python -m mine",
        },
    )
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == "mine:2"
    assert container["args"] == ["python", "-m", "mine"]
    assert container["resources"]["requests"] == {"cpu": "250m", "memory": "128Mi"}
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}
    assert env(container)["A"] == "b"
    assert env(container)["WAREHOUSE_URL"] == "duckdb:////tmp/warehouse.duckdb"
    assert job["spec"]["activeDeadlineSeconds"] == 60
    assert pod["nodeSelector"] == {"gpu": "yes"}
    assert job["spec"]["template"]["metadata"]["labels"]["team"] == "data"
    check(job)


def test_a_pool_has_its_own_flow_pods(profiles: dict[str, Release]) -> None:
    job = flow_job(template(profiles["everything"], "gpu-pool-40d5"))
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.example.org/mirror/example/gpu-flows:2"
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert env(pod["containers"][0])["CUDA"] == "1"
    assert env(pod["containers"][0])["REGION"] == "eu"
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]


def test_a_pool_may_differ_in_a_tag_and_null_is_no_difference() -> None:
    own = {"replicas": None, "image": {"tag": "7"}, "flows": {"image": {"tag": "8"}, "env": None}}
    release = render({"workers": {"gpu": own}, "flows": {"env": {"A": "b"}}})
    worker = release.get("Deployment", "worker-gpu")["spec"]
    assert worker["replicas"] == 1
    assert worker["template"]["spec"]["containers"][0]["image"] == "prefect-hamilton/prefect:7"
    container = flow_job(template(release, "gpu"))["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "prefect-hamilton/flows:8"
    assert env(container)["A"] == "b"


def test_a_variable_of_a_pool_has_one_source() -> None:
    """That of the pool, also where the release takes it from another kind of object."""
    shared = {"secretKeyRef": {"name": "shared", "key": "a"}}
    own = {"configMapKeyRef": {"name": "own", "key": "a"}}
    values = {
        "global": {"env": {"A": shared}},
        "worker": {"env": {"A": shared, "B": "b"}},
        "flows": {"env": {"A": shared, "B": "b"}},
        "workers": {"gpu": {"env": {"A": own}, "flows": {"env": {"A": own}}}},
    }
    release = render(values)
    worker = release.get("Deployment", "worker-gpu")["spec"]["template"]["spec"]["containers"][0]
    flow = flow_job(template(release, "gpu"))["spec"]["template"]["spec"]["containers"][0]
    for container in (worker, flow):
        assert env(container)["A"] == own
        assert env(container)["B"] == "b"


def test_only_the_listed_pools_are_created() -> None:
    assert workers({"workers": {"gpu": {}}}) == ["gpu"]
    release = render({"workers": {"gpu": {}}})
    state = yaml.safe_load(release.get("ConfigMap", "bootstrap")["data"]["state.yaml"])
    assert [pool["name"] for pool in state["work_pools"]] == ["gpu"]


def workers(values: dict[str, Any]) -> list[str]:
    names = [d["metadata"]["name"] for d in render(values).of("Deployment")]
    return [name.rpartition("-worker-")[2] for name in names if "-worker-" in name]


def test_a_worker_runs_unless_it_is_switched_off() -> None:
    assert workers({"workers": None}) == ["kubernetes"]
    assert workers({"worker": {"enabled": False}, "workers": {"gpu": {}}}) == []
    state = render({"worker": {"enabled": False}}).get("ConfigMap", "bootstrap")["data"]
    assert "work_pools" not in state["state.yaml"]


def test_no_limit_means_none(default: Release) -> None:
    release = render({"flows": {"activeDeadlineSeconds": 0}})
    assert "activeDeadlineSeconds" not in (flow_job(template(release)))["spec"]


def test_network_policies_select_flow_pods(default: Release) -> None:
    """Prefect adds app.kubernetes.io labels to flow pods; those of the chart must be kept."""
    job = flow_job(template(default))
    own = job["spec"]["template"]["metadata"]["labels"]
    policy = default.get("NetworkPolicy", "flows")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= own.items()
    server = default.get("Service", "server")["spec"]["selector"]
    assert not server.items() <= own.items()


def bootstrap_state(release: Release, folder: Path) -> DesiredState:
    """Read the release's state as the bootstrap does, from the files of its ConfigMap."""
    for name, text in release.get("ConfigMap", "bootstrap")["data"].items():
        (folder / name).write_text(text)
    return load([folder / "state.yaml"])


@pytest.mark.parametrize("name", PROFILES)
def test_the_bootstrap_understands_its_state(
    name: str, profiles: dict[str, Release], tmp_path: Path
) -> None:
    state = bootstrap_state(profiles[name], tmp_path)
    pools = list(profile_values(name).get("workers", {"kubernetes": {}}))
    assert sorted(pool.name for pool in state.work_pools) == sorted(pools)
    assert {deployment.work_pool for deployment in state.deployments} <= set(pools)


def test_role_template_and_observer_use_the_same_namespace() -> None:
    release = render({"flows": {"namespace": "team-flows"}})
    assert template(release)["job_configuration"]["namespace"] == "team-flows"
    assert release.get("Role", "worker")["metadata"]["namespace"] == "team-flows"
    worker = release.get("Deployment", "worker-kubernetes")["spec"]["template"]["spec"]
    observed = env(worker["containers"][0])["PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES"]
    assert observed == "team-flows"
    assert env(worker["containers"][0])["PREFECT_API_URL"] == (
        "http://demo-prefect-hamilton-server.flows:4200/api"
    )


def test_the_release_namespace_appears_in_metadata_only() -> None:
    """So that Kustomize can put a release anywhere whose flow pods are in the same namespace."""
    for name in set(PROFILES) - {"everything", "teams"}:
        for obj in render(profile_values(name), namespace="needle").objects:
            del obj["metadata"]["namespace"]
            for subject in obj.get("subjects", []):
                del subject["namespace"]
            assert "needle" not in yaml.safe_dump(obj), obj["metadata"]["name"]


def test_a_failed_run_is_reported_by_a_pod(default: Release, tmp_path: Path) -> None:
    """The same automation as on a laptop, but for the deployment that it runs."""
    state = bootstrap_state(default, tmp_path)
    (here,) = state.automations
    (there,) = load([FILE]).automations
    assert here.run_deployment == "Failed Run Report/on-failure-k8s"
    assert here == there.model_copy(update={"run_deployment": here.run_deployment})
    (deployment,) = state.deployments
    assert (deployment.name, deployment.work_pool) == ("on-failure-k8s", "kubernetes")


def test_failed_runs_are_reported_in_a_pool_of_the_release_by_the_release_s_image(
    tmp_path: Path,
) -> None:
    """The image of a pool may lack the library."""
    pools = {"large": {}, "gpu": {"flows": {"image": {"repository": "team/gpu", "tag": "1"}}}}
    release = render({"workers": pools})
    (deployment,) = bootstrap_state(release, tmp_path).deployments
    assert deployment.work_pool == "gpu"
    (image,) = deployment.job_variables.values()
    assert isinstance(image, FromEnvironment)
    job = release.job("bootstrap")["spec"]["template"]["spec"]
    assert env(job["containers"][0])[image.from_env] == "prefect-hamilton/flows:0.1.0"


def test_workers_of_an_external_server_leave_its_report_alone(tmp_path: Path) -> None:
    release = render(profile_values("worker-only"))
    assert bootstrap_state(release, tmp_path).deployments == []


def test_an_entry_of_the_values_replaces_the_default_of_the_same_name(tmp_path: Path) -> None:
    automation = {"name": "report-failed-runs", "trigger": {}, "run_deployment": "a/b"}
    values = {"value": {"from_env": "MY_WAREHOUSE"}}
    block = {"name": "warehouse-url", "type": "secret", "values": values}
    own = {"bootstrap": {"state": {"automations": [automation], "blocks": [block]}}}
    release = render(own | {"warehouse": {"enabled": False}})
    state = bootstrap_state(release, tmp_path)
    assert [each.run_deployment for each in state.automations] == ["a/b"]
    (found,) = state.model_dump()["blocks"]
    assert found["values"]["value"]["from_env"] == "MY_WAREHOUSE"


def test_submodules_are_cloned_on_request(profiles: dict[str, Release]) -> None:
    def variables(name: str) -> dict[str, Any]:
        job = profiles[name].job("bootstrap")["spec"]["template"]["spec"]
        return env(job["containers"][0])

    assert variables("everything")["FLOWS_SUBMODULES"] == "true"
    assert "FLOWS_SUBMODULES" not in variables("kind")


def test_flow_pods_clone_from_the_development_server(profiles: dict[str, Release]) -> None:
    release = profiles["kind"]
    job = release.job("bootstrap")["spec"]["template"]["spec"]["containers"][0]
    assert env(job)["FLOWS_REPOSITORY"] == "git://demo-prefect-hamilton-git-server/flows.git"
    server = release.get("Service", "git-server")
    assert server["spec"]["ports"][0]["port"] == 9418


def test_flow_pods_send_to_a_collector_who_they_are() -> None:
    release = render(
        {
            "telemetry": {"otlp": {"endpoint": "http://collector.monitoring:4318"}},
            "networkPolicy": {"flowsEgress": []},
            "workers": {"a&pool": {}},
        }
    )
    (key,) = [
        name.removeprefix("base-job-template-").removesuffix(".yaml")
        for name in release.get("ConfigMap", "bootstrap")["data"]
        if name.startswith("base-job-template-")
    ]
    job = flow_job(template(release, key))
    check(job)
    container = job["spec"]["template"]["spec"]["containers"][0]
    found = env(container)
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.monitoring:4318"
    # Kubernetes replaces only the names of variables that come before.
    names = [each["name"] for each in container["env"]]
    resource = dict(parse_qsl(found["PREFECT_HAMILTON_TRACE_RESOURCE"]))
    for attribute, variable in {
        "k8s.pod.name": "POD_NAME",
        "k8s.namespace.name": "POD_NAMESPACE",
        "prefect.deployment.name": "POD_DEPLOYMENT_NAME",
        "prefect.flow.name": "POD_FLOW_NAME",
    }.items():
        assert resource[attribute] == f"$({variable})"
        assert names.index(variable) < names.index("PREFECT_HAMILTON_TRACE_RESOURCE")
    assert resource["prefect.work-pool.name"] == "a&pool"
    egress = release.get("NetworkPolicy", "flows")["spec"]["egress"]
    assert {"ports": [{"port": 4318, "protocol": "TCP"}]} in egress


def test_flow_pods_send_nothing_by_default(default: Release) -> None:
    container = flow_job(template(default))["spec"]["template"]["spec"]["containers"][0]
    assert not [name for name in env(container) if name.startswith(("OTEL_", "POD_"))]
