"""Fixtures of all tests. No test touches the user's own Prefect profile or data."""

import gc
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from prefect_hamilton.bootstrap.hamilton import ensure_project
from tests import services, shared, web

pytest_plugins = ["tests.browser"]

_FOLDERS = pytest.StashKey[ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    folders = config.stash[_FOLDERS] = ExitStack()
    # Before the first import of Prefect, which reads it.
    home = tempfile.TemporaryDirectory(prefix="prefect-home-")
    os.environ["PREFECT_HOME"] = folders.enter_context(home)
    if shared.FOLDER not in os.environ:  # as it is in the other processes of pytest-xdist
        folder = tempfile.TemporaryDirectory(prefix="prefect-tests-")
        os.environ[shared.FOLDER] = folders.enter_context(folder)
        folders.callback(os.environ.pop, shared.FOLDER)
    os.environ["DO_NOT_TRACK"] = "1"
    # helm and kubectl run hundreds of times for a moment, a third of which Go collects garbage.
    os.environ.setdefault("GOGC", "400")
    for name in [n for n in os.environ if n.startswith("HAMILTON_")]:
        del os.environ[name]
    os.environ.pop("PREFECT_API_URL", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_FOLDERS].close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the files, put those with long timeouts first.

    What starts last is then short, and no process idles. The suite on a cluster, in one process,
    ends with the file that installs the release again.
    """
    if not hasattr(config, "workerinput"):
        return
    seconds: Counter[Path] = Counter()
    for item in items:
        if mark := item.get_closest_marker("timeout"):
            seconds[item.path] = max(seconds[item.path], int(mark.args[0]))
    items.sort(key=lambda item: -seconds[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import the tests without garbage collection: the objects of modules are permanent."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which groups of tests were skipped: what passed says nothing about them."""
    skipped = Counter(
        report.nodeid.split("::")[0] for report in terminalreporter.getreports("skipped")
    )
    if skipped:
        groups = ", ".join(f"{count} of {file}" for file, count in sorted(skipped.items()))
        terminalreporter.write_line(
            f"{skipped.total()} tests were skipped, for the reasons above: {groups}", yellow=True
        )


@dataclass
class HamiltonUi:
    """A running Hamilton UI with a project that `username` may write to."""

    service: services.Service
    username: str
    project_id: int

    @property
    def url(self) -> str:
        return self.service.url

    @property
    def env(self) -> dict[str, str]:
        """What turns tracking on in a flow."""
        return {
            "HAMILTON_API_URL": self.url,
            "HAMILTON_UI_URL": self.url,
            "HAMILTON_UI_USERNAME": self.username,
            "HAMILTON_UI_PROJECT_ID": str(self.project_id),
        }


@pytest.fixture(scope="session")
def hamilton_ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HamiltonUi]:
    """A Hamilton UI for all tests of the session: leave it running."""
    with services.hamilton_ui(tmp_path_factory.mktemp("hamilton-ui")) as service:
        project_id = ensure_project(service.url, "tests", "tests")
        yield HamiltonUi(service, "tests", project_id)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    """A Prefect server for all tests of the session."""
    with services.prefect_server(tmp_path_factory.mktemp("prefect")) as service:
        yield service


@pytest.fixture
def web_server() -> Iterator[web.WebServer]:
    """A web server for this test."""
    with web.serve() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_programs() -> Path:
    """The folder with the programs of PostgreSQL."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("no PostgreSQL server in /usr/lib/postgresql: apt-get install postgresql")
    return programs[-1].parent


@pytest.fixture(scope="session")
def postgres(postgres_programs: Path) -> Iterator[str]:
    """A PostgreSQL server for all tests of the session: its URL without database."""
    with services.postgres(postgres_programs) as url:
        yield url


@pytest.fixture
def prefect_api(prefect_server: services.Service) -> Iterator[str]:
    """Flows that run in this test's process report to the session's Prefect server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    url = f"{prefect_server.url}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        yield url
