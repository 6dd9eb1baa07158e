"""The exporter with thousands of deployments, whose rows are in a real PostgreSQL."""

from collections.abc import Iterator

import psycopg
import pytest

from tests import services
from tests.exporter.conftest import OPTIONS, Exporter, until

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

DEPLOYMENTS = 3000
ROWS = """
INSERT INTO flow (name) SELECT 'flow-' || number FROM generate_series(1, 1000) AS number;
INSERT INTO deployment (name, flow_id)
  SELECT 'main-' || number, flow.id FROM generate_series(1, 3) AS number, flow;
INSERT INTO deployment_schedule (deployment_id, schedule, active)
  SELECT id, '{"interval": 86400}', true FROM deployment;
"""


@pytest.fixture(scope="module")
def database(postgres: str) -> str:
    """The URL of a database for Prefect."""
    with psycopg.connect(f"{postgres}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE many_deployments")
    return f"{postgres}/many_deployments"


@pytest.fixture(scope="module")
def exporter(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """An exporter that began when there were 1,000 flows with three deployments each."""
    home = tmp_path_factory.mktemp("server")
    with services.prefect_server(
        home,
        program=services.OWN_SERVER,
        PREFECT_API_DATABASE_CONNECTION_URL=database.replace(":", "+asyncpg:", 1),
    ) as server:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(ROWS)
        env = {"PREFECT_API_URL": f"{server.url}/api"}
        with services.exporter(tmp_path_factory.mktemp("exporter"), *OPTIONS, **env) as service:
            yield Exporter(service)


def test_each_deployment_is_listed(exporter: Exporter) -> None:
    """Many share a name, by which alone the API sorts them."""
    until(lambda: exporter.sum("prefect_deployment_schedule_active"), float(DEPLOYMENTS))
