"""Behind a proxy, with a private authority: pods reach their API and their Git server."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests import forks
from tests.chart import charts
from tests.deployments.git_server import GitServer, prefect_environment, wait_for_port
from tests.deployments.test_git_clone import deploy, kubernetes_pool, run_as_a_pod_does
from tests.services import free_port

pytestmark = pytest.mark.services

__all__ = ["kubernetes_pool"]


@dataclass
class Proxy:
    """A forward proxy, and its log of requests."""

    url: str
    log: Path


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    if not shutil.which("tinyproxy"):
        pytest.skip("tinyproxy is not on PATH")
    port = free_port()
    log = tmp_path / "proxy.log"
    configuration = tmp_path / "proxy.conf"
    configuration.write_text(f'Port {port}\nListen 127.0.0.1\nLogFile "{log}"\nLogLevel Connect\n')
    server = subprocess.Popen(["tinyproxy", "-d", "-c", str(configuration)])
    try:
        wait_for_port(port)
        yield Proxy(f"http://127.0.0.1:{port}", log)
    finally:
        server.terminate()
        server.wait(timeout=10)


def rendered(proxy: Proxy) -> charts.Release:
    if not shutil.which("helm"):
        pytest.skip("helm is not on PATH")
    company = {
        "proxy": {"http": proxy.url, "https": proxy.url},
        "caBundle": {"configMap": "authorities"},
    }
    return charts.render({"global": company})


def flow_pod(chart: charts.Release) -> charts.Object:
    data = chart.get("ConfigMap", "-bootstrap")["data"]
    template = yaml.safe_load(data["base-job-template-kubernetes.yaml"])
    spec = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    return dict(spec["containers"][0])


def bootstrap(chart: charts.Release) -> charts.Object:
    (container,) = chart.job("bootstrap")["spec"]["template"]["spec"]["containers"]
    return dict(container)


def variables(container: charts.Object, bundle: Path) -> dict[str, str]:
    """What the chart sets for both in a container, with the test's place of the bundle."""
    found = charts.env(container)
    for name, value in found.items():
        if value == "/ca-bundle/ca.crt":
            found[name] = str(bundle)
    # Here all servers are on this machine, which the chart excepts.
    found |= {"NO_PROXY": "", "no_proxy": ""}
    return {
        name: value
        for name, value in found.items()
        if name not in ("PREFECT_HOME", "PREFECT_API_URL", "HAMILTON_API_URL")
        and str(value) == value
    }


def test_a_run_reaches_its_api_and_its_git_server(
    prefect_api: str, git_server: GitServer, flow_repository: Path, tmp_path: Path, proxy: Proxy
) -> None:
    deploy(prefect_api, "walkthrough-k8s")
    given = variables(flow_pod(rendered(proxy)), git_server.certificate)
    assert given["GIT_SSL_CAINFO"] == str(git_server.certificate)
    url = git_server.publish(flow_repository, "company")

    run = run_as_a_pod_does(
        prefect_api, tmp_path / "pod", git_server, FLOWS_REPOSITORY=url, **given
    )

    assert run.state.is_completed(), run
    requests = proxy.log.read_text()
    assert f"CONNECT {urlsplit(url).netloc}" in requests
    assert f"{prefect_api}/flow_runs/" in requests


def test_the_bootstrap_reaches_its_api_and_its_git_server(
    prefect_api: str, git_server: GitServer, flow_repository: Path, tmp_path: Path, proxy: Proxy
) -> None:
    given = variables(bootstrap(rendered(proxy)), git_server.certificate)
    url = git_server.publish(flow_repository, "company-bootstrap")
    state = tmp_path / "state.yaml"
    state.write_text("work_pools: [{name: kubernetes, type: kubernetes}]\n")

    done = forks.run(
        "prefect_hamilton.bootstrap",
        *("apply", "--file", state, "--deployment", "walkthrough-k8s"),
        env=prefect_environment(
            prefect_api, **given | {"FLOWS_REPOSITORY": url, "FLOWS_REF": "main"}
        ),
        folder=tmp_path,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    requests = proxy.log.read_text()
    assert f"CONNECT {urlsplit(url).netloc}" in requests
    assert f"POST {prefect_api}/deployments/" in requests
