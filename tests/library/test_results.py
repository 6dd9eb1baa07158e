"""Results of a flow pod outlive it: the next one finds them in the bucket or on the volume."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import s3fs
import tenacity
import yaml

from tests import s3, services
from tests.chart.charts import Object, env, render
from tests.chart.test_flow_pods import flow_job, template

# The S3 server is built from its Go module on a new machine.
pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]

CREDENTIAL = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "s3cret-of-the-bucket"}
FLOW = """
from prefect import flow, task
from prefect.cache_policies import INPUTS

@task(cache_policy=INPUTS)
def square(number: int) -> int:
    print("Computed")
    return number * number

@flow
def squares() -> int:
    return square(7)

print("Result", squares())
"""
SAVE_BLOCK = """
import json, sys
from prefect.filesystems import RemoteFileSystem

block = json.loads(sys.argv[1])
RemoteFileSystem(**block["values"]).save(block["name"])
"""


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment with an S3 server's address and the credential of its bucket."""
    data, port = tmp_path / "s3", services.free_port()
    (data / "objects").mkdir(parents=True)
    (data / "attributes").mkdir()
    address = f"127.0.0.1:{port}"
    command = [str(s3.program()), "--port", address, "posix"]
    command += ["--sidecar", str(data / "attributes"), str(data / "objects")]
    keys = {"ROOT_ACCESS_KEY": "reader", "ROOT_SECRET_KEY": CREDENTIAL["AWS_SECRET_ACCESS_KEY"]}
    server = subprocess.Popen(command, env={**os.environ, **keys}, stdout=subprocess.DEVNULL)
    try:
        system = s3fs.S3FileSystem(
            key=keys["ROOT_ACCESS_KEY"],
            secret=keys["ROOT_SECRET_KEY"],
            endpoint_url=f"http://{address}",
            skip_instance_cache=True,
        )
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_delay(60), wait=tenacity.wait_fixed(0.2), reraise=True
        )
        retrying(system.mkdir, "results")
        yield CREDENTIAL | {"AWS_ENDPOINT_URL": f"http://{address}", "AWS_REGION": "us-east-1"}
    finally:
        server.kill()
        server.wait()


def pod(results: Mapping[str, str]) -> tuple[Object, dict[str, Any]]:
    """Return the bootstrap's state and the spec of a flow pod for `flows.results`."""
    release = render({"flows": {"results": dict(results)}})
    state = yaml.safe_load(release.get("ConfigMap", "bootstrap")["data"]["state.yaml"])
    return state, flow_job(template(release))["spec"]["template"]["spec"]


def python(script: str, *arguments: str, **environment: str) -> str:
    command = (sys.executable, "-c", script, *arguments)
    return services.output(*command, folder=services.ROOT, env={**os.environ, **environment})


def run_twice(settings: Mapping[str, str], folder: Path) -> tuple[str, str]:
    """Return the output of two processes that share no folder, as pods do."""
    first, second = (
        python(FLOW, **settings, PREFECT_HOME=str(folder / name)) for name in ("first", "second")
    )
    return first, second


def settings_of(spec: Object) -> dict[str, str]:
    found = env(spec["containers"][0])
    return {name: value for name, value in found.items() if name.startswith("PREFECT_RESULTS")}


def test_a_bucket_keeps_results_for_the_next_pod(
    prefect_server: services.Service, bucket: dict[str, str], tmp_path: Path
) -> None:
    state, spec = pod({"bucket": "s3://results/flows", "existingSecret": "bucket"})
    (block,) = [each for each in state["blocks"] if each["type"] == "remote-file-system"]
    assert {"secretRef": {"name": "bucket"}} in spec["containers"][0]["envFrom"]
    api = {"PREFECT_API_URL": f"{prefect_server.url}/api"}
    python(SAVE_BLOCK, json.dumps(block), **api)
    first, second = run_twice(settings_of(spec) | api | bucket, tmp_path)
    assert "Computed" in first
    assert "Computed" not in second
    assert "Result 49" in second
    assert list((tmp_path / "s3/objects/results/flows").iterdir())


def test_a_volume_keeps_results_for_the_next_pod(
    prefect_server: services.Service, tmp_path: Path
) -> None:
    _, spec = pod({"existingClaim": "results"})
    mounts = {each["name"]: each["mountPath"] for each in spec["containers"][0]["volumeMounts"]}
    (volume,) = [each for each in spec["volumes"] if each["name"] == "results"]
    assert volume["persistentVolumeClaim"] == {"claimName": "results"}
    assert settings_of(spec) == {"PREFECT_RESULTS_LOCAL_STORAGE_PATH": mounts["results"]}
    settings = {
        "PREFECT_API_URL": f"{prefect_server.url}/api",
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(tmp_path / "volume"),
    }
    first, second = run_twice(settings, tmp_path)
    assert "Computed" in first
    assert "Computed" not in second
    assert "Result 49" in second
