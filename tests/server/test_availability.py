"""What the API says while its PostgreSQL is away, and after."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import tenacity

from prefect_hamilton.server import availability
from tests import services
from tests.server.tcp_proxy import TcpProxy, proxy

pytestmark = pytest.mark.services

PROBE_TIMEOUT = 5
"""Seconds within which readiness follows the database."""


@pytest.fixture(scope="module")
def database(postgres_database: str) -> Iterator[TcpProxy]:
    """What stands between the server and PostgreSQL."""
    port = urlsplit(postgres_database).port
    assert port
    with proxy(port) as between:
        yield between


@pytest.fixture(scope="module")
def api(
    database: TcpProxy, postgres_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    port = str(urlsplit(postgres_database).port)
    url = postgres_database.replace(f":{port}/", f":{database.port}/")
    with (
        services.prefect_server(
            tmp_path_factory.mktemp("server"),
            program=services.OWN_SERVER,
            PREFECT_API_DATABASE_CONNECTION_URL=url,
        ) as server,
        httpx.Client(base_url=f"{server.url}/api", timeout=60) as client,
    ):
        yield client


def wait_until_ready(api: httpx.Client) -> None:
    tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(httpx.HTTPStatusError),
        stop=tenacity.stop_after_delay(60),
        wait=tenacity.wait_fixed(0.1),
        reraise=True,
    )(lambda: api.get("/ready").raise_for_status())


@pytest.mark.parametrize("fault", ["refuse", "silence"])
def test_the_api_responds_503_during_a_database_outage(
    api: httpx.Client, database: TcpProxy, fault: str
) -> None:
    api.post("/flows/filter", json={}).raise_for_status()
    getattr(database, fault)()
    try:
        ready = api.get("/ready", timeout=PROBE_TIMEOUT)
        alive = api.get("/health", timeout=PROBE_TIMEOUT)
        answer = api.post("/flows/filter", json={})
    finally:
        (database.listen if fault == "refuse" else database.speak)()

    assert ready.status_code == 503
    assert alive.status_code == 200
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == str(availability.RETRY_AFTER_SECONDS)
    wait_until_ready(api)
    api.post("/flows/filter", json={}).raise_for_status()


def test_a_server_error_is_not_treated_as_an_outage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        (tmp_path / "none").read_text()

    assert not availability.is_away(raised.value)
