"""The process worker forks flow runs; each is as if Prefect's own worker had started it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import psutil
import pytest

from prefect_hamilton.worker import late
from scripts import local_profile
from tests import services
from tests.profiles import wait_until
from tests.server.runs import Api
from tests.server.tcp_proxy import proxy

pytestmark = pytest.mark.services

FLOW = """
import atexit, json, logging, multiprocessing, os, time
from pathlib import Path
from prefect import flow

@flow
def probe(notes: str, seconds: float = 0):
    found = {
        "value": VALUE,
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "variable": os.environ.get("PROBE"),
        "folder": os.getcwd(),
        "starts": multiprocessing.get_start_method(),
    }
    logging.getLogger("of_a_library").warning("A line of a library.")
    Path(notes).write_text(json.dumps(found))
    atexit.register(Path(f"{notes}-end").touch)
    time.sleep(seconds)

VALUE = 1
"""

SLOW_TO_BEGIN = """
import os, time
from pathlib import Path
from prefect import flow
from prefect.runtime import flow_run

def slow_name():
    Path(flow_run.parameters["notes"]).write_text(str(os.getpid()))
    time.sleep(300)

@flow(flow_run_name=slow_name)
def probe(notes: str, seconds: float = 0):
    pass
"""
"""Its name is asked for just before the flow run becomes Running."""


class Pool:
    """A process pool with a worker, and a deployment of a flow in a folder."""

    worker: "subprocess.Popen[bytes]"

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.api = api = Api(url)
        self.state = folder
        self.code = folder / "probe.py"
        self.code.write_text(FLOW)
        self._notes = folder / "notes"
        api.post("/work_pools/", name="pool", type="process")
        steps = [{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}]
        self._deployment = api.post(
            "/deployments/",
            name="probe",
            flow_id=api.post("/flows/", name="probe")["id"],
            work_pool_name="pool",
            entrypoint="probe.py:probe",
            pull_steps=steps,
            enforce_parameter_schema=False,
        )["id"]

    def start_worker(self) -> None:
        command = ["-m", "prefect_hamilton.worker", "start", "--type", "process", "--pool", "pool"]
        env = {
            late.VARIABLE: "600",
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_HOME": str(self.state / "home"),
            local_profile.MARKER: str(self.state),
        }
        with (self.state / "log").open("ab") as log:
            # SIGINT is ignored, as in a script's background job.
            self.worker = subprocess.Popen(
                ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, *command],
                env=os.environ | env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, seconds: float = 0, **job_variables: Any) -> UUID:
        """A flow run that lasts some seconds."""
        self._notes.unlink(missing_ok=True)
        run = self.api.post(
            f"/deployments/{self._deployment}/create_flow_run",
            parameters={"notes": str(self._notes), "seconds": seconds},
            job_variables=job_variables,
        )
        return UUID(run["id"])

    def late_run_of_a_schedule(self, seconds: int) -> UUID:
        """A flow run of a schedule that is late by this number of seconds."""
        due = datetime.now(UTC) - timedelta(seconds=seconds)
        times = {name: due.isoformat() for name in ("start_time", "end_time")}
        schedule = {"interval": 86400, "anchor_date": due.isoformat()}
        parameters = {"notes": str(self._notes)}
        path = f"/deployments/{self._deployment}"
        self.api.patch(path, schedules=[{"schedule": schedule, "parameters": parameters}])
        self.api.post(f"{path}/schedule", **times, min_runs=1, max_runs=1)
        mine = {"id": {"any_": [self._deployment]}}
        found = self.api.post("/flow_runs/filter", deployments=mine)
        (run,) = [run for run in found if run["auto_scheduled"] and due_at(run) == due]
        return UUID(run["id"])

    def notes(self) -> Any:
        """What the flow has noted, as soon as it has."""
        wait_until(lambda: self._notes.exists() and self._notes.read_text() != "")
        return json.loads(self._notes.read_text())

    def end(self, run: UUID) -> str:
        """The type of the final state of the flow run."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_until(lambda: self.api.state(run)["type"] in final)
        return str(self.api.state(run)["type"])

    def log(self) -> str:
        """What worker and flow runs have written."""
        return (self.state / "log").read_text()

    def has_run_exit_handlers(self) -> bool:
        return self._notes.with_name("notes-end").exists()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    folder = tmp_path_factory.mktemp("process-worker")
    with services.prefect_server(folder / "server", program=services.OWN_SERVER) as server:
        found = Pool(server.url, folder)
        found.start_worker()
        try:
            yield found
        finally:
            found.worker.terminate()
            found.worker.wait(timeout=60)


