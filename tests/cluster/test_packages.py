"""The ways of docs/dependencies.md, each as a pod: packages, code and image of a team."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts import kind
from tests.cluster.conftest import CHART, KUBECONFIG, NAME, Cluster
from tests.clusters import RELEASE
from tests.environments import uv
from tests.services import ROOT
from tests.template.conftest import commit, git, make

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(KUBECONFIG), reason="images are loaded into kind clusters"),
]

FLOWS = '''
"""Flows that log what only the right package, image or place makes them log."""

import os
from importlib.metadata import version

from prefect import flow


@flow(log_prints=True)
def counts() -> None:
    """Use a package that the image `flows` lacks."""
    import roman

    print(f"Counted {roman.toRoman(1994)}")


@flow(log_prints=True)
def plain() -> None:
    """Use Prefect alone."""
    print(f"Prefect {version('prefect')} as user {os.getuid()} in {os.getcwd()}")


@flow(log_prints=True)
def locates() -> None:
    """Say where the code is."""
    print(f"Code in {os.path.abspath(__file__)}")
'''

DEPLOYMENTS = """
  - name: image-k8s
    entrypoint: flows/probes.py:counts
    work_pool: *kubernetes
    pull: *clone

  - name: pull-step-k8s
    entrypoint: flows/probes.py:counts
    pull:
      - prefect.deployments.steps.git_clone:
          id: clone
          repository: "{{ $FLOWS_REPOSITORY }}"
          branch: "{{ $FLOWS_BRANCH }}"
      - prefect.deployments.steps.run_shell_script:
          directory: "{{ clone.directory }}"
          script: install-locked --target /tmp/packages
    work_pool:
      name: kubernetes
      job_variables:
        image: prefect-hamilton/flows-build:0.1.0
        env:
          PYTHONPATH: /tmp/packages
          UV_CACHE_DIR: /uv-cache
          UV_DEFAULT_INDEX: http://packages:8080/simple

  - name: any-image-k8s
    entrypoint: flows/probes.py:plain
    pull: *clone
    work_pool:
      name: kubernetes
      job_variables: {image: "look-alike:test"}

  - name: code-in-image-k8s
    entrypoint: flows/probes.py:locates
    pull:
      - prefect.deployments.steps.set_working_directory:
          directory: /srv/my-flows
    work_pool: *kubernetes

  - name: code-in-bucket-k8s
    entrypoint: flows/probes.py:locates
    pull:
      - prefect.deployments.steps.pull_from_remote_storage:
          url: s3://code/my-flows
          key: "{{ prefect.blocks.secret.bucket-key }}"
          secret: "{{ prefect.blocks.secret.bucket-secret }}"
          client_kwargs: {endpoint_url: "http://bucket:7070"}
    work_pool: *kubernetes
"""

CODE_IN_IMAGE = """
COPY flows /srv/my-flows/flows
"""

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 1001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CACHE = "uv-cache"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A team's repository whose flows need one package, and for a bucket another."""
    folder = make(tmp_path_factory.mktemp("team") / "team-flows")
    uv("add", "--quiet", "--project", str(folder), "--no-sync", "roman")
    uv("add", "--quiet", "--project", str(folder), "--no-sync", "--group", "bucket", "s3fs")
    (folder / "flows/probes.py").write_text(FLOWS.lstrip())
    appended = (
        ("prefect.yaml", DEPLOYMENTS),
        ("Dockerfile", CODE_IN_IMAGE),
        (".dockerignore", "!flows\n"),
    )
    for name, text in appended:
        with (folder / name).open("a") as file:
            file.write(text)
    dockerfile = folder / "Dockerfile"
    lines = dockerfile.read_text().replace("install-locked\n", "install-locked --group bucket\n")
    dockerfile.write_text(lines)
    git("init", "--quiet", "--initial-branch=main", folder=folder)
    commit(folder, "Start")
    return folder


@pytest.fixture(scope="module")
def credential(cluster: Cluster) -> dict[str, str]:
    """Of the bucket, in two Secret blocks, which must exist when a deployment refers to them."""
    keys = {"key": f"key-{secrets.token_hex(8)}", "secret": secrets.token_urlsafe()}
    in_a_terminal = f'eval "$({sys.executable} -m scripts.kind env --name {NAME})"; "$0" -c "$1"'
    command = ["bash", "-e", "-c", in_a_terminal, sys.executable, SAVE_BLOCKS]
    subprocess.run(command, cwd=ROOT, env=cluster.environment | keys, check=True)
    return keys


