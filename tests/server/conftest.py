"""The server that the image runs, on both databases."""

from collections.abc import Iterator

import pytest

from tests import services
from tests.server.runs import Api


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_database(postgres: str) -> str:
    """A database for Prefect; its URL as Prefect wants it."""
    return services.as_prefects(services.create_database(postgres, "prefect_server"))


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def own_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[services.Service]:
    """The server with this project's rules."""
    settings = {}
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_database")
        settings["PREFECT_API_DATABASE_CONNECTION_URL"] = url
    home = tmp_path_factory.mktemp(request.param)
    with services.prefect_server(home, program=services.OWN_SERVER, **settings) as server:
        yield server


@pytest.fixture
def api(own_server: services.Service) -> Api:
    return Api(own_server.url)