def due_at(run: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(run["expected_start_time"])


def is_forked(process: int) -> bool:
    return local_profile.FORKED in " ".join(psutil.Process(process).cmdline())


def test_a_flow_run_is_forked_with_its_folder_and_variables(pool: Pool) -> None:
    run = pool.run(seconds=2, env={"PROBE": "given"})
    found = pool.notes()
    assert is_forked(found["pid"])
    # So that what it starts can be ended with it.
    assert found["group"] == found["pid"]
    assert found["variable"] == "given"
    assert found["folder"] == str(pool.code.parent)
    assert found["starts"] == multiprocessing.get_start_method()
    assert pool.end(run) == "COMPLETED"
    wait_until(pool.has_run_exit_handlers)


def test_the_next_run_has_an_edited_flow(pool: Pool) -> None:
    # Of different lengths: Python takes a file of the same second and size for the one it compiled.
    for value in (2, 33):
        pool.code.write_text(FLOW.replace("VALUE = 1", f"VALUE = {value}"))
        assert pool.end(pool.run()) == "COMPLETED"
        assert pool.notes()["value"] == value


def test_a_variable_of_the_interpreter_needs_a_new_one(pool: Pool) -> None:
    run = pool.run(seconds=2, env={"PYTHONHASHSEED": "7"})
    assert not is_forked(pool.notes()["pid"])
    assert pool.end(run) == "COMPLETED"


def test_loggers_of_libraries_are_sent_to_the_api(pool: Pool) -> None:
    run = pool.run(seconds=2, env={"PREFECT_LOGGING_EXTRA_LOGGERS": "of_a_library"})
    assert is_forked(pool.notes()["pid"])
    assert pool.end(run) == "COMPLETED"
    lines = pool.api.post("/logs/filter", logs={"flow_run_id": {"any_": [str(run)]}})
    assert "A line of a library." in [line["message"] for line in lines]


def test_a_folder_of_the_user_is_not_cleared(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert pool.end(pool.run(working_dir=str(tmp_path))) == "COMPLETED"
    assert (tmp_path / "file").exists()


def test_a_run_of_a_schedule_that_is_too_late_is_skipped(pool: Pool) -> None:
    assert pool.end(too_late := pool.late_run_of_a_schedule(700)) == "CANCELLED"
    assert pool.api.state(too_late)["name"] == "Skipped"
    assert "more than 600 s late" in pool.api.state(too_late)["message"]
    assert pool.end(pool.late_run_of_a_schedule(300)) == "COMPLETED"


def test_a_run_whose_process_starts_while_the_server_is_away_waits_for_it(pool: Pool) -> None:
    port = urlsplit(pool.url).port
    assert port is not None
    with proxy(port) as between:
        between.refuse()
        run = pool.run(env={"PREFECT_API_URL": f"http://127.0.0.1:{between.port}/api"})
        wait_until(lambda: "The Prefect API does not answer" in pool.log())
        between.listen()
        assert pool.end(run) == "COMPLETED"


def test_a_cancelled_run_ends(pool: Pool) -> None:
    run = pool.run(seconds=300)
    process = pool.notes()["pid"]
    # Such a run is not started again when its worker is.
    assert str(run) in local_profile.executed_flow_runs(pool.state)
    pool.api.propose(run, "CANCELLING")
    assert pool.end(run) == "CANCELLED"
    wait_until(lambda: not psutil.pid_exists(process))


def test_a_killed_run_is_crashed(pool: Pool) -> None:
    run = pool.run(seconds=300)
    psutil.Process(pool.notes()["pid"]).kill()
    assert pool.end(run) == "CRASHED"
    assert "status code -9" in str(pool.api.state(run)["message"]).replace(":", "")


def test_the_end_of_an_execution_that_was_given_up_does_not_count(pool: Pool) -> None:
    """A worker that was killed may have left a process that does not end."""
    seconds = 5
    run = pool.run(seconds=seconds)
    first = pool.notes()["pid"]
    assert pool.api.propose(run, "SCHEDULED", name="AwaitingRetry") == "ACCEPT"
    assert pool.end(run) == "COMPLETED"
    assert pool.notes()["pid"] != first
    found = pool.api.get(f"/flow_runs/{run}")
    states = pool.api.all_states(run)
    began = max(time_of(state) for state in states if state["type"] == "RUNNING")
    assert found["run_count"] == 2
    assert time_of(found["state"]) - began >= timedelta(seconds=seconds)


def time_of(state: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(state["timestamp"])


def test_a_run_that_has_not_begun_is_still_pending_when_its_worker_was_killed(pool: Pool) -> None:
    """Its flow has done nothing: the profile starts it again."""
    pool.code.write_text(SLOW_TO_BEGIN)
    run = pool.run()
    process = pool.notes()
    pool.worker.kill()
    pool.worker.wait(timeout=60)
    wait_until(lambda: not psutil.pid_exists(process))
    assert pool.api.state(run)["type"] == "PENDING"

    pool.code.write_text(FLOW)
    pool.start_worker()


def test_flow_runs_end_with_the_process_group_of_their_worker(pool: Pool) -> None:
    """The last test: it ends the worker. So does honcho, when another program has ended."""
    run = pool.run(seconds=300)
    process = pool.notes()["pid"]
    os.killpg(pool.worker.pid, signal.SIGTERM)
    pool.worker.wait(timeout=60)
    assert pool.end(run) == "CRASHED"
    wait_until(lambda: not psutil.pid_exists(process))