@pytest.fixture(scope="module", autouse=True)
def team(
    cluster: Cluster,
    repository: Path,
    credential: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """The cluster has the repository, and a package index with a cache for pods."""
    folder = tmp_path_factory.mktemp("objects")
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CACHE},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    wheel = download(repository, "roman", folder)
    index = pod(
        "packages",
        "prefect-hamilton/flows:0.1.0",
        ["python", "-m", "http.server", "8080", "--directory", "/srv"],
        8080,
        volumes=[{"name": "packages", "configMap": {"name": "packages"}}],
        mounts=[
            {
                "name": "packages",
                "mountPath": f"/srv/simple/roman/{wheel.name}",
                "subPath": wheel.name,
            }
        ],
    )
    kind.load_images(NAME, ["prefect-hamilton/flows:0.1.0", "prefect-hamilton/flows-build:0.1.0"])
    try:
        cluster.kubectl("create", "configmap", "packages", f"--from-file={wheel}")
        apply(cluster, folder, claim, *index)
        mount_cache(cluster, folder, [{"name": CACHE, "mountPath": "/uv-cache"}])
        cluster.kind("push", "--flows", str(repository))
        yield
    finally:
        mount_cache(cluster, folder, [])
        cluster.kind("push")
        everything = ["pod/packages", "service/packages", "configmap/packages", f"pvc/{CACHE}"]
        cluster.kubectl("delete", "--ignore-not-found", "--grace-period=1", *everything)


def mount_cache(cluster: Cluster, folder: Path, mounts: list[dict[str, Any]]) -> None:
    """Upgrade the release so that flow pods mount the claim, or nothing."""
    volumes = [{"name": m["name"], "persistentVolumeClaim": {"claimName": CACHE}} for m in mounts]
    values = folder / "volumes.json"
    values.write_text(json.dumps({"flows": {"volumes": volumes, "volumeMounts": mounts}}))
    options = ("--reset-then-reuse-values", "--values", str(values))
    cluster.helm("upgrade", RELEASE, CHART, *options)


def download(repository: Path, package: str, folder: Path) -> Path:
    """Fetch the wheel that the lock file names."""
    locked = tomllib.loads((repository / "uv.lock").read_text())["package"]
    (url,) = [each["wheels"][0]["url"] for each in locked if each["name"] == package]
    wheel = folder / url.rpartition("/")[2]
    wheel.write_bytes(httpx.get(url, follow_redirects=True).raise_for_status().content)
    return wheel


def pod(
    name: str,
    image: str,
    command: list[str],
    port: int,
    *,
    volumes: list[dict[str, Any]] | None = None,
    mounts: list[dict[str, Any]] | None = None,
    env: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """A pod that listens at a port, and its Service of the same name."""
    container = {
        "name": name,
        "image": image,
        "command": command,
        "env": env or [],
        "securityContext": RESTRICTED,
        "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
        "volumeMounts": mounts or [],
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "containers": [container],
                "volumes": volumes or [],
                "automountServiceAccountToken": False,
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"port": port}]},
        },
    ]


def apply(cluster: Cluster, folder: Path, *objects: dict[str, Any]) -> None:
    file = folder / "objects.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    cluster.kubectl("apply", "-f", str(file))
    for each in objects:
        if each["kind"] == "Pod":
            name = each["metadata"]["name"]
            cluster.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=120s")


def completed(cluster: Cluster, deployment: str, text: str) -> str:
    """Run a deployment until it is Completed and has logged a text; returns its log."""
    run_id = cluster.start(deployment)
    run = cluster.wait_for_state(run_id, "Completed", "Failed", "Crashed")
    assert run["state_name"] == "Completed", f"{run['state']['message']}\n{cluster.log(run_id)}"
    return str(cluster.wait_for_log(run_id, text))


def test_the_image_of_the_repository_has_its_packages(cluster: Cluster) -> None:
    """Built from the template's Dockerfile by `make kind-push`."""
    completed(cluster, "counts/image-k8s", "Counted MCMXCIV")


