"""Results of a flow pod outlive it: the next one finds them in the bucket or on the volume."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
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
GCS, AZURE = "fake-gcs-server", "azurite-blob"
"""Emulators of the stores that no one can run: a Go module, and a package of npm."""
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
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
RemoteFileSystem(**block["values"]).save(block["name"], overwrite=True)
"""


def s3_server(folder: Path, stack: ExitStack) -> Mapping[str, str]:
    """The environment with an S3 server's address and the credential of its bucket."""
    (folder / "objects").mkdir(parents=True)
    (folder / "attributes").mkdir()
    keys = {"ROOT_ACCESS_KEY": "reader", "ROOT_SECRET_KEY": CREDENTIAL["AWS_SECRET_ACCESS_KEY"]}
    arguments = ("posix", "--sidecar", str(folder / "attributes"), str(folder / "objects"))
    program = str(s3.program())
    address = serve(
        stack, lambda port: (program, "--port", f"127.0.0.1:{port}", *arguments), **keys
    )
    system = s3fs.S3FileSystem(
        key=keys["ROOT_ACCESS_KEY"],
        secret=keys["ROOT_SECRET_KEY"],
        endpoint_url=address,
        skip_instance_cache=True,
    )
    patiently(system.mkdir, "results")
    return CREDENTIAL | {"AWS_ENDPOINT_URL": address, "AWS_REGION": "us-east-1"}


def gcs_server(folder: Path, stack: ExitStack) -> Mapping[str, str]:
    """The environment with the address of an emulator of Google Cloud Storage."""
    import gcsfs

    storage = ("-backend", "filesystem", "-filesystem-root", str(folder))
    options = (GCS, "-scheme", "http", "-host", "127.0.0.1", *storage)
    address = serve(
        stack, lambda port: (*options, "-port", port, "-public-host", f"127.0.0.1:{port}")
    )
    system = gcsfs.GCSFileSystem(endpoint_url=address, token="anon", project="test")
    patiently(system.mkdir, "results")
    # The emulator does not speak gRPC, by which gcsfs asks for the type of the bucket.
    quiet = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    return {"STORAGE_EMULATOR_HOST": address, "FSSPEC_GS_TOKEN": "anon", **quiet}


def azure_server(folder: Path, stack: ExitStack) -> Mapping[str, str]:
    """The environment with the connection to an emulator of Azure Blob Storage."""
    import adlfs

    options = (AZURE, "--silent", "--disableTelemetry", "--skipApiVersionCheck")
    options += ("--location", str(folder), "--blobHost", "127.0.0.1")
    address = serve(stack, lambda port: (*options, "--blobPort", port))
    # The account and the key of the emulator are public.
    account = "devstoreaccount1"
    connection = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": account,
        "AccountKey": AZURE_KEY,
        "BlobEndpoint": f"{address}/{account}",
    }
    text = ";".join(f"{name}={value}" for name, value in connection.items())
    system = adlfs.AzureBlobFileSystem(connection_string=text)
    patiently(system.mkdir, "results")
    return {"AZURE_STORAGE_CONNECTION_STRING": text}


def serve(stack: ExitStack, command: Callable[[str], Sequence[str]], **variables: str) -> str:
    """Start a server on a free port; returns its URL."""
    port = services.free_port()
    server = subprocess.Popen(
        command(str(port)), env={**os.environ, **variables}, stdout=subprocess.DEVNULL
    )
    stack.callback(server.wait)
    stack.callback(server.kill)
    return f"http://127.0.0.1:{port}"


patiently = tenacity.Retrying(
    stop=tenacity.stop_after_delay(60), wait=tenacity.wait_fixed(0.2), reraise=True
)


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


@pytest.mark.parametrize(
    ("url", "server", "needs"),
    [
        ("s3://results/flows", s3_server, ()),
        ("gs://results/flows", gcs_server, (GCS, "gcsfs")),
        ("az://results/flows", azure_server, (AZURE, "adlfs")),
    ],
)
def test_a_bucket_keeps_results_for_the_next_pod(
    prefect_server: services.Service,
    tmp_path: Path,
    url: str,
    server: Callable[[Path, ExitStack], Mapping[str, str]],
    needs: tuple[str, ...],
) -> None:
    if missing := [name for name in needs if not (shutil.which(name) or find_spec(name))]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    state, spec = pod({"bucket": url, "existingSecret": "bucket"})
    (block,) = [each for each in state["blocks"] if each["type"] == "remote-file-system"]
    assert {"secretRef": {"name": "bucket"}} in spec["containers"][0]["envFrom"]
    api = {"PREFECT_API_URL": f"{prefect_server.url}/api"}
    python(SAVE_BLOCK, json.dumps(block), **api)
    with ExitStack() as stack:
        bucket = server(tmp_path / "bucket", stack)
        first, second = run_twice({**settings_of(spec), **api, **bucket}, tmp_path)
    assert "Computed" in first
    assert "Computed" not in second
    assert "Result 49" in second


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
