"""Alerts on a real server with a real worker: each preset by its real cause, one message each."""

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
import yaml

from scripts import local_profile
from tests import forks, services, web
from tests.profiles import wait_until
from tests.server.runs import Api

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

UI = "https://prefect.example.org"

FLOWS = """
import os, signal, time
from pathlib import Path
from prefect import flow
from prefect_hamilton.metrics import report_quality_breach

@flow(name="bad-end")
def bad_end(started: str = ""):
    raise ValueError("No rows.")

@flow(name="lost")
def lost(started: str = ""):
    Path(started).write_text(str(os.getpid()))
    time.sleep(600)

@flow(name="poor")
def poor(started: str = ""):
    report_quality_breach("7 of 10 rows are rejected.")

@flow(name="fine")
def fine(started: str = ""):
    pass
"""

Message = dict[str, str]


class Receiver:
    """Takes the messages of a channel by their flow run or subject."""

    def __init__(self, server: web.WebServer) -> None:
        self.messages: queue.Queue[Message] = queue.Queue()
        self.url = server.url
        server.answers["/team"] = self._take
        server.answers["/broken"] = (500, {}, b"")

    def _take(self, body: bytes) -> web.Answer:
        self.messages.put(yaml.safe_load(body))
        return 200, {}, b""

    def next(self) -> Message:
        return self.messages.get(timeout=120)

    def is_empty(self) -> bool:
        return self.messages.empty()


