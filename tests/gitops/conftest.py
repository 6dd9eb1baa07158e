"""A team's repository, made from the working tree, in a kind cluster that has a Git server.

The server is the Service `git` in the namespace `argocd`; it takes pushes without a password.
"""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import tenacity

from scripts import chart_images, kind
from tests.services import ROOT, free_port, output

NAME = os.environ.get("KIND_CLUSTER", "")
RELEASE = "prefect-hamilton"
REPOSITORY = "http://git.argocd.svc/team.git"
REGISTRY = "registry.example.org"
STAGING = "kustomize/overlays/staging/kustomization.yaml"
VALUES = "kustomize/overlays/staging/values.yaml"

SERVICE_MONITORS = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: servicemonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: ServiceMonitor, plural: servicemonitors, singular: servicemonitor}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"""

GIT_PORT = """
networkPolicy:
  # The pods of this Git server listen at another port than its Service.
  extraEgress:
    bootstrap: [{ports: [{port: 8080, protocol: TCP}]}]
"""


eventually = tenacity.retry(
    stop=tenacity.stop_after_delay(300), wait=tenacity.wait_fixed(0.5), reraise=True
)


@dataclass
class Team:
    """A team's repository of chart, overlays and flows, and the cluster that follows it."""

    environment: dict[str, str]
    folder: Path

    def run(self, *command: str, text: str | None = None, check: bool = True) -> str:
        """Run a command in the repository; returns its output, errors included."""
        return output(*command, folder=self.folder, env=self.environment, text=text, check=check)

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        return self.run("kubectl", *arguments, text=text, check=check)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def start_anew(self) -> None:
        """Begin where every test file begins."""
        self.run("git", "checkout", "--quiet", "-B", "main", "start")

    def commit(self, message: str) -> str:
        """Commit what was edited and push it as `main`; returns the commit."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", message)
        return self.push()

    def revert(self) -> str:
        """Revert the last commit and push."""
        self.run("git", "revert", "--no-edit", "HEAD")
        return self.push()

    def push(self) -> str:
        with self.forward("argocd", "service/git", 80) as port:
            remote = f"http://127.0.0.1:{port}/team.git"
            self.run("git", "push", "--quiet", "--force", remote, "HEAD:main")
        return self.head()

    def head(self) -> str:
        return self.run("git", "rev-parse", "HEAD").strip()

    def edit(self, path: str, old: str, new: str) -> None:
        """Change a text that is in a file of the repository."""
        text = (self.folder / path).read_text()
        assert old in text, f"{path} has no {old!r}"
        (self.folder / path).write_text(text.replace(old, new))

    def append(self, path: str, text: str) -> None:
        """Add a text to the end of a file of the repository."""
        with (self.folder / path).open("a") as file:
            file.write(text)

    def apply(self, path: str, **replaced: str) -> None:
        """Apply a file of the repository whose example address is the team's."""
        text = (self.folder / path).read_text()
        text = text.replace("https://git.example.org/team/prefect-hamilton.git", REPOSITORY)
        for old, new in replaced.items():
            assert old in text, f"{path} has no {old!r}"
            text = text.replace(old, new)
        self.kubectl("apply", "-f", "-", text=text)

    @contextmanager
    def forward(self, namespace: str, what: str, port: int) -> Iterator[int]:
        """Forward a free port to one of a Service."""
        local = free_port()
        command = ["kubectl", "-n", namespace, "port-forward", what, f"{local}:{port}"]
        forward = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        try:
            assert forward.stdout is not None
            assert "Forwarding" in forward.stdout.readline(), f"cannot forward to {what}"
            yield local
        finally:
            forward.terminate()
            forward.wait()

    @contextmanager
    def api(self, namespace: str) -> Iterator[httpx.Client]:
        """A client of the Prefect API of the release in a namespace, with its password."""
        data = self.get("secret", f"{RELEASE}-auth", "-n", namespace)["data"]
        user, password = (base64.b64decode(data[key]).decode() for key in ("username", "password"))
        with self.forward(namespace, f"service/{RELEASE}-server", 4200) as port:
            base = f"http://127.0.0.1:{port}/api"
            with httpx.Client(base_url=base, auth=(user, password), timeout=30) as client:
                yield client

    def walks_through(self, namespace: str) -> Any:
        """Run a deployment to its end; returns the deployment."""
        with self.api(namespace) as api:
            name = "ui-walkthrough-retries/walkthrough-k8s"
            found = api.get(f"/deployments/name/{name}").raise_for_status().json()
            path = f"/deployments/{found['id']}/create_flow_run"
            run = api.post(path, json={}).raise_for_status().json()

            @eventually
            def completed() -> None:
                state = api.get(f"/flow_runs/{run['id']}").raise_for_status().json()["state"]
                assert state["type"] == "COMPLETED", state

            completed()
        return found

    def runs(self, namespace: str) -> int:
        """How many flow runs have completed."""
        with self.api(namespace) as api:
            wanted = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
            return int(api.post("/flow_runs/count", json=wanted).raise_for_status().json())

    def objects(self, namespace: str) -> dict[str, tuple[str, int]]:
        """Identity and generation of what was applied in a namespace, and of its pods that stay."""
        kinds = "deploy,sts,job,cronjob,svc,cm,pvc,netpol,role,rolebinding,sa,ingress,pod"
        return {
            f"{each['kind']}/{each['metadata']['name']}": (
                each["metadata"]["uid"],
                each["metadata"].get("generation", 0),
            )
            for each in self.get(kinds, "-n", namespace)["items"]
            if component(each) != "flow-run" and "deletionTimestamp" not in each["metadata"]
        }

    def pods(self, namespace: str) -> dict[str, str]:
        """The ids of the long-lived pods that are ready, by component."""
        found = self.get("pods", "-n", namespace, "-l", f"app.kubernetes.io/instance={RELEASE}")
        return {
            component(pod): pod["metadata"]["uid"]
            for pod in found["items"]
            if is_ready(pod)
            and "deletionTimestamp" not in pod["metadata"]
            and component(pod) != "flow-run"
        }


