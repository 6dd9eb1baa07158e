"""What the bootstrap asks the server where nothing differs does not grow with the deployments."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import bench_bootstrap
from tests import forks, services
from tests.deployments.git_server import prefect_environment

pytestmark = pytest.mark.services

AT_MOST = 15
"""Requests of an apply or a plan; each further 200 deployments, or triggers, add one."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that counts its requests."""
    with services.prefect_server(
        tmp_path_factory.mktemp("server"),
        program=services.OWN_SERVER,
        PREFECT_SERVER_METRICS_ENABLED="true",
    ) as server:
        yield f"{server.url}/api"


def bootstrap(command: str, api: str, folder: Path) -> str:
    done = forks.run(
        "prefect_hamilton.bootstrap",
        *(command, "--file", folder / "state.yaml", "--checkout", folder),
        *("--deployment", "*", "--release", "ns/bench"),
        env=prefect_environment(api, FLOWS_REPOSITORY=folder.as_uri(), FLOWS_REF="main"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def requests_without_change(command: str, api: str, folder: Path) -> int:
    """The number of requests of a command that finds everything as it should be."""
    before = bench_bootstrap.requests(api)
    assert bench_bootstrap.UNCHANGED in bootstrap(command, api, folder)
    return bench_bootstrap.requests(api) - before - 1  # the first reading


def test_where_nothing_differs_the_requests_do_not_grow_with_the_deployments(
    api: str, tmp_path: Path
) -> None:
    found = {}
    for deployments in (2, 30):
        folder = tmp_path / str(deployments)
        bench_bootstrap.write_repository(folder, deployments)
        bootstrap("apply", api, folder)
        found[deployments] = [
            requests_without_change(command, api, folder) for command in ("apply", "plan")
        ]
    assert found[2] == found[30]
    assert 0 < max(found[30]) <= AT_MOST
