"""A cluster with a release of the chart, as tests talk to it: kubectl, helm and Prefect's API."""

import base64
import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import httpx
import tenacity

from scripts import kind
from scripts.kind import NAMESPACE, RELEASE
from tests.services import ROOT, output

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
VOLUMES = "/var/local-path-provisioner"
"""Folder of the volumes in the node of a kind cluster."""
LONG_LIVED = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component!=flow-run"

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
    name: str = ""
    """Of the kind cluster, if it is one."""
    namespace: str = NAMESPACE
    release: str = RELEASE

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command with the cluster's kubeconfig; returns its output, errors included."""
        return output(*command, folder=ROOT, env=self.environment, check=check)

    def kind(self, command: str, *options: str) -> str:
        which = ("--name", self.name)
        return self.run(sys.executable, "-m", "scripts.kind", command, *which, *options)

    def demo(self) -> None:
        """Run every deployment; fails when something differs from what is expected."""
        if self.name:
            self.kind("demo")
        else:
            assert kind.run_all(self.context, self.port, timeout=420)

    @property
    def context(self) -> str:
        return self.run("kubectl", "config", "current-context").strip()

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        return self.run("kubectl", "--namespace", self.namespace, *arguments, check=check)

    def pipe(self, *arguments: str, **streams: IO[bytes]) -> None:
        """Run kubectl with its input or output in a file."""
        command = ["kubectl", "--namespace", self.namespace, *arguments]
        subprocess.run(command, env=self.environment, check=True, **streams)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def rename_table(self, old: str, new: str) -> None:
        """Rename a table of Prefect: the statements that need it fail."""
        psql = ("psql", "-U", "postgres", "-d", "prefect", "-c")
        statement = f"ALTER TABLE {old} RENAME TO {new}"
        self.kubectl("exec", f"sts/{self.release}-postgres", "--", *psql, statement)

    def in_node(self, command: str) -> str:
        """Run a command of the shell in the node of the kind cluster; returns its output."""
        return kind.run("docker", "exec", f"{self.name}-control-plane", "sh", "-ec", command)

    def put_postgres_on_small_disk(self) -> str:
        """Move the files of PostgreSQL to a disk of 1 GB in memory; returns the node's folder."""
        folder = self.in_node(f"ls -d {VOLUMES}/*data-{self.release}-postgres-0").strip()
        if "tmpfs" not in self.in_node(f"stat --file-system --format %T {folder}"):
            workload = f"sts/{self.release}-postgres"
            self.kubectl("scale", workload, "--replicas=0")
            pod = f"{self.release}-postgres-0"
            self.kubectl("wait", "pod", pod, "--for=delete", "--timeout=180s")
            self.in_node(
                f"cp -a {folder} /tmp/postgres && mount -t tmpfs -o size=1g tmpfs {folder}"
                f" && cp -a /tmp/postgres/. {folder}"
            )
            self.kubectl("scale", workload, "--replicas=1")
            self.kubectl("rollout", "status", workload, "--timeout=180s")
        return folder

    def helm(self, *arguments: str) -> str:
        return self.run("helm", "--namespace", self.namespace, *arguments)

    def secret(self, name: str, key: str) -> str:
        data = self.get("secret", f"{self.release}-{name}")["data"]
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
        name: str = "probe",
        pull_steps: list[Any] | None = None,
        work_pool: str = "kubernetes",
        **settings: Any,
    ) -> str:
        """Register a flow of probe_flows.py, cloned like the others; returns `flow/deployment`."""
        flow_id = self.post("/flows/", name=flow.replace("_", "-"))["id"]
        self.post(
            "/deployments/",
            name=name,
            flow_id=flow_id,
            work_pool_name=work_pool,
            entrypoint=f"tests/cluster/probe_flows.py:{flow}",
            pull_steps=self.deployment(WALKTHROUGH)["pull_steps"]
            if pull_steps is None
            else pull_steps,
            **settings,
        )
        return f"{flow.replace('_', '-')}/{name}"

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
            "image": self.get("deploy", f"{self.release}-server")["spec"]["template"]["spec"][
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
