"""The chart as an OCI artifact: packaged, pushed to a registry, and installed from there."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tenacity
import yaml

from tests.chart.charts import CHART, ROOT
from tests.services import free_port

# Debian's name, and upstream's.
REGISTRY = shutil.which("docker-registry") or shutil.which("registry")
VERSION = str(yaml.safe_load((CHART / "Chart.yaml").read_text())["version"])


def helm(*arguments: str) -> str:
    done = subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real registry on a free port; yields host and port."""
    if REGISTRY is None:
        pytest.skip("no registry on PATH: install Debian's package docker-registry")
    if not shutil.which("helm"):
        pytest.skip("helm is not on PATH")
    folder = tmp_path_factory.mktemp("registry")
    address = f"127.0.0.1:{free_port()}"
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
    }
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    command = [REGISTRY, "serve", str(folder / "config.yml")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for attempt in tenacity.Retrying(
            stop=tenacity.stop_after_delay(30), wait=tenacity.wait_fixed(0.05), reraise=True
        ):
            with attempt:
                assert process.poll() is None, (folder / "log").read_text()
                httpx.get(f"http://{address}/v2/").raise_for_status()
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def pushed(registry: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Package and push the chart as the release does; returns its address."""
    folder = tmp_path_factory.mktemp("package")
    helm("package", str(CHART), "--destination", str(folder))
    package = folder / f"prefect-hamilton-{VERSION}.tgz"
    assert "Digest: sha256:" in helm(
        "push", str(package), f"oci://{registry}/charts", "--plain-http"
    )
    return f"oci://{registry}/charts/prefect-hamilton"


OPTIONS = ("--version", VERSION, "--plain-http")


def test_the_chart_renders_the_same_from_the_registry(pushed: str) -> None:
    values = [
        "--namespace",
        "flows",
        "--values",
        str(CHART / "examples" / "high-availability" / "values.yaml"),
    ]
    here = helm("template", "demo", str(CHART), *values)
    there = helm("template", "demo", pushed, *OPTIONS, *values)
    assert "kind: Deployment" in there
    kept = [line for line in there.splitlines() if not line.startswith(("Pulled:", "Digest:"))]
    assert kept == here.splitlines()


def test_the_chart_installs_from_the_registry_and_prints_its_notes(pushed: str) -> None:
    said = helm("install", "demo", pushed, *OPTIONS, "--dry-run=client", "--namespace", "flows")
    assert "helm test demo -n flows" in said


def test_the_package_has_all_files_of_the_chart_and_no_others(pushed: str, tmp_path: Path) -> None:
    helm("pull", pushed, *OPTIONS, "--untar", "--untardir", str(tmp_path))
    pulled = tmp_path / "prefect-hamilton"
    here = {p.relative_to(CHART) for p in CHART.rglob("*") if p.is_file()}
    there = {p.relative_to(pulled) for p in pulled.rglob("*") if p.is_file()}
    assert there == {path for path in here if "__pycache__" not in path.parts}


def test_flux_selects_the_layer_of_the_pushed_chart(registry: str, pushed: str) -> None:
    manifest = httpx.get(
        f"http://{registry}/v2/charts/prefect-hamilton/manifests/{VERSION}",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
    ).json()
    sources = yaml.safe_load_all(
        (ROOT / "kustomize" / "gitops" / "flux" / "source.yaml").read_text()
    )
    (wanted,) = [s["spec"]["layerSelector"] for s in sources if s["kind"] == "OCIRepository"]
    assert wanted["mediaType"] in {layer["mediaType"] for layer in manifest["layers"]}
