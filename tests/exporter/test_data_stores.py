"""The exporters beside the databases: every panel about PostgreSQL and Valkey shows something."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis

from charts.schema.dashboards import DASHBOARDS
from charts.schema.dashboards.model import Panel
from charts.schema.dashboards.promql import chosen
from tests import services
from tests.chart.charts import env, render
from tests.exporter.conftest import until

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

PROGRAMS = ("prometheus", "prometheus-postgres-exporter", "prometheus-redis-exporter")
OLDEST = {PROGRAMS[1]: (0, 17), PROGRAMS[2]: (1, 69)}
"""Versions of the exporters whose metrics the panels show: those of Debian 13."""
PASSWORD = "secret"


def sidecars() -> dict[str, dict[str, Any]]:
    """Return the environment of each exporter in the chart, by its component."""
    on = {"enabled": True}
    release = render({"valkey": on, "monitoring": {"postgresExporter": on, "valkeyExporter": on}})
    found = {}
    for component in ("postgres", "valkey"):
        pod = release.get("StatefulSet", f"-{component}")["spec"]["template"]["spec"]
        (container,) = [each for each in pod["containers"] if each["name"] == "exporter"]
        found[component] = env(container)
    return found


def exporter(stack: ExitStack, folder: Path, program: str, env: dict[str, Any]) -> services.Target:
    """Start an exporter with the environment of its sidecar; secrets are the password."""
    settings = {name: value if isinstance(value, str) else PASSWORD for name, value in env.items()}
    service = stack.enter_context(services.database_exporter(folder, program, **settings))
    return services.Target(service.port)


def version(program: str) -> tuple[int, ...]:
    """Return the first two numbers of a program's version."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"(\d+)\.(\d+)\.\d+", done.stdout + done.stderr)
    assert found, done
    return tuple(int(part) for part in found.groups())


def require(*programs: str) -> None:
    """Skip the test if a program is not installed, or an exporter is too old."""
    if missing := [name for name in programs if not shutil.which(name)]:
        pytest.skip(f"not on PATH: {', '.join(missing)} (packages of Debian 13)")
    oldest = {name: OLDEST[name] for name in programs if name in OLDEST}
    if old := [name for name, each in oldest.items() if version(name) < each]:
        pytest.skip(f"older than in Debian 13: {', '.join(old)}")


@contextmanager
def release_postgres(programs: Path) -> Iterator[str]:
    """A PostgreSQL with the user and the databases of a release; its URL without database."""
    with services.postgres(programs) as url:
        with psycopg.connect(f"{url}/postgres", autocommit=True) as connection:
            connection.execute("CREATE ROLE postgres SUPERUSER LOGIN")
        services.create_database(url, "hamilton")
        prefect = services.create_database(url, "prefect")
        with psycopg.connect(prefect, autocommit=True) as connection:
            connection.execute("CREATE TABLE flow_run AS SELECT generate_series(1, 1000) AS number")
        yield url


def at(url: str, env: dict[str, Any]) -> dict[str, Any]:
    """Return the environment of the exporter for a PostgreSQL at another port."""
    address = url.rpartition("@")[2]
    uri = env["DATA_SOURCE_URI"].replace("127.0.0.1:5432", address)
    return env | {"DATA_SOURCE_URI": uri}


@pytest.fixture(scope="module")
def prometheus(
    postgres_programs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[services.Service]:
    """A Prometheus that scrapes both exporters, of databases like those of a release."""
    require(*PROGRAMS)
    valkey = shutil.which("valkey-server") or shutil.which("redis-server")
    if not valkey:
        pytest.skip("not on PATH: valkey-server (a package of Debian 13)")
    folder = tmp_path_factory.mktemp("data-stores")
    environments = sidecars()
    with ExitStack() as stack:
        url = stack.enter_context(release_postgres(postgres_programs))
        port = stack.enter_context(services.valkey(folder, valkey, PASSWORD))
        client = stack.enter_context(redis.Redis(port=port, password=PASSWORD))
        for stream, group in (("events", "event-persister"), ("prefect-server:stream", "docket")):
            client.xadd(stream, {"data": "{}"})
            client.xgroup_create(stream, group, id="0")
        beside_valkey = environments["valkey"]
        beside_valkey["REDIS_ADDR"] = beside_valkey["REDIS_ADDR"].replace("6379", str(port))
        targets = {
            "postgres": exporter(stack, folder, PROGRAMS[1], at(url, environments["postgres"])),
            "valkey": exporter(stack, folder, PROGRAMS[2], beside_valkey),
        }
        yield stack.enter_context(services.prometheus(folder, targets))
        log = (folder / f"{PROGRAMS[2]}.log").read_text()
        assert "level=error" not in log, log


@pytest.mark.parametrize(
    "panel",
    [
        pytest.param(panel, id=panel.title)
        for board in DASHBOARDS.values()
        for panel in board.panels
        if panel.source in {"postgres", "valkey"}
    ],
)
def test_a_panel_about_a_database_shows_something(
    panel: Panel, prometheus: services.Service
) -> None:
    for query in panel.queries:
        expression = chosen(query.expr, "1m", "1m", namespace="flows")
        until(lambda expression=expression: bool(services.ask(prometheus, expression)), True)


def test_scrapes_of_a_locked_table_give_their_connections_back(
    postgres_programs: Path, tmp_path: Path
) -> None:
    require(PROGRAMS[1])
    with ExitStack() as stack:
        url = stack.enter_context(release_postgres(postgres_programs))
        target = exporter(stack, tmp_path, PROGRAMS[1], at(url, sidecars()["postgres"]))
        metrics = f"http://127.0.0.1:{target.port}/metrics"
        locking = stack.enter_context(psycopg.connect(f"{url}/prefect"))
        watching = stack.enter_context(psycopg.connect(f"{url}/postgres", autocommit=True))

        def waiting() -> int:
            found = watching.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE usename = 'postgres' AND wait_event_type = 'Lock'"
            ).fetchone()
            return int(found[0]) if found else 0

        locking.execute("LOCK TABLE flow_run IN ACCESS EXCLUSIVE MODE")
        for _ in range(3):
            with suppress(httpx.TimeoutException):  # as a Prometheus that no longer waits
                httpx.get(metrics, timeout=0.5)
        assert waiting() == 3
        until(waiting, 0, seconds=30)

        # Within Prometheus's usual limit, what does not need the table is served.
        scraped = httpx.get(metrics, timeout=10).text
        assert "\npg_up 1\n" in scraped
        assert 'pg_database_size_bytes{datname="prefect"}' in scraped