def is_ready(pod: Any) -> bool:
    """Whether a pod serves; one that has ended does not."""
    conditions = pod["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def component(obj: Any) -> str:
    """The component that an object belongs to; of a flow run's too."""
    return str(obj["metadata"].get("labels", {}).get("app.kubernetes.io/component", ""))


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Components whose pods are others."""
    return {each for each in before | after if before.get(each) != after.get(each)}


@pytest.fixture(scope="session")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """The repository, pushed to a Git server in the cluster, and images under its registry."""
    if not NAME:
        pytest.skip("KIND_CLUSTER names no kind cluster that has Argo CD")
    folder = tmp_path_factory.mktemp("gitops")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
        "KUBECONFIG": str(folder / "kubeconfig"),
        **{f"GIT_{who}_NAME": "team" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "team@localhost" for who in ("AUTHOR", "COMMITTER")},
    }
    repository = folder / "team"
    repository.mkdir()
    team = Team(environment, repository)
    team.run("kind", "export", "kubeconfig", "--name", NAME)
    if "argocd-repo-server" not in team.kubectl("get", "deploy", "-n", "argocd", "-o", "name"):
        pytest.skip(f"the kind cluster {NAME} has no Argo CD in the namespace argocd")
    tree, _ = kind.snapshot()
    archive = subprocess.run(
        ["git", "archive", tree], cwd=ROOT, stdout=subprocess.PIPE, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(repository)], input=archive, check=True)
    team.run("git", "init", "--quiet", "--initial-branch=main")
    team.run("git", "add", "--all")
    team.run("git", "commit", "--quiet", "--message", "Start")
    team.run("git", "tag", "start")
    name_images(team)
    yield team


def name_images(team: Team) -> None:
    """Give the node's images the names that the overlays have, and those of a next version."""
    kind.load_images(NAME, chart_images.images([kind.VALUES]))
    ctr = ["docker", "exec", f"{NAME}-control-plane", "ctr", "--namespace", "k8s.io", "images"]
    for image in ("prefect", "flows", "hamilton-ui"):
        built = "example-flows" if image == "flows" else image
        source = f"docker.io/prefect-hamilton/{built}:0.1.0"
        for target in (
            f"{REGISTRY}/prefect-hamilton/{image}:0.1.0",
            f"{REGISTRY}/prefect-hamilton/{image}:0.1.1",
            f"docker.io/prefect-hamilton/{image}:0.1.1",
        ):
            team.run(*ctr, "tag", "--force", source, target)
    team.run(*ctr, "tag", "--force", "docker.io/library/postgres:17", f"{REGISTRY}/postgres:17")


def prepare_staging(team: Team) -> None:
    """Begin anew with staging as it is, but for the address of the flows; push it."""
    team.kubectl("apply", "-f", "-", text=SERVICE_MONITORS)
    team.start_anew()
    team.edit(VALUES, "https://git.example.org/data/flows.git", REPOSITORY)
    team.append(VALUES, GIT_PORT)
    team.run(sys.executable, "-m", "scripts.render")
    team.commit("Staging")
