"""A kind cluster for all tests of the session, made as a person makes it: with `scripts.kind`."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import httpx
import pytest
import tenacity

from scripts.kind import ports
from tests.services import ROOT, free_port, output

# A cluster of `make kind` can be named to be used, and kept; another is made otherwise.
EXISTING = os.environ.get("KIND_CLUSTER")
NAME = EXISTING or "prefect-hamilton-test"
NAMESPACE = "prefect"
RELEASE = "prefect-hamilton"
WALKTHROUGH = "ui-walkthrough-retries/walkthrough-k8s"
TOOLS = ("docker", "kind", "helm", "kubectl")

eventually = tenacity.retry(
    stop=tenacity.stop_after_delay(180), wait=tenacity.wait_fixed(0.5), reraise=True
)


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
        transport = httpx.HTTPTransport(retries=5)
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

    def uids(self) -> dict[str, str]:
        """The long-lived pods' ids, by component."""
        return {
            pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod["metadata"]["uid"]
            for pod in self.get("pods", "-l", f"app.kubernetes.io/instance={RELEASE}")["items"]
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        }


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Install everything from nothing with the command of the README, on free ports."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"not on PATH: {', '.join(missing)}")
    if subprocess.run(["docker", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no Docker engine answers")
    kubeconfig = tmp_path_factory.mktemp("kind") / "kubeconfig"
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "NO_COLOR": "1"}
    cluster = Cluster(environment, free_port(), free_port(), "")
    if EXISTING:
        cluster.run("kind", "export", "kubeconfig", "--name", NAME)
        cluster.port, cluster.hamilton_port = ports(NAME)
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


@pytest.fixture(scope="session")
def demo(cluster: Cluster) -> str:
    """What `make kind-demo` printed, after every deployment has run as pods."""
    return cluster.kind("demo")