class Site:
    """A server with alerts, whose messages go to a receiver, and a process pool."""

    worker: "subprocess.Popen[bytes] | None" = None

    def __init__(self, server: services.Service, receiver: Receiver, folder: Path) -> None:
        self.api, self.receiver, self.folder = Api(server.url), receiver, folder
        self.server = server
        (folder / "probes.py").write_text(FLOWS)
        self.env = os.environ | {
            "PREFECT_API_URL": f"{server.url}/api",
            "PREFECT_HOME": str(folder / "home"),
            local_profile.MARKER: str(folder),
            "TEAM_URL": f"{receiver.url}/team",
            "BROKEN_URL": f"json{receiver.url.removeprefix('http')}/broken",
        }

    def apply(self, alerts: object) -> dict[str, str]:
        """Apply alerts and a pool; the outcome of each object."""
        pool = {"name": "pool", "type": "process"}
        file = self.folder / "state.yaml"
        file.write_text(yaml.safe_dump({"work_pools": [pool], "alerts": alerts}))
        done = forks.run(
            "prefect_hamilton.bootstrap",
            *("apply", "--file", file, "--release", "demo"),
            env=self.env,
        )
        assert done.returncode == 0, done.stderr
        assert self.receiver.url not in done.stdout + done.stderr
        return {line[39:].split(" (")[0]: line[2:11].strip() for line in done.stdout.splitlines()}

    def test(self) -> "subprocess.CompletedProcess[str]":
        """`alerts test`."""
        return forks.run("prefect_hamilton.bootstrap", "alerts", "test", env=self.env)

    def run(self, function: str, **settings: Any) -> UUID:
        """A run of a flow of its own deployment."""
        name = function.replace("_", "-")
        step = "prefect.deployments.steps.set_working_directory"
        deployment = self.api.post(
            "/deployments/",
            name=name,
            flow_id=self.api.post("/flows/", name=name)["id"],
            work_pool_name="pool",
            entrypoint=f"probes.py:{function}",
            pull_steps=[{step: {"directory": str(self.folder)}}],
            enforce_parameter_schema=False,
        )["id"]
        body = {"parameters": {"started": str(self.folder / name)}, **settings}
        return UUID(self.api.post(f"/deployments/{deployment}/create_flow_run", **body)["id"])

    def start_worker(self) -> None:
        command = ["-m", "prefect_hamilton.worker", "start", "--type", "process", "--pool", "pool"]
        with (self.folder / "worker.log").open("ab") as log:
            self.worker = subprocess.Popen(
                [sys.executable, *command],
                env=self.env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop_worker(self) -> None:
        if self.worker is not None:
            self.worker.terminate()
            self.worker.wait(timeout=60)
            self.worker = None

    def events(self, name: str) -> list[Any]:
        query = {"event": {"name": [name]}}
        return list(self.api.post("/events/filter", filter=query, limit=50)["events"])

    def name(self, run: UUID) -> str:
        return str(self.api.get(f"/flow_runs/{run}")["name"])


def link(run: UUID) -> str:
    return f"{UI}/runs/flow-run/{run}"


TEAM = {"type": "webhook", "secrets": {"url": {"from_env": "TEAM_URL"}}}
BROKEN = {"type": "apprise", "secrets": {"url": {"from_env": "BROKEN_URL"}}}
PRESETS = {
    "failed": {"interval": 0},
    "late": {"seconds": 10},
    "pending": {"seconds": 10},
    "pool": {"seconds": 10},
    "zombie": {"enabled": True, "seconds": 90},
    "quality": {"interval": 0},
}
ALERTS = {"channels": {"team": TEAM}, "presets": PRESETS}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("alerts")
    with (
        web.serve() as receiver,
        services.prefect_server(
            folder / "server",
            program=services.OWN_SERVER,
            background_services=True,
            PREFECT_UI_URL=UI,
            PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS="1",
            PREFECT_SERVER_SERVICES_FOREMAN_FALLBACK_HEARTBEAT_INTERVAL_SECONDS="5",
        ) as server,
    ):
        found = Site(server, Receiver(receiver), folder)
        found.apply(ALERTS)
        try:
            yield found
        finally:
            found.stop_worker()


def test_each_preset_sends_one_message_for_its_cause(site: Site) -> None:
    # No worker takes it up.
    late = site.run("fine")
    message = site.receiver.next()
    assert message["subject"] == "fine is late"
    assert site.name(late) in message["body"]
    assert link(late) in message["body"]

    # A run that stays Pending: nothing takes it up.
    pending = site.run("fine")
    site.api.post(f"/flow_runs/{pending}/set_state", state={"type": "PENDING"})
    site.api.post(
        f"/flow_runs/{pending}/set_state",
        state={"type": "PENDING", "name": "InfrastructurePending"},
        force=True,
    )
    message = site.receiver.next()
    assert message["subject"] == "fine does not start"
    assert "has been Pending for 10 seconds" in message["body"]
    assert link(pending) in message["body"]
    site.api.post(f"/flow_runs/{pending}/set_state", state={"type": "CANCELLED"}, force=True)

    site.start_worker()
    failed = site.run("bad_end")
    message = site.receiver.next()
    assert message["subject"] == "bad-end failed"
    assert site.name(failed) in message["body"]
    assert "ValueError: No rows." in message["body"]
    assert link(failed) in message["body"]

    poor = site.run("poor")
    message = site.receiver.next()
    assert message["subject"] == "poor: the quality of data is too low"
    assert "7 of 10 rows are rejected." in message["body"]
    assert link(poor) in message["body"]

    crashed = site.run("lost")
    started = site.folder / "lost"
    wait_until(lambda: started.exists() and started.read_text() != "")
    psutil.Process(int(started.read_text())).send_signal(signal.SIGKILL)
    message = site.receiver.next()
    assert message["subject"] == "lost crashed"
    assert site.name(crashed) in message["body"]
    assert link(crashed) in message["body"]
    started.unlink()

    assert site.receiver.is_empty()


def emit_failure(site: Site, flow: str) -> UUID:
    """A run that fails without a process."""
    flow_id = site.api.post("/flows/", name=flow)["id"]
    run = UUID(site.api.post("/flow_runs/", flow_id=flow_id)["id"])
    site.api.post(f"/flow_runs/{run}/set_state", state={"type": "FAILED", "message": "No."})
    return run


def test_a_flow_sends_one_message_in_the_interval(site: Site) -> None:
    site.apply(ALERTS | {"presets": PRESETS | {"failed": {"interval": 3600}}})
    first, other = f"flow-{uuid4()}", f"flow-{uuid4()}"
    runs = [emit_failure(site, first) for _ in range(3)]
    emit_failure(site, other)
    messages = [site.receiver.next() for _ in range(2)]
    assert {message["subject"] for message in messages} == {f"{first} failed", f"{other} failed"}
    assert site.test().returncode == 0  # a later event than all those of the runs
    assert site.receiver.next()["subject"] == "Test of the alerts"
    assert site.receiver.is_empty()
    assert all(site.api.state(run)["type"] == "FAILED" for run in runs)


def test_a_receiver_that_refuses_is_visible_and_touches_no_run(site: Site) -> None:
    hook = TEAM | {"values": {"url": "{{url}}/refused"}}
    channels = {"team": TEAM, "hook": hook, "apprise": BROKEN}
    site.apply({"channels": channels, "presets": PRESETS})
    done = site.test()
    assert done.returncode == 1
    arrived, *failed = done.stdout.splitlines()
    assert arrived == "arrived  team"
    assert failed[0] == "FAILED   hook: The receiver answered 404"
    assert failed[1].startswith("FAILED   apprise: Notification failed: ")
    assert "error=500" in failed[1]
    assert site.receiver.url.removeprefix("http://") not in done.stdout + done.stderr
    assert site.receiver.next()["subject"] == "Test of the alerts"

    before = len(site.events("prefect.automation.action.failed"))
    run = emit_failure(site, f"flow-{uuid4()}")
    assert site.receiver.next()["subject"].endswith(" failed")
    wait_until(lambda: len(site.events("prefect.automation.action.failed")) == before + 2)
    assert site.api.states(run) == ["FAILED"]
    assert "The receiver answered 404" in site.server.log.read_text()
    assert f"{site.receiver.url}/team" not in site.server.log.read_text()


def test_a_run_without_heartbeats_sends_a_message(site: Site) -> None:
    """The process and its worker are killed at once, so that nothing reports a crash."""
    site.apply(ALERTS)
    if site.worker is None:
        site.start_worker()
    zombie = site.run("lost")
    started = site.folder / "lost"
    wait_until(lambda: started.exists() and started.read_text() != "")
    wait_until(lambda: len(site.events("prefect.flow-run.heartbeat")) > 0)
    assert site.worker is not None
    for process in (site.worker.pid, int(started.read_text())):
        psutil.Process(process).send_signal(signal.SIGKILL)
    site.worker.wait()
    site.worker = None
    messages = {message["subject"]: message for message in (site.receiver.next() for _ in range(2))}
    assert set(messages) == {"lost sends no heartbeat", "The work pool pool has no worker"}
    assert link(zombie) in messages["lost sends no heartbeat"]["body"]
    pool = messages["The work pool pool has no worker"]["body"]
    assert "No worker of the work pool pool has been online for 10 seconds" in pool
    assert f"{UI}/work-pools/work-pool/pool" in pool


def test_applying_twice_changes_nothing_and_what_is_off_is_removed(site: Site) -> None:
    first = site.apply(ALERTS)
    assert {name for name in first if name.startswith("alert-")} >= {
        f"alert-{name}" for name in ("team", "test", *PRESETS)
    }
    second = site.apply(ALERTS)
    assert set(second.values()) - {"trap:"} >= {"unchanged"}
    assert {outcome for name, outcome in second.items() if name.startswith("alert-")} == {
        "unchanged"
    }
    off = site.apply(ALERTS | {"presets": PRESETS | {"late": {"enabled": False}}})
    assert off["alert-late"] == "removed"
    none = site.apply({})
    assert none["alert-team"] == none["alert-failed"] == none["alert-test"] == "removed"
    done = site.test()
    assert done.returncode == 1
    assert "The server has no alerts" in done.stderr
