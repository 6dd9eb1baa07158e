"""What a deployment adds to its pod: everything at once, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import needs_kind
from tests.clusters import Cluster, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NAME = "needs"
GPU = "example.org/gpu"
OBJECTS: list[dict[str, Any]] = [
    {"apiVersion": "v1", "kind": "Secret", "stringData": {"token": "t0ken", "SECRET_KEY": "all"}},
    {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "data": {"settings": "s3ttings", "CONFIG_KEY": "map"},
    },
    {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "value": 1000,
        "description": "Of a test.",
    },
    {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "runc"},
]
LINUX = {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}
SHARED = {"name": "shared", "mountPath": "/shared"}


def variables(image: str) -> dict[str, Any]:
    """A value of each job variable that adds to the pod."""
    # The next container starts when the probe of this one succeeds.
    started = {"exec": {"command": ["test", "-f", "/shared/sidecar"]}, "periodSeconds": 1}
    return {
        "secret_env": {"TOKEN": f"{NAME}/token"},
        "env_from_secrets": [NAME],
        "env_from_config_maps": [NAME],
        "secret_files": {"/etc/secret": NAME},
        "config_map_files": {"/etc/config": NAME},
        "volumes": [{"name": "shared", "emptyDir": {}}],
        "volume_mounts": [SHARED],
        "extra_resources": {GPU: 1},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "node_selector": {"kubernetes.io/os": "linux"},
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [LINUX]}]
                }
            }
        },
        "priority_class_name": NAME,
        "runtime_class_name": NAME,
        "init_containers": [
            {
                "name": "prepare",
                "image": image,
                "command": ["sh", "-c", "cat /shared/sidecar > /shared/prepared"],
                "volumeMounts": [SHARED],
            }
        ],
        "sidecars": [
            {
                "name": "beside",
                "image": image,
                "command": ["sh", "-c", "echo fr0m-sidecar > /shared/sidecar; exec sleep 3600"],
                "volumeMounts": [SHARED],
                "startupProbe": started,
            }
        ],
        "labels": {"team": "needs"},
        "annotations": {"example.org/cost": "center 1"},
    }


def apply(cluster: Cluster, file: Path) -> None:
    items = [each | {"metadata": {"name": NAME}} for each in OBJECTS]
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    cluster.kubectl("apply", "-f", str(file))


@pytest.fixture
def objects(cluster: Cluster, tmp_path: Path) -> Iterator[None]:
    """The objects that the variables name, and a node that has a GPU."""
    (node,) = cluster.get("nodes")["items"]
    path = f"/status/capacity/{GPU.replace('/', '~1')}"
    patch = ["patch", "node", node["metadata"]["name"], "--subresource=status", "--type=json"]
    try:
        apply(cluster, tmp_path / "objects.json")
        cluster.kubectl(*patch, f'-p=[{{"op": "add", "path": "{path}", "value": "1"}}]')
        yield
    finally:
        names = [f"{each['kind'].lower()}/{NAME}" for each in OBJECTS]
        cluster.kubectl("delete", "--ignore-not-found", *names)
        cluster.kubectl(*patch, f'-p=[{{"op": "remove", "path": "{path}"}}]', check=False)


@needs_kind
@pytest.mark.usefixtures("objects")
def test_a_run_has_what_its_job_variables_name(cluster: Cluster) -> None:
    template = cluster.api.get("/work_pools/kubernetes").json()["base_job_template"]
    wanted = variables(template["variables"]["properties"]["image"]["default"])
    run_id = cluster.start(
        cluster.probe("shows"),
        job_variables=wanted,
        variables=["TOKEN", "SECRET_KEY", "CONFIG_KEY"],
        files=["/etc/secret/token", "/etc/config/settings", "/shared/prepared"],
    )
    run = cluster.wait_for_state(run_id, "Completed", "Failed", "Crashed")
    assert run["state_name"] == "Completed", f"{run['state']['message']}\n{cluster.log(run_id)}"
    log = cluster.wait_for_log(run_id, "/shared/prepared has fr0m-sidecar")
    for text in (
        "TOKEN is t0ken",
        "SECRET_KEY is all",
        "CONFIG_KEY is map",
        "/etc/secret/token has t0ken",
        "/etc/config/settings has s3ttings",
    ):
        assert text in log
    (pod,) = cluster.pods(run_id)
    spec = pod["spec"]
    assert spec["containers"][0]["resources"]["limits"][GPU] == "1"
    assert wanted["tolerations"][0] in spec["tolerations"]
    assert spec["affinity"] == wanted["affinity"]
    assert (spec["priorityClassName"], spec["priority"]) == (NAME, 1000)
    assert spec["runtimeClassName"] == NAME
    assert pod["metadata"]["labels"]["team"] == "needs"
    assert pod["metadata"]["annotations"]["example.org/cost"] == "center 1"
    wait_until_job_is_complete(cluster, run_id)


@eventually
def wait_until_job_is_complete(cluster: Cluster, run_id: str) -> None:
    """The sidecar, which would go on for an hour, does not keep the Job from its end."""
    (job,) = cluster.get("jobs", "-l", f"prefect.io/flow-run-id={run_id}")["items"]
    assert job["status"].get("succeeded") == 1


def test_a_pod_that_pod_security_forbids_is_refused_in_a_sentence(cluster: Cluster) -> None:
    host = {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}
    run_id = cluster.start(cluster.probe("shows"), job_variables=host, variables=[], files=[])
    run = cluster.wait_for_state(run_id, "Crashed")
    assert "Pod Security restricted forbids it: volume root is of type" in run["state"]["message"]
    cluster.wait_for_log(run_id, run["state"]["message"])
    assert not cluster.get("jobs", "-l", f"prefect.io/flow-run-id={run_id}")["items"]
