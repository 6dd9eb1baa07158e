"""Prefect's own charts on the same cluster, as another arm of a benchmark.

The folder holds `prefect-server` and `prefect-worker` with their dependencies (`helm dependency
build`), the image has Prefect and prefect-kubernetes. They get a namespace and a PostgreSQL of
their own, and keep the defaults of their values except for what is given here.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from scripts import kind
from scripts.local_profile import HOST
from scripts.ports import free_port

NAMESPACE = "known-chart"
HERE = ("--namespace", NAMESPACE)
POOL = "known-chart"
DATABASE_IMAGE = "postgres:17"
TIMEOUT_SECONDS = 180
SERVER_URL = "http://prefect-server:4200/api"

DATABASE = {
    "apiVersion": "v1",
    "kind": "List",
    "items": [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "database", "labels": {"app": "database"}},
            "spec": {
                "containers": [
                    {
                        "name": "postgres",
                        "image": DATABASE_IMAGE,
                        "env": [{"name": "POSTGRES_HOST_AUTH_METHOD", "value": "trust"}],
                        "readinessProbe": {
                            "exec": {"command": ["pg_isready", "--host", "127.0.0.1"]},
                            "periodSeconds": 1,
                        },
                    }
                ]
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "database"},
            "spec": {"selector": {"app": "database"}, "ports": [{"port": 5432}]},
        },
    ],
}


def has_pool(url: str) -> bool:
    """Whether the API answers, and the worker has created its work pool."""
    try:
        return httpx.get(f"{url}/work_pools/{POOL}").is_success
    except httpx.HTTPError:
        return False


@contextmanager
def installed(kind_name: str, charts: Path, image: str) -> Iterator[str]:
    """Yield the URL of the API of the charts' server; removes it all again. Raises KindError."""
    context = kind.context_of(kind_name)
    repository, _, tag = image.rpartition(":")
    kind.load_images(kind_name, [image, DATABASE_IMAGE])
    try:
        kind.kubectl(context, "create", "namespace", NAMESPACE)
        kind.kubectl(context, *HERE, "apply", "-f", "-", text=json.dumps(DATABASE))
        is_ready = ("--for=condition=Ready", f"--timeout={TIMEOUT_SECONDS}s")
        kind.kubectl(context, *HERE, "wait", "pod/database", *is_ready)
        _install(
            context,
            charts / "prefect-server",
            f"global.prefect.image.repository={repository},global.prefect.image.prefectTag={tag}",
            "postgresql.enabled=false",
            "secret.host=database,secret.port=5432,secret.database=postgres",
            "secret.username=postgres,secret.password=none",
            "server.resources.requests.cpu=10m",  # beside the release, two CPUs are too few
        )
        _install(
            context,
            charts / "prefect-worker",
            f"worker.image.repository={repository},worker.image.prefectTag={tag}",
            f"worker.apiConfig=selfHostedServer,worker.config.workPool={POOL}",
            f"worker.selfHostedServerApiConfig.apiUrl={SERVER_URL}",
            "worker.resources.requests.cpu=10m",
        )
        with _forwarded(context) as url:
            yield url
    finally:
        kind.kubectl(context, "delete", "namespace", NAMESPACE, "--ignore-not-found")


def _install(context: str, chart: Path, *settings: str) -> None:
    command = ["helm", "upgrade", "--install", chart.name, str(chart), "--kube-context", context]
    command += [*HERE, "--wait", f"--timeout={TIMEOUT_SECONDS}s"]
    kind.run(*command, *(f"--set={each}" for each in settings))


@contextmanager
def _forwarded(context: str) -> Iterator[str]:
    """Yield the URL of the API on a free port, forwarded by kubectl until the end."""
    port = free_port()
    command = ["kubectl", "--context", context, *HERE]
    command += ["port-forward", "service/prefect-server", f"{port}:4200", "--address", HOST]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as forward:
        try:
            yield f"http://{HOST}:{port}/api"
        finally:
            forward.terminate()
