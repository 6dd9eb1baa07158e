"""Each program of a pod listens on IPv6 and IPv4: in a network of one of them, and of both."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import tenacity

from tests import first_start

ROOT = Path(__file__).parent.parent.parent
NOT_SUPPORTED = "needs root, unshare, ip and nsenter, to make a network of its own"


@dataclass
class Network:
    """A network namespace whose only interface is its loopback, with these addresses."""

    process: subprocess.Popen[bytes]
    hosts: list[str]

    def command(self, *command: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", *command]

    def run(self, *command: str) -> None:
        subprocess.run(self.command(*command), check=True, capture_output=True)

    def get(self, url: str) -> None:
        """Read a page. CalledProcessError if it cannot be read."""
        read = "import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], headers=host))"
        program = f"host = {{'Host': 'localhost'}}; {read}"
        self.run(sys.executable, "-I", "-S", "-c", program, url)

    @contextmanager
    def running(self, folder: Path, *command: str, **settings: str) -> Iterator[None]:
        """Run a program of a pod until the block ends."""
        env = os.environ | {"PREFECT_HOME": str(folder), "DO_NOT_TRACK": "1", **settings}
        with (
            (folder / "log").open("ab") as log,
            subprocess.Popen(
                self.command(sys.executable, *command), cwd=ROOT, env=env, stdout=log, stderr=log
            ) as process,
        ):
            try:
                yield
            finally:
                process.terminate()

    def assert_answers(self, folder: Path, port: int, path: str) -> None:
        """Fail with the program's log unless each address of the network answers in time."""
        for host in self.hosts:
            try:
                tenacity.Retrying(
                    retry=tenacity.retry_if_exception_type(subprocess.CalledProcessError),
                    stop=tenacity.stop_after_delay(120),
                    wait=tenacity.wait_fixed(0.2),
                )(self.get, f"http://{host}:{port}{path}")
            except tenacity.RetryError:
                pytest.fail(f"{host} does not answer: {(folder / 'log').read_text()}")


@pytest.fixture(scope="module", params=["IPv6", "IPv4", "both"])
def network(request: pytest.FixtureRequest) -> Iterator[Network]:
    """A network of one family of addresses, or of both."""
    if os.geteuid() or not all(shutil.which(program) for program in ("unshare", "ip", "nsenter")):
        pytest.skip(NOT_SUPPORTED)
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep infinity"],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == b"ready\n", NOT_SUPPORTED
            network = Network(process, ["127.0.0.1", "[::1]"])
            if request.param == "IPv6":
                network.run("ip", "address", "delete", "127.0.0.1/8", "dev", "lo")
                network.hosts = ["[::1]"]
            elif request.param == "IPv4":
                # As on a node whose kernel was started without IPv6: there is not even ::.
                network.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
                network.hosts = ["127.0.0.1"]
            yield network
        finally:
            process.kill()


@pytest.fixture(scope="module")
def api_url(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a server with the arguments of the image."""
    home = tmp_path_factory.mktemp("server")
    first_start.prefect(home)
    arguments = ("prefect_hamilton.server", "--host", "", "--port", "4200", "--no-services")
    with network.running(home, "-m", *arguments, PREFECT_API_URL=""):
        network.assert_answers(home, 4200, "/api/health")
        yield f"http://{network.hosts[-1]}:4200/api"


@pytest.mark.timeout(400)
def test_server_exporter_and_worker_listen(network: Network, api_url: str, tmp_path: Path) -> None:
    worker, exporter = tmp_path / "worker", tmp_path / "exporter"
    worker.mkdir()
    exporter.mkdir()
    start = ("-m", "prefect_hamilton.worker", "start", "--pool=pool", "--type=process")
    with ExitStack() as stack:
        stack.enter_context(
            network.running(exporter, "-m", "prefect_hamilton.exporter", PREFECT_API_URL=api_url)
        )
        stack.enter_context(
            network.running(worker, *start, "--with-healthcheck", PREFECT_API_URL=api_url)
        )
        network.assert_answers(exporter, 9090, "/metrics")
        network.assert_answers(worker, 8080, "/health")


@pytest.mark.timeout(200)
def test_hamilton_ui_listens(network: Network, tmp_path: Path) -> None:
    first_start.hamilton_ui(tmp_path)
    program = (
        "import sys, pathlib; from scripts import hamilton_ui;"
        "hamilton_ui.configure(pathlib.Path(sys.argv[1]));"
        "from prefect_hamilton.hamilton_ui import serving; serving.serve()"
    )
    with network.running(tmp_path, "-c", program, str(tmp_path), WEB_CONCURRENCY="1"):
        network.assert_answers(tmp_path, 8241, "/api/ping")
