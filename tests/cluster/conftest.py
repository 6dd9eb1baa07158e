"""A cluster for all tests of the session: a kind cluster, made as a person makes it, or another.

KIND_CLUSTER names one of `make kind`, to be used and kept. TEST_KUBECONFIG is the kubeconfig of any
other cluster, whose current context is used; TEST_VALUES a values file with what the chart needs
there, such as the registry that has the images.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
import tenacity

from scripts import kind
from tests.deployments.git_server import wait_for_port
from tests.services import ROOT, free_port, output

EXISTING = os.environ.get("KIND_CLUSTER")
KUBECONFIG = os.environ.get("TEST_KUBECONFIG")
VALUES = os.environ.get("TEST_VALUES")
NAME = EXISTING or "prefect-hamilton-test"
NAMESPACE = "prefect"
RELEASE = "prefect-hamilton"
WALKTHROUGH = "ui-walkthrough-retries/walkthrough-k8s"
CONNECT = """
import socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=4).close()
    except OSError:
        continue
    print(target)
"""
CHART = "charts/prefect-hamilton"
LONG_LIVED = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component!=flow-run"
TOOLS = ("helm", "kubectl") if KUBECONFIG else ("docker", "kind", "helm", "kubectl")

needs_kind = pytest.mark.skipif(bool(KUBECONFIG), reason="only on a kind cluster")

eventually = tenacity.retry(
    stop=tenacity.stop_after_delay(180), wait=tenacity.wait_fixed(0.5), reraise=True
)


class PatientTransport(httpx.HTTPTransport):
    """Asks again when the port led nowhere, or to a pod that is gone, as while one is replaced."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        gone: tuple[type[Exception], ...] = (
            httpx.ConnectError,
            httpx.ReadError,
            httpx.RemoteProtocolError,
        )
        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(
                (*gone, httpx.ReadTimeout) if request.method == "GET" else gone
            ),
            stop=tenacity.stop_after_delay(100),
            wait=tenacity.wait_fixed(0.5),
            reraise=True,
        ):
            with attempt:
                response = super().handle_request(request)
        return response


