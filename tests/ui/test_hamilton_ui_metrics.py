"""Metrics of the Hamilton UI that the image runs, with two processes and a real PostgreSQL."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from charts.schema.dashboards import DASHBOARDS
from charts.schema.dashboards.model import Panel
from charts.schema.dashboards.promql import chosen
from prefect_hamilton.bootstrap.hamilton import ensure_project
from tests import exported, services
from tests.profiles import wait_until

pytestmark = pytest.mark.services

COUNT = "hamilton_ui_request_duration_seconds_count"
FILES = "hamilton-ui-metrics"
USER = "ada@example.org"
TEMPLATE = {
    "name": "dataflow",
    "template_type": "HAMILTON",
    "config": {},
    "dag_hash": "0" * 64,
    "tags": {},
    "nodes": [],
    "code_artifacts": [],
    "code_log": {"files": []},
    "code_hash": "0" * 64,
    "code_version_info_type": "git",
    "code_version_info": {},
    "code_version_info_schema": 1,
}


@dataclass
class Ui:
    """A Hamilton UI with metrics."""

    service: services.Service
    port: int
    folder: Path

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"

    @property
    def api(self) -> httpx.Client:
        headers = {"x-api-user": USER}
        return httpx.Client(base_url=f"{self.service.url}/api/v1", headers=headers, timeout=30)

    def text(self) -> str:
        return httpx.get(self.metrics_url, timeout=30).raise_for_status().text

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """Values of a metric by the values of its labels, in the order of their names."""
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
            if sample.name == name
        }

    def count(self, method: str, route: str, status: str) -> float:
        return self.samples(COUNT).get((method, route, status), 0)

    def counting(self) -> int:
        """Number of processes that have counted a request."""
        return len(list((self.folder / FILES).glob("histogram_*.db")))


@contextmanager
def serving(folder: Path, env: dict[str, str]) -> Iterator[Ui]:
    port = services.free_port()
    settings = env | {"WEB_CONCURRENCY": "2", "HAMILTON_UI_METRICS_PORT": str(port)}
    with services.image_hamilton_ui(folder, **settings) as service:
        yield Ui(service, port, folder)


@pytest.fixture(scope="module")
def database(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment that names a database with the schema of the Hamilton UI."""
    env = services.hamilton_database(postgres, tmp_path_factory.mktemp("blobs"))
    command = [sys.executable, "-m", "prefect_hamilton.hamilton_ui", "migrate"]
    subprocess.run(command, env=os.environ | env, check=True)
    return env


@pytest.fixture(scope="module")
def ui(
    postgres: str, database: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ui]:
    """A Hamilton UI with two runs that succeeded, one of them old, and one that runs."""
    with serving(tmp_path_factory.mktemp("ui"), database) as ui:
        project = ensure_project(ui.service.url, USER, "flows")
        with ui.api as api:
            templates = "/dag_templates"
            made = api.post(templates, params={"project_id": project}, json=TEMPLATE)
            template = made.raise_for_status().json()["id"]
            runs = [new_run(api, template) for _ in range(3)]
            for run in runs[:2]:
                ended = {"run_status": "SUCCESS", "run_end_time": datetime.now(UTC).isoformat()}
                api.put(f"/dag_runs/{run}/", json=ended).raise_for_status()
        with psycopg.connect(f"{postgres}/{database['DB_NAME']}", autocommit=True) as connection:
            connection.execute(
                "UPDATE trackingserver_run_tracking_dagrun SET created_at = %s WHERE id = %s",
                (datetime.now(UTC) - timedelta(days=80), runs[0]),
            )
        yield ui


def new_run(api: httpx.Client, template: int) -> int:
    run = {"run_status": "RUNNING", "tags": {}, "inputs": {}, "outputs": []}
    params = {"dag_template_id": template}
    made = api.post("/dag_runs", params=params, json=run).raise_for_status()
    return int(made.json()["id"])


def test_requests_of_all_processes_are_counted(ui: Ui) -> None:
    route = ("GET", "/api/v1/whoami", "2xx")
    before, sent = ui.count(*route), 0

    def get(_: int) -> None:
        httpx.get(f"{ui.service.url}/api/v1/whoami", headers={"x-api-user": USER}, timeout=30)

    def send() -> bool:
        nonlocal sent
        with ThreadPoolExecutor(8) as threads:
            sent += len(list(threads.map(get, range(16))))
        return ui.counting() >= 2

    wait_until(send)
    assert ui.count(*route) == before + sent


def test_what_an_ended_process_has_counted_stays(ui: Ui) -> None:
    def processes() -> list[psutil.Process]:
        return psutil.Process(ui.service.process.pid).children()

    route = ("POST", "/api/v1/dag_runs", "2xx")
    assert ui.count(*route) == 3
    ended = processes()
    for process in ended:
        process.kill()
    wait_until(lambda: len(set(processes()) - set(ended)) == 2)
    httpx.get(f"{ui.service.url}/api/ping", timeout=30).raise_for_status()
    assert ui.count(*route) == 3


