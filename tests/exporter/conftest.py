"""A real Prefect server that requires a password, and what tests do with it."""

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import tenacity
from prometheus_client.parser import text_string_to_metric_families

from tests import services

PASSWORD = "admin:secret"
OPTIONS = ("--refresh-seconds", "2", "--born-seconds", "2", "--settle-seconds", "8")

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Api:
    """The API of the server: flow runs without a process, whose states are set here."""

    def __init__(self, server: services.Service) -> None:
        self.server = server
        user, _, password = PASSWORD.partition(":")
        self._http = httpx.Client(
            base_url=f"{server.url}/api",
            auth=(user, password),
            timeout=30,
            transport=services.BusyTransport(),
        )

    @property
    def env(self) -> dict[str, str]:
        return {
            "PREFECT_API_URL": f"{self.server.url}/api",
            "PREFECT_API_AUTH_STRING": PASSWORD,
        }

    def post(self, path: str, **body: Any) -> Any:
        answer = self._http.post(path, json=body).raise_for_status()
        return answer.json() if answer.content else None

    def delete(self, path: str) -> None:
        self._http.delete(path).raise_for_status()

    def new_pool(self) -> str:
        name = f"pool-{uuid4().hex[:8]}"
        self.post("/work_pools/", name=name, type="process", concurrency_limit=7)
        return name

    def new_deployment(self, flow: str, pool: str, **settings: Any) -> str:
        """Create a deployment `main` of a flow; its id."""
        flow_id = self.post("/flows/", name=flow)["id"]
        body = {"name": "main", "flow_id": flow_id, "work_pool_name": pool, **settings}
        return str(self.post("/deployments/", **body)["id"])

    def new_run(self, deployment: str, *, due: timedelta = timedelta(0)) -> str:
        """Create a run, due so long ago; its id."""
        time_ = (datetime.now(UTC) - due).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": time_}}
        run = self.post(f"/deployments/{deployment}/create_flow_run", state=state)
        return str(run["id"])

    def set_states(self, run: str, *names: str) -> None:
        """Set states by name, as an engine does."""
        types = {
            "Late": "SCHEDULED",
            "InfrastructurePending": "PENDING",
            "Strange 42": "RUNNING",
        }
        for name in names:
            state = {"type": types.get(name, name.upper()), "name": name}
            self.post(f"/flow_runs/{run}/set_state", state=state, force=True)

    def run(self, deployment: str, end: str = "Completed", **settings: Any) -> str:
        run = self.new_run(deployment, **settings)
        self.set_states(run, "Pending", "Running", end)
        return run

    def new_automation(self, flow: str) -> str:
        """Create an automation that acts, without any effect, when a run of the flow fails.

        It has the name of the flow. Returns its id.
        """
        automation = self.post(
            "/automations/",
            name=flow,
            trigger={
                "type": "event",
                "posture": "Reactive",
                "expect": ["prefect.flow-run.Failed"],
                "match_related": {"prefect.resource.role": "flow", "prefect.resource.name": flow},
                "threshold": 1,
            },
            actions=[{"type": "do-nothing"}],
        )
        return str(automation["id"])

    def emit(
        self,
        name: str,
        flow: str,
        *,
        payload: Any = None,
        id_: UUID | None = None,
        age: timedelta = timedelta(0),
        **resource: str,
    ) -> None:
        """Send an event of a flow's deployment `main`."""
        resources = {"flow": flow, "deployment": "main"}
        event = {
            "id": str(id_ or uuid4()),
            "occurred": (datetime.now(UTC) - age).isoformat(),
            "event": name,
            "resource": {"prefect.resource.id": f"prefect.task-run.{uuid4()}", **resource},
            "related": [
                {
                    "prefect.resource.id": f"prefect.{role}.{uuid4()}",
                    "prefect.resource.role": role,
                    "prefect.resource.name": each,
                }
                for role, each in resources.items()
            ],
            "payload": payload or {},
        }
        self._http.post("/events", json=[event]).raise_for_status()


class Exporter:
    """What an exporter serves."""

    def __init__(self, service: services.Service) -> None:
        self.service = service
        self._http = httpx.Client(base_url=service.url, timeout=30)

    def text(self) -> str:
        return self._http.get("/metrics").text

    def samples(self) -> Samples:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }

    def sum(self, name: str, **labels: str) -> float | None:
        """Sum of all samples with these labels; None if there is none."""
        wanted = set(labels.items())
        found = [
            value for (each, its), value in self.samples().items() if each == name and wanted <= its
        ]
        return sum(found) if found else None


def until(ask: Callable[[], object], expected: object, seconds: float = 90) -> None:
    """Ask until the answer is as expected."""
    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(AssertionError),
        stop=tenacity.stop_after_delay(seconds),
        wait=tenacity.wait_fixed(0.5),
        reraise=True,
    ):
        with attempt:
            assert ask() == expected


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    home = tmp_path_factory.mktemp("server")
    settings = {
        "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
        "PREFECT_SERVER_METRICS_ENABLED": "true",
    }
    with services.prefect_server(
        home, program=services.OWN_SERVER, background_services=True, **settings
    ) as server:
        yield Api(server)


@pytest.fixture(scope="module")
def exporter(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """An exporter that has read the API once."""
    with services.exporter(tmp_path_factory.mktemp("exporter"), *OPTIONS, **api.env) as service:
        exporter = Exporter(service)
        until(lambda: exporter.sum("prefect_metrics_up"), 1.0)
        yield exporter


@pytest.fixture(scope="module")
def rules() -> Any:
    """The `spec` of a PrometheusRule that Prometheus evaluates; a module may have its own."""
    return None


@pytest.fixture(scope="module")
def worker_port() -> int | None:
    """Where Prometheus finds the metrics of a worker; a module may have one."""
    return None


@pytest.fixture(scope="module")
def prometheus(
    api: Api,
    exporter: Exporter,
    rules: Any,
    worker_port: int | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[services.Service]:
    """A Prometheus that scrapes the server, the exporter and, if there is one, a worker."""
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not on PATH: install Debian's package prometheus")
    folder: Path = tmp_path_factory.mktemp("prometheus")
    targets = {
        "prefect-hamilton-metrics": services.Target(exporter.service.port),
        "prefect-hamilton-server": services.Target(api.server.port, "/api/metrics", PASSWORD),
    }
    if worker_port:
        targets["prefect-hamilton-worker"] = services.Target(worker_port)
    with services.prometheus(folder, targets, rules=rules) as service:
        yield service