@dataclass
class Cluster:
    """The cluster with its release."""

    environment: dict[str, str]
    port: int
    hamilton_port: int
    printed: str
    """What `scripts.kind up` printed."""

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command with the cluster's kubeconfig; returns its output, errors included."""
        return output(*command, folder=ROOT, env=self.environment, check=check)

    def kind(self, command: str, *options: str) -> str:
        return self.run(sys.executable, "-m", "scripts.kind", command, "--name", NAME, *options)

    def demo(self) -> None:
        """Run every deployment; fails when something differs from what is expected."""
        if KUBECONFIG:
            assert kind.run_all(self.context, self.port, timeout=420)
        else:
            self.kind("demo")

    @property
    def context(self) -> str:
        return self.run("kubectl", "config", "current-context").strip()

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        return self.run("kubectl", "--namespace", NAMESPACE, *arguments, check=check)

    def pipe(self, *arguments: str, **streams: IO[bytes]) -> None:
        """Run kubectl with its input or output in a file."""
        command = ["kubectl", "--namespace", NAMESPACE, *arguments]
        subprocess.run(command, env=self.environment, check=True, **streams)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def helm(self, *arguments: str) -> str:
        return self.run("helm", "--namespace", NAMESPACE, *arguments)

    def secret(self, name: str, key: str) -> str:
        data = self.get("secret", f"{RELEASE}-{name}")["data"]
        return base64.b64decode(data[key]).decode()

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def hamilton_url(self) -> str:
        return f"http://127.0.0.1:{self.hamilton_port}"

    @cached_property
    def api(self) -> httpx.Client:
        """A client of the Prefect API with the release's password."""
        user, password = self.secret("auth", "auth-string").split(":", 1)
        # A connection that is kept may lead to a server that is no more.
        transport = PatientTransport(limits=httpx.Limits(max_keepalive_connections=0))
        return httpx.Client(
            base_url=self.api_url, auth=(user, password), timeout=30, transport=transport
        )

    def post(self, path: str, **body: Any) -> Any:
        response = self.api.post(path, json=body)
        response.raise_for_status()
        return response.json()

    def deployment(self, name: str) -> Any:
        """The deployment `flow/deployment`."""
        response = self.api.get(f"/deployments/name/{name}")
        response.raise_for_status()
        return response.json()

    def probe(
        self,
        flow: str,
        *,
        pull_steps: list[Any] | None = None,
        work_pool: str = "kubernetes",
    ) -> str:
        """Register a flow of probe_flows.py, cloned like the others; returns `flow/deployment`."""
        flow_id = self.post("/flows/", name=flow.replace("_", "-"))["id"]
        self.post(
            "/deployments/",
            name="probe",
            flow_id=flow_id,
            work_pool_name=work_pool,
            entrypoint=f"tests/cluster/probe_flows.py:{flow}",
            pull_steps=self.deployment(WALKTHROUGH)["pull_steps"]
            if pull_steps is None
            else pull_steps,
        )
        return f"{flow.replace('_', '-')}/probe"

    def start(
        self, deployment: str, *, job_variables: dict[str, Any] | None = None, **parameters: Any
    ) -> str:
        """Start a run of `flow/deployment`; returns its id."""
        path = f"/deployments/{self.deployment(deployment)['id']}/create_flow_run"
        body = {"parameters": parameters, "job_variables": job_variables or {}}
        return str(self.post(path, **body)["id"])

    def cancel(self, run_id: str) -> None:
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.post(f"/flow_runs/{run_id}/set_state", state=state)

    def log(self, run_id: str) -> str:
        """What a run has logged so far."""
        found = self.post("/logs/filter", logs={"flow_run_id": {"any_": [run_id]}}, limit=200)
        return "\n".join(line["message"] for line in found)

    @eventually
    def wait_for_log(self, run_id: str, text: str) -> str:
        log = self.log(run_id)
        assert text in log, log
        return log

    def pods(self, run_id: str) -> list[Any]:
        return list(self.get("pods", "-l", f"prefect.io/flow-run-id={run_id}")["items"])

    @eventually
    def let_go(self, run_id: str) -> None:
        """Tell the run of `waits` to end: the running one of its pods."""
        (pod,) = [
            pod["metadata"]["name"]
            for pod in self.pods(run_id)
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]
        self.kubectl("exec", pod, "--", "touch", "/tmp/go")

    def flow_run(self, run_id: str) -> Any:
        response = self.api.get(f"/flow_runs/{run_id}")
        response.raise_for_status()
        return response.json()

    @eventually
    def wait_for_state(self, run_id: str, *states: str) -> Any:
        run = self.flow_run(run_id)
        assert run["state_name"] in states, f"{run['name']}: {run['state_name']}"
        return run

    def reachable(self, *targets: str) -> set[str]:
        """Which of `host:port` a pod that is none of the release's can connect to."""
        container = {
            "name": "stray",
            "image": self.get("deploy", f"{RELEASE}-server")["spec"]["template"]["spec"][
                "containers"
            ][0]["image"],
            "args": ["python", "-c", CONNECT, *targets],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        overrides = json.dumps({"spec": {"containers": [container]}})
        command = ["run", "stray", f"--image={container['image']}", "--restart=Never"]
        self.kubectl(*command, f"--overrides={overrides}")
        try:
            phase = "--for=jsonpath={.status.phase}=Succeeded"
            self.kubectl("wait", "pod/stray", phase, "--timeout=120s")
            return set(self.kubectl("logs", "stray").split())
        finally:
            self.kubectl("delete", "pod", "stray", "--grace-period=1")

    def uids(self) -> dict[str, str]:
        """The long-lived pods' ids, by component."""
        return {
            pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["metadata"]["uid"]
            for pod in self.get("pods", "-l", LONG_LIVED)["items"]
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        }


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
    cluster = Cluster(environment, free_port(), free_port(), "")
    if EXISTING:
        cluster.run("kind", "export", "kubeconfig", "--name", NAME)
        cluster.port, cluster.hamilton_port = kind.ports(NAME)
    try:
        if EXISTING:
            cluster.printed = cluster.kind("push")
        else:
            # `make test-cluster` has built the images.
            options = ("--port", str(cluster.port), "--hamilton-port", str(cluster.hamilton_port))
            cluster.printed = cluster.kind("up", "--no-build", *options)
        yield cluster
    finally:
        if not EXISTING:
            command = ["kind", "delete", "cluster", "--name", NAME]
            subprocess.run(command, env=environment, check=False)


def other_cluster(folder: Path) -> Iterator[Cluster]:
    """With helm install in a namespace that is deleted afterwards; its pages are forwarded here."""
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
        for service, port, forwarded in (
            ("server", 4200, cluster.port),
            ("hamilton-ui", 8241, cluster.hamilton_port),
        ):
            forward = (
                f"kubectl -n {NAMESPACE} port-forward svc/{RELEASE}-{service} {forwarded}:{port}"
            )
            # It ends with the pod that it forwards to.
            loop = ["sh", "-c", f"while sleep 0.2; do {forward}; done"]
            process = subprocess.Popen(
                loop, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            stack.callback(os.killpg, process.pid, signal.SIGTERM)
            wait_for_port(forwarded)
        yield cluster


@pytest.fixture(scope="session")
def demo(cluster: Cluster) -> None:
    """Every deployment has run as pods, and all is as expected."""
    cluster.demo()
