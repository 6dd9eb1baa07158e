"""A team's own repository on the cluster: pushed, registered, run as pods, seen in both UIs.

Its packages and its code come to pods in each way of docs/dependencies.md.
"""

import json
import re
import secrets
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from scripts import kind
from tests import s3
from tests.cluster.conftest import CHART, KUBECONFIG, NAME, Cluster
from tests.clusters import RELEASE
from tests.environments import uv
from tests.services import ROOT, output
from tests.template.conftest import commit, git, make

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(KUBECONFIG), reason="make kind-push is for kind clusters"),
]

DEPLOYMENT = "daily-revenue/daily-revenue-k8s"
FLOWS = '''
"""Flows that log what only the right package, image or place makes them log."""

import os
from importlib.metadata import version

from prefect import flow


@flow(log_prints=True)
def counts() -> None:
    """Use a package that the image `flows` lacks."""
    import roman

    print(f"Counted {roman.toRoman(1994)} as user {os.getuid()} in {os.path.abspath(__file__)}")


@flow(log_prints=True)
def plain() -> None:
    """Use Prefect alone."""
    print(f"Prefect {version('prefect')} as user {os.getuid()}")
    try:
        open("/written", "w")
    except OSError as error:
        print(error.strerror)


@flow(log_prints=True)
def adds() -> None:
    """Compute the parallel blocks of a dataflow in the pods of a Dask cluster."""
    from prefect_dask import DaskTaskRunner
    from prefect_hamilton import dataflow

    from flows.dataflows import squares

    dask = DaskTaskRunner(address="tcp://dask-scheduler:8786")
    run = dataflow.execute(squares, "total", inputs={"count": 6}, parallel=dask)
    total, hosts = run["total"]
    print(f"Total {total} from {' and '.join(sorted(hosts))}")
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
          directory: "{{ clone.directory }}/packages"
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
    entrypoint: flows/probes.py:counts
    pull:
      - prefect.deployments.steps.set_working_directory:
          directory: /srv/my-flows
    work_pool: *kubernetes

  - name: dask-k8s
    entrypoint: flows/probes.py:adds
    pull:
      - prefect.deployments.steps.set_working_directory:
          directory: /srv/my-flows
    work_pool: *kubernetes

  - name: code-in-bucket-k8s
    entrypoint: flows/probes.py:counts
    pull:
      - prefect.deployments.steps.pull_from_remote_storage:
          url: s3://code/my-flows
          key: "{{ prefect.blocks.secret.bucket-key }}"
          secret: "{{ prefect.blocks.secret.bucket-secret }}"
          client_kwargs: {endpoint_url: "http://bucket:7070"}
    work_pool: *kubernetes
"""
FLOW_NAMES = ("adds", "counts", "plain", "daily-revenue")
BLOCKS = ("bucket-key", "bucket-secret")

CODE_IN_IMAGE = """
COPY flows /srv/my-flows/flows
"""

# For the pull step, whose package index has this package alone.
ONE_PACKAGE = """
[project]
name = "packages"
version = "0"
requires-python = ">=3.11"
dependencies = ["roman"]
"""

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 1001,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CACHE = "uv-cache"
HOST_NOT_PROCESS = {
    "os.getpid()": "os.uname().nodename",
    "tuple[int, int]": "tuple[int, str]",
    "set[int]": "set[str]",
}
WORKERS = ("dask-worker-0", "dask-worker-1")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A team's repository whose flows need a package, and for Dask another."""
    folder = make(tmp_path_factory.mktemp("team") / "team-flows")
    uv("add", "--quiet", "--project", str(folder), "--no-sync", "roman")
    uv("add", "--quiet", "--project", str(folder), "--no-sync", "--group", "dask", "prefect-dask")
    (folder / "packages").mkdir()
    (folder / "packages/pyproject.toml").write_text(ONE_PACKAGE)
    uv("lock", "--quiet", "--project", str(folder / "packages"))
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
    options = "--group dask --prune prefect"
    lines = dockerfile.read_text().replace("install-locked\n", f"install-locked {options}\n")
    dockerfile.write_text(lines)
    squares = (ROOT / "tests/library/squares.py").read_text()
    for old, new in HOST_NOT_PROCESS.items():
        squares = squares.replace(old, new)
    (folder / "flows/dataflows/squares.py").write_text(squares)
    git("init", "--quiet", "--initial-branch=main", folder=folder)
    commit(folder, "Start")
    return folder


def in_a_terminal(cluster: Cluster, script: str, **env: str) -> str:
    """Return the output of a script after `eval "$(make -s kind-env)"`."""
    settings = f'eval "$({sys.executable} -m scripts.kind env --name {NAME})"'
    command = ("bash", "-e", "-c", f"{settings}; {script}")
    return output(*command, folder=ROOT, env=cluster.environment | env)


@pytest.fixture(scope="module")
def credential(cluster: Cluster) -> Iterator[dict[str, str]]:
    """Of the bucket, in two Secret blocks, which must exist when a deployment refers to them."""
    keys = {"key": f"key-{secrets.token_hex(8)}", "secret": secrets.token_urlsafe()}
    in_a_terminal(cluster, 'python -c "$save_blocks"', save_blocks=SAVE_BLOCKS, **keys)
    yield keys
    blocks = {"name": {"any_": list(BLOCKS)}}
    for block in cluster.post("/block_documents/filter", block_documents=blocks):
        cluster.api.delete(f"/block_documents/{block['id']}").raise_for_status()


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
    wheel = download(repository / "packages/uv.lock", "roman", folder)
    index = pod(
        "packages",
        "prefect-hamilton/prefect:0.1.0",
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
    kind.load_images(NAME, ["prefect-hamilton/flows-build:0.1.0"])
    (before,) = json.loads(cluster.helm("history", RELEASE, "--max=1", "--output=json"))
    try:
        cluster.kubectl("create", "configmap", "packages", f"--from-file={wheel}")
        apply(cluster, folder, claim, *index)
        mount_cache(cluster, folder)
        cluster.kind("push", "--flows", str(repository))
        wait_for_pod(cluster, "packages", "condition=Ready")
        yield
    finally:
        # As `kind push` does, without loading the images, which the cluster has.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", cluster.environment["KUBECONFIG"])
            commit_of_ours, _ = kind.snapshot()
            kind.publish(cluster.context, commit_of_ours, timeout=300)
            cluster.helm("rollback", RELEASE, str(before["revision"]))
            kind.wait_for_bootstrap(cluster.context, timeout=300)
        # The claim is in use until the pods of the runs are gone.
        label = f"prefect.io/flow-name in (Failed-Run-Report,{','.join(FLOW_NAMES)})"
        cluster.kubectl("delete", "jobs", "--selector", label)
        everything = ["pod/packages", "service/packages", "configmap/packages", f"pvc/{CACHE}"]
        cluster.kubectl("delete", "--ignore-not-found", "--grace-period=1", *everything)
        # With their deployments and runs, which other tests would find in the UI.
        for flow in cluster.post("/flows/filter", flows={"name": {"any_": list(FLOW_NAMES)}}):
            cluster.api.delete(f"/flows/{flow['id']}").raise_for_status()


def mount_cache(cluster: Cluster, folder: Path) -> None:
    """Upgrade the release so that flow pods mount the claim."""
    flows = {
        "volumes": [{"name": CACHE, "persistentVolumeClaim": {"claimName": CACHE}}],
        "volumeMounts": [{"name": CACHE, "mountPath": "/uv-cache"}],
    }
    values = folder / "volumes.json"
    values.write_text(json.dumps({"flows": flows}))
    options = ("--reset-then-reuse-values", "--values", str(values))
    cluster.helm("upgrade", RELEASE, CHART, *options)


def download(lock: Path, package: str, folder: Path) -> Path:
    """Fetch the wheel that a lock file names."""
    locked = tomllib.loads(lock.read_text())["package"]
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


def team_image(cluster: Cluster) -> str:
    """The image that `make kind-push` has built of the repository."""
    values = json.loads(cluster.helm("get", "values", RELEASE, "--output", "json"))
    return "{repository}:{tag}".format_map(values["flows"]["image"])


def wait_for_pod(cluster: Cluster, name: str, what: str) -> None:
    cluster.kubectl("wait", f"pod/{name}", f"--for={what}", "--timeout=120s")


def completed(cluster: Cluster, run_id: str, text: str) -> str:
    """Wait until a run is Completed and has logged a text; returns its log."""
    run = cluster.wait_for_state(run_id, "Completed", "Failed", "Crashed")
    assert run["state_name"] == "Completed", f"{run['state']['message']}\n{cluster.log(run_id)}"
    return str(cluster.wait_for_log(run_id, text))


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


def test_the_repository_replaces_the_deployments_of_the_one_before(cluster: Cluster) -> None:
    found = {deployment["name"] for deployment in cluster.post("/deployments/filter")}
    assert found >= {"daily-revenue-k8s", "on-failure-k8s"}
    assert not found & {"production-etl-k8s", "absenteeism-k8s", "walkthrough-k8s"}


def test_kind_env_connects_to_both_servers(cluster: Cluster) -> None:
    names = ("PREFECT_API_URL", "HAMILTON_API_URL", "HAMILTON_UI_USERNAME")
    shown = in_a_terminal(cluster, "; ".join(f'echo "${name}"' for name in names)).split()
    hamilton = f"http://localhost:{cluster.hamilton_port}"
    assert shown == [cluster.api_url, hamilton, "prefect"]
    # Prefect shortens its tables to the width of the terminal.
    assert "kubernetes" in in_a_terminal(cluster, "COLUMNS=200 prefect work-pool ls")


@pytest.fixture(scope="module")
def runs(cluster: Cluster, team: None) -> dict[str, str]:
    """Runs that go on at the same time, by deployment."""
    names = ("image-k8s", "code-in-image-k8s", "pull-step-k8s")
    return {name: cluster.start(f"counts/{name}") for name in names}


@pytest.mark.usefixtures("runs")
def test_an_image_with_prefect_alone_runs_a_flow(cluster: Cluster, tmp_path: Path) -> None:
    """As user 1001 with a read-only root, of which such an image knows nothing."""
    shutil.copytree(ROOT / "tests/cluster/look-alike", tmp_path, dirs_exist_ok=True)
    # Of the packages of the server and the worker, Prefect alone.
    prefect = ("--only-group=prefect", "--prune=prefect-kubernetes", "--prune=prefect-redis")
    # Without the header, which names the file, Docker keeps the layer for the next time.
    requirements = ("--no-hashes", "--no-header", f"--output-file={tmp_path}/requirements.txt")
    uv("export", "--quiet", "--frozen", *prefect, *requirements)
    kind.run("docker", "build", "--quiet", "--tag", "look-alike:test", str(tmp_path))
    kind.load_images(NAME, ["look-alike:test"])
    run = cluster.start("plain/any-image-k8s")
    completed(cluster, run, "Prefect 3.9.1 as user 1001")
    completed(cluster, run, "Read-only file system")


def test_the_image_of_the_repository_has_its_packages(
    cluster: Cluster, runs: dict[str, str]
) -> None:
    """Built from the template's Dockerfile by `make kind-push`; the code is cloned."""
    log = completed(cluster, runs["image-k8s"], "Counted MCMXCIV as user 1001 in ")
    assert re.search("in /tmp/.*/flows/probes.py", log)


def test_the_code_may_be_in_the_image(cluster: Cluster, runs: dict[str, str]) -> None:
    completed(cluster, runs["code-in-image-k8s"], "in /srv/my-flows/flows/probes.py")


def test_a_pull_step_installs_the_lock_file_and_keeps_what_it_downloads(
    cluster: Cluster, runs: dict[str, str]
) -> None:
    def downloads() -> int:
        return cluster.kubectl("logs", "packages").count(".whl HTTP")

    completed(cluster, runs["pull-step-k8s"], "Counted MCMXCIV as user 1001")
    first = downloads()
    assert first > 0
    completed(cluster, cluster.start("counts/pull-step-k8s"), "Counted MCMXCIV")
    assert downloads() == first


@pytest.mark.usefixtures("dask")
def test_parallel_blocks_run_in_the_pods_of_a_dask_cluster(cluster: Cluster) -> None:
    completed(cluster, cluster.start("adds/dask-k8s"), f"Total 55 from {' and '.join(WORKERS)}")


@pytest.mark.usefixtures("bucket")
def test_the_code_may_be_in_a_bucket(cluster: Cluster, credential: dict[str, str]) -> None:
    """A real S3 server, whose credential neither the deployment nor the log has."""
    deployment = "counts/code-in-bucket-k8s"
    log = completed(cluster, cluster.start(deployment), "Counted MCMXCIV")
    assert re.search("in /tmp/.*/flows/probes.py", log)
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
def dask(cluster: Cluster, tmp_path: Path) -> Iterator[None]:
    """A Dask cluster of the team's image, which has the code: a scheduler and two workers."""
    image = team_image(cluster)
    common = ["--no-dashboard", "--protocol", "tcp"]
    scheduler = ["dask", "scheduler", "--port", "8786", *common]
    worker = ["dask", "worker", "tcp://dask-scheduler:8786", "--nworkers", "1", "--nthreads", "1"]
    worker += ["--worker-port", "8787", "--local-directory", "/tmp", *common]
    pods = {"dask-scheduler": (scheduler, 8786)} | dict.fromkeys(WORKERS, (worker, 8787))
    code = [{"name": "PYTHONPATH", "value": "/srv/my-flows"}]
    objects = [
        each
        for name, (command, port) in pods.items()
        for each in pod(name, image, command, port, env=code)
    ]
    try:
        apply(cluster, tmp_path, *objects)
        for name in pods:
            wait_for_pod(cluster, name, "condition=Ready")
        yield
    finally:
        names = [f"{each['kind'].lower()}/{each['metadata']['name']}" for each in objects]
        cluster.kubectl("delete", "--ignore-not-found", "--grace-period=1", *names)


@pytest.fixture
def bucket(cluster: Cluster, credential: dict[str, str], tmp_path: Path) -> Iterator[None]:
    """An S3 server in the cluster that has the repository's code."""
    s3.program()  # Or the test is skipped.
    env = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": "bucket", "key": key}}}
        for name, key in (
            ("ROOT_ACCESS_KEY", "key"),
            ("ROOT_SECRET_KEY", "secret"),
            ("key", "key"),
            ("secret", "secret"),
        )
    ]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket"}}
    image = team_image(cluster)  # It has the code, and the package to upload it.
    try:
        apply(
            cluster,
            tmp_path,
            secret | {"stringData": credential},
            *pod("bucket", image, ["sh", "-c", s3.SERVE], 7070, env=env),
        )
        s3.send(cluster, "bucket")
        cluster.kubectl("exec", "bucket", "--", "python", "-c", UPLOAD)
        yield
    finally:
        names = ["pod/bucket", "service/bucket", "secret/bucket"]
        cluster.kubectl("delete", "--ignore-not-found", "--grace-period=1", *names)
