"""A cluster for all tests of the session: a kind cluster from `make kind`, or an existing one.

KIND_CLUSTER names one of `make kind`, to be used and kept. TEST_KUBECONFIG is the kubeconfig of any
other cluster, whose current context is used; TEST_VALUES a values file with what the chart needs
there, such as the registry that has the images.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scripts import kind
from tests.clusters import NAMESPACE, RELEASE, Cluster, eventually
from tests.deployments.git_server import wait_for_port
from tests.services import free_port

EXISTING = os.environ.get("KIND_CLUSTER")
KUBECONFIG = os.environ.get("TEST_KUBECONFIG")
VALUES = os.environ.get("TEST_VALUES")
NAME = EXISTING or "prefect-hamilton-test"
CHART = "charts/prefect-hamilton"
TOOLS = ("helm", "kubectl") if KUBECONFIG else ("docker", "kind", "helm", "kubectl")

needs_kind = pytest.mark.skipif(bool(KUBECONFIG), reason="only on a kind cluster")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Install everything from nothing."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"not on PATH: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("cluster")
    if KUBECONFIG:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", KUBECONFIG)
            yield from other_cluster(folder)
        return
    if subprocess.run(["docker", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no Docker engine answers")
    yield from kind_cluster(folder)


def kind_cluster(folder: Path) -> Iterator[Cluster]:
    """With the command of the README, on free ports."""
    environment = {**os.environ, "KUBECONFIG": str(folder / "kubeconfig"), "NO_COLOR": "1"}
    cluster = Cluster(environment, free_port(), free_port(), "", NAME)
    delete = ("kind", "delete", "cluster", "--name", NAME)
    if EXISTING:
        cluster.run("kind", "export", "kubeconfig", "--name", NAME)
        cluster.port, cluster.hamilton_port = kind.ports(NAME)
    else:
        # An interrupted run of the tests leaves it behind.
        cluster.run(*delete)
    try:
        if EXISTING:
            cluster.printed = cluster.kind("push")
        else:
            # `make test-cluster` has built the images.
            options = ("--port", str(cluster.port), "--hamilton-port", str(cluster.hamilton_port))
            cluster.printed = cluster.kind("up", "--no-build", *options)
        # Most tests are about pods that are created for a flow run; test_standby.py has its own.
        with standby_pods(cluster, 0):
            yield cluster
    finally:
        if not EXISTING:
            cluster.run(*delete, check=False)


@contextmanager
def standby_pods(cluster: Cluster, count: int, *options: str) -> Iterator[None]:
    """The release with that number of standby pods, which have ended when it has none."""
    (before,) = json.loads(cluster.helm("history", RELEASE, "--max=1", "--output=json"))
    standby = ("--set", f"flows.standby.count={count}", *options)
    cluster.helm("upgrade", RELEASE, CHART, "--reset-then-reuse-values", *standby)
    wait_for_standbys(cluster, count)
    try:
        yield
    finally:
        cluster.helm("rollback", RELEASE, str(before["revision"]))
        wait_for_workers(cluster)


def wait_for_workers(cluster: Cluster) -> None:
    worker = f"deploy/{RELEASE}-worker-kubernetes"
    cluster.kubectl("rollout", "status", worker, "--timeout=180s")


@eventually
def wait_for_standbys(cluster: Cluster, count: int) -> None:
    """Return when the workers have been replaced, and as many pods are idle."""
    wait_for_workers(cluster)
    pods = cluster.get("pods", "-l", "prefect-hamilton/standby=idle")["items"]
    phases = [pod["status"]["phase"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    assert phases == ["Running"] * count, phases


def other_cluster(folder: Path) -> Iterator[Cluster]:
    """With helm install in a namespace that is deleted afterwards; the UIs are port-forwarded."""
    cluster = Cluster({**os.environ, "NO_COLOR": "1"}, free_port(), free_port(), "")
    if cluster.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found"):
        pytest.fail(
            f"The cluster has a namespace {NAMESPACE} already, which the tests would delete."
        )
    values = {
        "server": {"url": f"http://localhost:{cluster.port}"},
        "hamiltonUi": {
            "url": f"http://localhost:{cluster.hamilton_port}",
            "allowedHosts": ["127.0.0.1"],
        },
        "gitServer": {"enabled": True},
    }
    file = folder / "values.json"
    file.write_text(json.dumps(values))
    files = [str(file), *([VALUES] if VALUES else [])]
    with ExitStack() as stack:
        stack.callback(cluster.run, "kubectl", "delete", "namespace", NAMESPACE, check=False)
        kind.create_namespace(cluster.context)
        options = [word for name in files for word in ("--values", name)]
        cluster.helm("install", RELEASE, CHART, *options)
        commit, _ = kind.snapshot()
        kind.publish(cluster.context, commit, timeout=600)
        kind.wait_until_ready(cluster.context, timeout=600)
        forward_uis(cluster, stack)
        yield cluster


def forward_uis(cluster: Cluster, stack: ExitStack) -> None:
    """Forward the ports of `cluster` to both UIs of its release until the stack is closed."""
    for service, port, forwarded in (
        ("server", 4200, cluster.port),
        ("ui", 8241, cluster.hamilton_port),
    ):
        forward = (
            f"kubectl -n {cluster.namespace} port-forward svc/{cluster.release}-{service} "
            f"{forwarded}:{port}"
        )
        # It ends with the pod that it forwards to.
        process = subprocess.Popen(
            ["sh", "-c", f"while sleep 0.2; do {forward}; done"],
            env=cluster.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        stack.callback(os.killpg, process.pid, signal.SIGTERM)
        wait_for_port(forwarded)


@pytest.fixture(scope="session")
def demo(cluster: Cluster) -> None:
    """Every deployment has run as pods, and all is as expected."""
    cluster.demo()
