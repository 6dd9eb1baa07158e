"""A kind cluster with the release, a recorder beside it, and the table of all loads at the end.

    make test-faults                                        # both installations, three seeds each
    make test-faults OPTIONS='-k test_load' FAULTS_RUNS=40 FAULTS_SEEDS='7'
    make test-faults LOCAL=1                                # only the local profile: no Docker
    make test-faults OPTIONS='-k "test_a_named_fault and worker_stopped"'

| Variable | Default | |
|---|---|---|
| FAULTS_RUNS | 100 | runs of a load; more come by schedule and event |
| FAULTS_SEEDS | 1 2 3 | from each follow the mix of runs and the faults, their times and victims |
| FAULTS_PROFILES | default high-availability | installations: files of values/; also: standby |
| FAULTS_INTERVAL | 4 | seconds between the creation of two runs |
| FAULTS_VICTIMS | all | components of which pods are deleted, beside flow pods |
| FAULTS_PAUSE | 6 12 | seconds from one drawn fault to the next, at least and at most |
| FAULTS_SMALL | 10 | runs of the load under which one named fault is tried |
| FAULTS_LOCAL_RUNS | 100 | runs of the load on the local profile |
| FAULTS_STOP | 60 | seconds for which its server or worker is stopped |
| FAULTS_SETTLE | 600 | seconds after the last fault within which every run must have ended |
| FAULTS_CLUSTER | | a kind cluster that is there, to be used and kept; without it one is made |

A load of 100 runs takes about 10 minutes on 2 cores that do nothing else, a named fault 3.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts import chart_images, kind
from tests import faketime
from tests.clusters import NAMESPACE, RELEASE, Cluster
from tests.faults.load import CLOCK_IMAGE, ClusterLoad, Recorder
from tests.faults.verdict import Report, table
from tests.services import ROOT, free_port

EXISTING = os.environ.get("FAULTS_CLUSTER")
NAME = EXISTING or "prefect-hamilton-faults"
PROFILES = os.environ.get("FAULTS_PROFILES", "default high-availability").split()
SEEDS = [int(word) for word in os.environ.get("FAULTS_SEEDS", "1 2 3").split()]
RUNS = int(os.environ.get("FAULTS_RUNS", "100"))
LOCAL_RUNS = int(os.environ.get("FAULTS_LOCAL_RUNS", "100"))
STOP = float(os.environ.get("FAULTS_STOP", "60"))
SMALL = int(os.environ.get("FAULTS_SMALL", "10"))
TOOLS = ("docker", "kind", "helm", "kubectl")
VALUES = ROOT / "tests" / "faults" / "values"

REPORTS = pytest.StashKey[list[Report]]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "profile" in metafunc.fixturenames:
        metafunc.parametrize("profile", PROFILES, scope="session")
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", SEEDS)


@pytest.fixture(scope="session")
def reports(request: pytest.FixtureRequest) -> list[Report]:
    """What each load came to; printed when all tests have ended."""
    return request.config.stash.setdefault(REPORTS, [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if found := config.stash.get(REPORTS, []):
        terminalreporter.section("flow runs under faults")
        terminalreporter.write_line(table(found))


@pytest.fixture(scope="session")
def bare_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, str]]:
    """A kind cluster with the recorder and the images, and a text that changes with them."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"not on PATH: {', '.join(missing)}")
    if subprocess.run(["docker", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no Docker engine answers")
    kubeconfig = str(tmp_path_factory.mktemp("faults") / "kubeconfig")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", kubeconfig)
        cluster = Cluster({**os.environ, "NO_COLOR": "1"}, free_port(), free_port(), "", NAME)
        try:
            if EXISTING:
                cluster.run("kind", "export", "kubeconfig", "--name", NAME)
                cluster.port, cluster.hamilton_port = kind.ports(NAME)
            else:
                kind.create_cluster(NAME, cluster.port, cluster.hamilton_port, kind.NODE_IMAGE)
            files = [kind.VALUES, *(VALUES / f"{profile}.yaml" for profile in PROFILES)]
            images = {i for each in files[1:] for i in chart_images.images([files[0], each])}
            if faketime.LIBRARY:
                build_clock_image(tmp_path_factory.mktemp("clock"), faketime.LIBRARY)
                images.add(CLOCK_IMAGE)
            identity = kind.load_images(NAME, sorted(images))
            Recorder(cluster).install()
            yield cluster, identity
        finally:
            if not EXISTING:
                kind.run("kind", "delete", "cluster", "--name", NAME)


def build_clock_image(folder: Path, library: Path) -> None:
    """Build the image of flow pods with libfaketime."""
    shutil.copy(library, folder)
    lines = f"FROM prefect-hamilton/flows:0.1.0\nCOPY {library.name} /usr/lib/\n"
    (folder / "Dockerfile").write_text(lines)
    kind.run("docker", "build", "--quiet", "--tag", CLOCK_IMAGE, str(folder))


@pytest.fixture(scope="session")
def cluster(bare_cluster: tuple[Cluster, str], profile: str) -> Cluster:
    """The release with the profile's values; from nothing, unless the cluster was there."""
    cluster, identity = bare_cluster
    context = kind.context_of(NAME)
    if not EXISTING:
        cluster.run("kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found")
    kind.create_namespace(context)
    options = ["--values", str(kind.VALUES), "--values", str(VALUES / f"{profile}.yaml")]
    options += ["--set-string", f"server.url=http://localhost:{cluster.port}"]
    options += ["--set-string", f"rolloutToken={identity}"]
    cluster.helm("upgrade", "--install", RELEASE, str(chart_images.CHART), *options)
    commit, _ = kind.snapshot()
    kind.publish(context, commit, timeout=600)
    kind.wait_until_ready(context, timeout=600)
    cluster.__dict__.pop("api", None)  # the password of this installation is another one
    return cluster


@pytest.fixture
def load(cluster: Cluster) -> Iterator[ClusterLoad]:
    """The load's deployments; their schedule rests again afterwards."""
    load = ClusterLoad(cluster=cluster)
    load.register()
    try:
        yield load
    finally:
        load.close()


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a line immediately, since the tests run for hours."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(text, flush=True)  # noqa: T201

    return line
