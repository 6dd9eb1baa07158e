"""A team's own repository on the cluster: pushed, registered, run as a pod, seen in both UIs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.conftest import KUBECONFIG, NAME, Cluster
from tests.environments import uv
from tests.template.conftest import commit, git, make

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(KUBECONFIG), reason="make kind-push is for kind clusters"),
]

DEPLOYMENT = "daily-revenue/daily-revenue-k8s"


@pytest.fixture
def team(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A repository made from the template, which the cluster has in place of this project's."""
    folder = make(tmp_path / "my-flows")
    uv("lock", "--quiet", "--project", str(folder))
    git("init", "--quiet", "--initial-branch=main", folder=folder)
    commit(folder, "Start")
    cluster.kind("push", "--flows", str(folder))
    try:
        yield folder
    finally:
        cluster.kind("push")


def in_a_terminal(cluster: Cluster, script: str) -> str:
    """Return the output of a script after `eval "$(make -s kind-env)"`."""
    settings = f'eval "$({sys.executable} -m scripts.kind env --name {NAME})"'
    return cluster.run("bash", "-e", "-c", f"{settings}; {script}")


@pytest.mark.usefixtures("team")
def test_a_run_from_a_terminal_completes_and_leaves_graph_and_links(cluster: Cluster) -> None:
    run = f"prefect deployment run {DEPLOYMENT} --watch --flow-run-name of-the-team"
    assert "finished successfully" in in_a_terminal(cluster, run)
    (found,) = cluster.post("/flow_runs/filter", flow_runs={"name": {"any_": ["of-the-team"]}})
    artifacts = {
        artifact["key"]: artifact["data"]
        for artifact in cluster.post("/artifacts/filter", flow_runs={"id": {"any_": [found["id"]]}})
        if artifact["key"]
    }
    assert "data:image/" in artifacts["hamilton-dag-compute-revenue"]
    link = artifacts["hamilton-run-compute-revenue"]
    hamilton_run = link.rpartition("/runs/")[2].rstrip(")")
    headers = {"x-api-user": "prefect", "x-api-key": cluster.secret("hamilton-ui", "api-key")}
    answer = httpx.get(f"{cluster.hamilton_url}/api/v1/dag_runs/{hamilton_run}", headers=headers)
    tags = answer.raise_for_status().json()[0]["tags"]
    assert tags["prefect_flow_run_url"].endswith(found["id"])


def test_kind_env_connects_to_both_servers(cluster: Cluster) -> None:
    names = ("PREFECT_API_URL", "HAMILTON_API_URL", "HAMILTON_UI_USERNAME")
    shown = in_a_terminal(cluster, "; ".join(f'echo "${name}"' for name in names)).split()
    hamilton = f"http://localhost:{cluster.hamilton_port}"
    assert shown == [cluster.api_url, hamilton, "prefect"]
    # Prefect shortens its tables to the width of the terminal.
    assert "kubernetes" in in_a_terminal(cluster, "COLUMNS=200 prefect work-pool ls")