def test_a_pull_step_installs_the_lock_file_and_keeps_what_it_downloads(cluster: Cluster) -> None:
    def downloads() -> int:
        return cluster.kubectl("logs", "packages").count(".whl HTTP")

    completed(cluster, "counts/pull-step-k8s", "Counted MCMXCIV")
    first = downloads()
    assert first > 0
    completed(cluster, "counts/pull-step-k8s", "Counted MCMXCIV")
    assert downloads() == first


def test_an_image_with_prefect_alone_runs_a_flow(cluster: Cluster, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests/cluster/look-alike", tmp_path, dirs_exist_ok=True)
    requirements = ("--no-hashes", "--output-file", str(tmp_path / "requirements.txt"))
    uv("export", "--quiet", "--frozen", "--only-group", "prefect", *requirements)
    kind.run("docker", "build", "--quiet", "--tag", "look-alike:test", str(tmp_path))
    kind.load_images(NAME, ["look-alike:test"])
    completed(cluster, "plain/any-image-k8s", "Prefect 3.9.1 as user 1001")


def test_the_code_may_be_in_the_image(cluster: Cluster) -> None:
    completed(cluster, "locates/code-in-image-k8s", "Code in /srv/my-flows/flows/probes.py")


@pytest.mark.usefixtures("bucket")
def test_the_code_may_be_in_a_bucket(cluster: Cluster, credential: dict[str, str]) -> None:
    """A real S3 server, whose credential neither the deployment nor the log has."""
    deployment = "locates/code-in-bucket-k8s"
    log = completed(cluster, deployment, "Code in ")
    assert re.search("Code in /tmp/.*/flows/probes.py", log)
    shown = log + json.dumps(cluster.deployment(deployment))
    assert not any(value in shown for value in credential.values())


SAVE_BLOCKS = """
import os
from prefect.blocks.system import Secret
for name in ("key", "secret"):
    Secret(value=os.environ[name]).save(f"bucket-{name}", overwrite=True)
"""

UPLOAD = """
import os, s3fs
options = dict(key=os.environ["key"], secret=os.environ["secret"])
s3 = s3fs.S3FileSystem(**options, client_kwargs={"endpoint_url": "http://127.0.0.1:7070"})
s3.mkdir("code")
s3.put("/srv/my-flows/flows", "code/my-flows/flows", recursive=True)
"""


@pytest.fixture
def bucket(cluster: Cluster, credential: dict[str, str], tmp_path: Path) -> Iterator[None]:
    """An S3 server in the cluster that has the repository's code."""
    if not shutil.which("go"):
        pytest.skip("no go on PATH, with which the S3 server is built")
    binaries = ROOT / ".cache/versitygw"
    environment = {**os.environ, "GOBIN": str(binaries), "CGO_ENABLED": "0", "GOFLAGS": ""}
    command = ["go", "install", "github.com/versity/versitygw/cmd/versitygw@v1.8.0"]
    subprocess.run(command, env=environment, check=True)
    shutil.copy(binaries / "versitygw", tmp_path)
    # In the team's image, whose code it serves.
    image = cluster.get("job", "-l", "app.kubernetes.io/component=bootstrap")["items"][-1]
    (flows,) = [
        each["value"]
        for each in image["spec"]["template"]["spec"]["containers"][0]["env"]
        if each["name"] == "FLOWS_IMAGE"
    ]
    (tmp_path / "Dockerfile").write_text(f"FROM {flows}\nCOPY versitygw /usr/local/bin/\n")
    kind.run("docker", "build", "--quiet", "--tag", "bucket:test", str(tmp_path))
    kind.load_images(NAME, ["bucket:test"])
    env = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": "bucket", "key": key}}}
        for name, key in (
            ("ROOT_ACCESS_KEY", "key"),
            ("ROOT_SECRET_KEY", "secret"),
            ("key", "key"),
            ("secret", "secret"),
        )
    ]
    command = ["sh", "-c", "mkdir /tmp/data && exec versitygw posix /tmp/data"]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket"}}
    try:
        apply(
            cluster,
            tmp_path,
            secret | {"stringData": credential},
            *pod("bucket", "bucket:test", command, 7070, env=env),
        )
        cluster.kubectl("exec", "bucket", "--", "python", "-c", UPLOAD)
        yield
    finally:
        names = ["pod/bucket", "service/bucket", "secret/bucket"]
        cluster.kubectl("delete", "--ignore-not-found", "--grace-period=1", *names)
