"""A worker-only release in a separate namespace, with a private flows repository."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from scripts import kind
from tests.cluster.conftest import CHART, NAME, needs_kind
from tests.clusters import RELEASE, Cluster, eventually
from tests.deployments.git_server import git

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), needs_kind]

NAMESPACE = "remote"
GIT_SERVER = Path(__file__).parent / "git-server"
IMAGE = "prefect-hamilton/private-git:test"
FLOW = """
from pathlib import Path

from prefect import flow


@flow(log_prints=True)
def private() -> None:
    print("Cloned", sorted(path.name for path in Path().iterdir()))
"""
PREFECT_YAML = """
name: team
pull:
  - prefect.deployments.steps.git_clone:
      repository: "{{ $FLOWS_REPOSITORY }}"
      branch: "{{ $FLOWS_BRANCH }}"
      access_token: "{{ $FLOWS_ACCESS_TOKEN }}"
deployments:
  - name: team
    entrypoint: flow.py:private
    work_pool: {name: remote}
"""


def kubectl(cluster: Cluster, *arguments: str) -> str:
    return cluster.run("kubectl", "--namespace", NAMESPACE, *arguments)


def apply(cluster: Cluster, folder: Path, *objects: dict[str, Any]) -> None:
    file = folder / "objects.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    kubectl(cluster, "apply", "-f", str(file))


def secret(name: str, **keys: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys}


@pytest.fixture(scope="module")
def namespace(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A namespace with the repository on a Git server that wants a credential; yields its keys."""
    kind.run("docker", "build", "--quiet", "--tag", IMAGE, str(GIT_SERVER))
    kind.load_images(NAME, [IMAGE, "prefect-hamilton/flows:0.1.0"])
    names = ("token", "certificate.pem", "client_key", "host_key.pub")
    keys = {name: kind.run("docker", "run", "--rm", IMAGE, "cat", name) for name in names}
    with ExitStack() as stack:
        stack.callback(cluster.run, "kubectl", "delete", "namespace", NAMESPACE, check=False)
        serve(cluster, keys, tmp_path_factory.mktemp("remote"))
        yield keys


def serve(cluster: Cluster, keys: dict[str, str], folder: Path) -> None:
    """Create the namespace, the Git server and the Secrets; push the repository."""
    restricted = "pod-security.kubernetes.io/enforce=restricted"
    cluster.run("kubectl", "create", "namespace", NAMESPACE)
    cluster.run("kubectl", "label", "namespace", NAMESPACE, restricted)
    labels = {"app": "private-git"}
    container = {
        "name": "git",
        "image": IMAGE,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "runAsUser": 1001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "private-git", "labels": labels},
        "spec": {"containers": [container], "automountServiceAccountToken": False},
    }
    ports = [{"name": "https", "port": 8443}, {"name": "ssh", "port": 2222}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "private-git"},
        "spec": {"selector": labels, "ports": ports},
    }
    apply(
        cluster,
        folder,
        pod,
        service,
        secret("prefect", **{"auth-string": cluster.secret("auth", "auth-string")}),
        secret("git-authority", **{"ca.pem": keys["certificate.pem"]}),
    )
    kubectl(cluster, "wait", "pod/private-git", "--for=condition=Ready", "--timeout=120s")
    repository = folder / "repository"
    git("init", "--quiet", "--initial-branch=main", str(repository))
    (repository / "flow.py").write_text(FLOW)
    (repository / "prefect.yaml").write_text(PREFECT_YAML)
    git("add", ".", cwd=repository)
    git("commit", "--quiet", "-m", "Flows", cwd=repository)
    kubeconfig = cluster.environment["KUBECONFIG"]
    remote = (
        f"ext::kubectl --kubeconfig {kubeconfig} --namespace {NAMESPACE} exec -i private-git "
        "-- git %s /srv/git/flows.git"
    )
    git("-c", "protocol.ext.allow=always", "push", "--quiet", remote, "main", cwd=repository)


@pytest.mark.parametrize(
    ("credential", "repository"),
    [
        ("token", "https://private-git.remote:8443/git/flows.git"),
        ("ssh", "ssh://git@private-git.remote:2222/srv/git/flows.git"),
    ],
)
def test_a_remote_worker_runs_flows_of_a_private_repository(
    credential: str,
    repository: str,
    cluster: Cluster,
    namespace: dict[str, str],
    tmp_path: Path,
) -> None:
    known_host = f"[private-git.remote]:2222 {namespace['host_key.pub']}\n"
    content = {
        "token": {"token": namespace["token"]},
        "ssh": {"ssh-privatekey": namespace["client_key"] + "\n", "known_hosts": known_host},
    }[credential]
    apply(cluster, tmp_path, secret(f"git-{credential}", **content))
    trust = {
        "env": {"GIT_SSL_CAINFO": "/git-authority/ca.pem"},
        "volumes": [{"name": "git-authority", "secret": {"secretName": "git-authority"}}],
        "volumeMounts": [{"name": "git-authority", "mountPath": "/git-authority"}],
    }
    values = {
        "server": {"enabled": False},
        "api": {"url": f"http://{RELEASE}-server.prefect:4200/api"},
        "auth": {"existingSecret": "prefect"},
        "hamiltonUi": {"enabled": False},
        "postgres": {"enabled": False},
        "warehouse": {"enabled": False},
        "workers": {"remote": {}},
        "bootstrap": trust,
        "flows": trust
        | {
            "repository": repository,
            "deployments": ["team"],
            "gitCredential": {"type": credential, "existingSecret": f"git-{credential}"},
        },
    }
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    options = ["--namespace", NAMESPACE, "--values", str(file), "--wait", "--wait-for-jobs"]
    cluster.run("helm", "upgrade", "--install", "remote", CHART, *options, "--timeout=300s")

    (step,) = cluster.deployment("private/team")["pull_steps"]
    assert step["prefect.deployments.steps.git_clone"]["repository"] == repository
    assert namespace["token"] not in json.dumps(step)
    run_id = cluster.start("private/team")
    cluster.wait_for_log(run_id, "Cloned")
    cluster.wait_for_state(run_id, "Completed")

    @eventually
    def pod_there() -> None:
        assert kubectl(cluster, "get", "pods", "-l", f"prefect.io/flow-run-id={run_id}", "-o=name")

    pod_there()
    # The other release's pool stays as it was.
    template = cluster.api.get("/work_pools/kubernetes").json()["base_job_template"]
    assert template["job_configuration"]["namespace"] == "prefect"
    assert namespace["token"] not in cluster.log(run_id)
