"""What a deployment adds to its pod, and what is refused before there is a Job."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_hamilton.worker import pod_security
from prefect_hamilton.worker.job import merged
from tests import services
from tests.chart.charts import pod_security_violations, render
from tests.chart.test_flow_pods import template
from tests.worker.conftest import Pool
from tests.worker.kubernetes_api import KubernetesApi
from tests.worker.test_worker import take_up, working

CONFINED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
POD: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [{"name": "prefect-job", "securityContext": CONFINED}],
}


def in_container(**security: Any) -> dict[str, Any]:
    return {"containers": [{"name": "prefect-job", "securityContext": security}]}


BROKEN = [
    {"hostNetwork": True},
    {"hostPID": True},
    {"hostIPC": True},
    {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]},
    {"volumes": [{"name": "share", "nfs": {"server": "nas", "path": "/"}}]},
    {"securityContext": {"runAsNonRoot": False}},
    {"securityContext": {"runAsUser": 0}},
    {"securityContext": {"seccompProfile": {"type": "Unconfined"}}},
    {"initContainers": [{"name": "first"}]},
    {"containers": [{"name": "prefect-job", "ports": [{"containerPort": 1, "hostPort": 1}]}]},
    in_container(privileged=True),
    in_container(allowPrivilegeEscalation=True),
    in_container(capabilities={"drop": ["NET_RAW"]}),
    in_container(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
    in_container(runAsUser=0),
    in_container(runAsNonRoot=False),
]
ALLOWED = [
    {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]},
    {"initContainers": [{"name": "first", "securityContext": CONFINED}]},
    {"tolerations": [{"operator": "Exists"}], "runtimeClassName": "nvidia"},
    in_container(capabilities={"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}),
    in_container(runAsUser=2000),
]


@pytest.mark.parametrize("part", BROKEN, ids=str)
def test_each_breach_is_found(part: dict[str, Any]) -> None:
    assert list(pod_security.violations(merged(POD, part)))


@pytest.mark.parametrize(
    ("of_pod", "of_container"),
    [
        ({"runAsUser": 0}, {"runAsUser": 2000}),
        ({"runAsNonRoot": False}, {"runAsNonRoot": True}),
        (
            {"seccompProfile": {"type": "Unconfined"}},
            {"seccompProfile": {"type": "RuntimeDefault"}},
        ),
    ],
    ids=str,
)
def test_a_container_does_not_make_up_for_the_pod(
    of_pod: dict[str, Any], of_container: dict[str, Any]
) -> None:
    """Kubernetes refuses what the pod sets, although each container sets something else."""
    pod = merged(merged(POD, {"securityContext": of_pod}), in_container(**of_container))
    assert list(pod_security.violations(pod))
    assert list(pod_security_violations(pod))


@given(st.lists(st.sampled_from([*BROKEN, *ALLOWED]), max_size=4))
def test_the_worker_agrees_with_the_standard(parts: list[dict[str, Any]]) -> None:
    pod = POD
    for part in parts:
        pod = merged(pod, part)
    found = list(pod_security.violations(pod))
    assert bool(found) == bool(list(pod_security_violations(pod))), found


def test_a_merge_keeps_what_the_patch_does_not_name_and_changes_neither() -> None:
    base = {
        "metadata": {"labels": {"a": "1"}},
        "spec": {
            "containers": [
                {"name": "prefect-job", "image": "a", "env": [{"name": "X", "value": "1"}]},
                {"name": "other", "image": "b"},
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "tolerations": [{"key": "old"}],
            "nodeSelector": {"zone": "a"},
            "priorityClassName": "low",
        },
    }
    patch = {
        "metadata": {"labels": {"b": "2"}},
        "spec": {
            "containers": [{"name": "prefect-job", "env": [{"name": "Y", "value": "2"}]}],
            "volumes": [{"name": "tmp", "persistentVolumeClaim": {"claimName": "scratch"}}],
            "tolerations": [{"key": "new"}],
            "nodeSelector": {"disk": "ssd"},
            "priorityClassName": None,
        },
    }
    before = copy.deepcopy((base, patch))
    variables = [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]
    assert merged(base, patch) == {
        "metadata": {"labels": {"a": "1", "b": "2"}},
        "spec": {
            "containers": [
                {"name": "prefect-job", "image": "a", "env": variables},
                {"name": "other", "image": "b"},
            ],
            "volumes": [{"name": "tmp", "persistentVolumeClaim": {"claimName": "scratch"}}],
            "tolerations": [{"key": "new"}],
            "nodeSelector": {"zone": "a", "disk": "ssd"},
        },
    }
    assert (base, patch) == before


@pytest.fixture
def chart_pool(
    own_server: services.Service, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pool]:
    """A pool with the base job template of the chart, whose worker has its rules."""
    monkeypatch.setenv(pod_security.LEVEL, "restricted")
    monkeypatch.setenv(pod_security.SERVICE_ACCOUNTS, "demo-prefect-hamilton-flows,reader")
    yield Pool(own_server, template(render()))


@pytest.mark.services
@pytest.mark.anyio
@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        (
            {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]},
            "No pod is created, because Pod Security restricted forbids it: volume root is of type "
            "hostPath. Change the job variables of the deployment, or set flows.podSecurity to "
            "privileged.",
        ),
        (
            {"service_account_name": "admin"},
            "No pod is created, because the service account admin is not allowed: use one of "
            "demo-prefect-hamilton-flows, reader, or add it to flows.allowedServiceAccounts.",
        ),
    ],
)
async def test_a_refused_run_crashes_with_the_reason_and_has_no_job(
    chart_pool: Pool, kubernetes: KubernetesApi, variables: dict[str, Any], reason: str
) -> None:
    async with working(chart_pool) as worker:
        run = chart_pool.new_run(**variables)
        await take_up(worker, run)
    state = chart_pool.api.state(run)
    assert (state["type"], state["message"]) == ("CRASHED", reason)
    assert not kubernetes.jobs


@pytest.mark.services
@pytest.mark.anyio
async def test_a_run_has_what_its_job_variables_name(
    chart_pool: Pool, kubernetes: KubernetesApi
) -> None:
    async with working(chart_pool) as worker:
        variables = {
            "service_account_name": "reader",
            "secret_env": {"TOKEN": "api/token"},
            "init_containers": [{"name": "prepare", "image": "tools:1"}],
        }
        await take_up(worker, chart_pool.new_run(**variables))
    (job,) = kubernetes.jobs.values()
    pod = job["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "reader"
    token = {"valueFrom": {"secretKeyRef": {"name": "api", "key": "token"}}}
    assert token | {"name": "TOKEN"} in pod["containers"][0]["env"]
    assert pod["initContainers"] == [
        {"name": "prepare", "image": "tools:1", "securityContext": CONFINED}
    ]


@pytest.mark.services
@pytest.mark.anyio
async def test_a_deployment_cannot_leave_the_network_policy_of_its_pool(
    chart_pool: Pool, kubernetes: KubernetesApi
) -> None:
    """Policies select pods by labels, of which a deployment may add others."""
    async with working(chart_pool) as worker:
        other = {
            "app.kubernetes.io/instance": "other",
            "app.kubernetes.io/component": "hamilton-ui",
            "prefect-hamilton/work-pool": "other",
            "team": "a",
        }
        await take_up(worker, chart_pool.new_run(labels=other))
    (job,) = kubernetes.jobs.values()
    found = job["spec"]["template"]["metadata"]["labels"]
    assert {name: found[name] for name in other} == {
        "app.kubernetes.io/instance": "demo",
        "app.kubernetes.io/component": "flow-run",
        "prefect-hamilton/work-pool": "kubernetes",
        "team": "a",
    }