def test_a_route_is_the_template_of_a_path(ui: Ui) -> None:
    assert ui.count("PUT", "/api/v1/dag_runs/<dag_run_id>/", "2xx") == 2
    page = ui.count("GET", "/.*", "2xx")
    invented = uuid4().hex
    httpx.get(f"{ui.service.url}/dashboard/{invented}").raise_for_status()
    httpx.request("PROPFIND", f"{ui.service.url}/{invented}")
    ui.api.post("/projects", json={"name": invented})
    assert ui.count("GET", "/.*", "2xx") == page + 1
    assert ui.count("POST", "/api/v1/projects", "4xx") == 1
    assert ui.count("other", "/.*", "4xx") == 1
    text = ui.text()
    assert invented not in text
    assert "PROPFIND" not in text
    assert not re.search(r'route="[^"]*/\d', text)


def test_stored_runs_are_counted_by_project_and_status(ui: Ui) -> None:
    assert ui.samples("hamilton_ui_database_up") == {(): 1}
    assert ui.samples("hamilton_ui_runs") == {("flows", "RUNNING"): 1, ("flows", "SUCCESS"): 2}
    oldest = ui.samples("hamilton_ui_oldest_run_timestamp_seconds")
    days = {
        status: (datetime.now(UTC) - datetime.fromtimestamp(at, UTC)).days
        for (_, status), at in oldest.items()
    }
    assert days == {"RUNNING": 0, "SUCCESS": 80}


def test_promtool_accepts_the_metrics(ui: Ui) -> None:
    exported.check(ui.text())


def test_metrics_have_a_port_of_their_own_on_every_address(ui: Ui) -> None:
    assert "hamilton_ui_" not in httpx.get(f"{ui.service.url}/metrics").text
    if socket.has_dualstack_ipv6():
        assert "hamilton_ui_" in httpx.get(f"http://[::1]:{ui.port}/metrics").text


def test_a_database_that_does_not_answer(database: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / FILES).mkdir()
    (tmp_path / FILES / "histogram_1.db").write_text("of a process before a restart")
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = str(silent.getsockname()[1])
        with serving(tmp_path, database | {"DB_PORT": port, "PGCONNECT_TIMEOUT": "2"}) as ui:
            # The probes that have waited for the start are not counted.
            assert ui.samples(COUNT) == {}
            assert ui.api.get("/projects").status_code == 500
            assert ui.count("GET", "/api/v1/projects", "5xx") == 1
            assert ui.samples("hamilton_ui_database_up") == {(): 0}
            assert "hamilton_ui_runs" not in ui.text()


def test_a_database_that_comes_back(
    postgres: str, database: dict[str, str], tmp_path: Path
) -> None:
    def allow(connections: bool) -> None:
        name = database["DB_NAME"]
        with psycopg.connect(f"{postgres}/postgres", autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {connections}")

    with serving(tmp_path, database) as ui:
        allow(False)
        try:
            assert ui.samples("hamilton_ui_database_up") == {(): 0}
        finally:
            allow(True)
        assert ui.samples("hamilton_ui_database_up") == {(): 1}


def test_without_a_port_nothing_is_measured(database: dict[str, str]) -> None:
    program = (
        "import sys; from server.wsgi import application;"
        "from prefect_hamilton.hamilton_ui import gunicorn_config;"
        "sys.exit('prometheus_client' in sys.modules or hasattr(gunicorn_config, 'when_ready'))"
    )
    subprocess.run([sys.executable, "-c", program], env=os.environ | database, check=True)


@pytest.fixture(scope="module")
def prometheus(ui: Ui, tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not on PATH: install Debian's package prometheus")
    targets = {"prefect-hamilton-ui-metrics": services.Target(ui.port)}
    with services.prometheus(tmp_path_factory.mktemp("prometheus"), targets) as service:
        yield service


@pytest.mark.parametrize(
    "panel",
    [
        pytest.param(panel, id=panel.title)
        for panel in DASHBOARDS["hamilton"].panels
        if panel.source == "hamilton-ui"
    ],
)
def test_a_panel_shows_what_its_legend_names(panel: Panel, prometheus: services.Service) -> None:
    for query in panel.queries:
        labels = set(re.findall(r"{{(\w+)}}", query.legend))
        expression = chosen(query.expr, "1m", "1h", namespace="flows")

        def shown(expression: str = expression, labels: set[str] = labels) -> bool:
            found: list[dict[str, Any]] = services.ask(prometheus, expression)
            return bool(found) and all(labels <= set(each["metric"]) for each in found)

        wait_until(shown)
