"""Alerts on a real server with a real worker: each preset by its real cause, one message each."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psutil
import pytest
import yaml
from tenacity import RetryError

from scripts import local_profile
from tests import forks, services, web
from tests.profiles import wait_until
from tests.server.runs import Api

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

UI = "https://prefect.example.org"
LOGS = "https://logs.example.org/?query=flow_run_id%3A{flow_run_id}"

FLOWS = """
import os, signal, time
from pathlib import Path
from prefect import flow
from prefect_hamilton.metrics import report_quality_breach

@flow(name="bad-end")
def bad_end(started: str = ""):
    raise ValueError("No rows in postgresql://loader:hunter2@db/flows.")

@flow(name="lost")
def lost(started: str = ""):
    Path(started).write_text(str(os.getpid()))
    time.sleep(600)

@flow(name="poor")
def poor(started: str = ""):
    report_quality_breach("7 of 10 rows are rejected.")

@flow(name="waits")
def waits(started: str = ""):
    pass

@flow(name="waits-a-little")
def waits_a_little(started: str = ""):
    pass
"""

Message = dict[str, str]


class Receiver:
    """Takes the messages of a channel, and refuses those of another one."""

    def __init__(self, server: web.WebServer) -> None:
        self._server = server
        self.messages: list[Message] = []
        self.url = server.url
        server.answers["/team"] = self._take
        server.answers["/broken"] = (500, {}, b"")

    def _take(self, body: bytes) -> web.Answer:
        self.messages.append(json.loads(body))
        return 200, {}, b""

    def wait_for(self, *subjects: str) -> None:
        """Return when there is a message with each of the subjects."""
        try:
            wait_until(lambda: set(subjects) <= set(self.subjects), 120)
        except RetryError:
            missing = set(subjects) - set(self.subjects)
            raise AssertionError(f"no message: {missing}; there are {self.subjects}") from None

    @property
    def subjects(self) -> list[str]:
        return sorted(message["subject"] for message in self.messages)

    def body(self, subject: str) -> str:
        """The body of the only message with the subject."""
        (body,) = (each["body"] for each in self.messages if each["subject"] == subject)
        return body

    @property
    def refused(self) -> int:
        """The number of requests that were refused."""
        return sum(path == "/broken" for path, _ in self._server.requests)


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
            "HOOK_URL": f"{receiver.url}/broken",
            "APPRISE_URL": f"json{receiver.url.removeprefix('http')}/broken",
        }

    def apply(self, alerts: object, release: str = "demo") -> dict[str, str]:
        """Apply alerts and a pool; the outcome of each object."""
        pool = {"name": "pool", "type": "process"}
        file = self.folder / "state.yaml"
        file.write_text(yaml.safe_dump({"work_pools": [pool], "alerts": alerts}))
        done = forks.run(
            "prefect_hamilton.bootstrap",
            *("apply", "--file", file, "--release", release),
            env=self.env,
        )
        assert done.returncode == 0, done.stderr
        assert self.receiver.url not in done.stdout + done.stderr
        *lines, _ = done.stdout.splitlines()  # the last one has the counts
        return {line[39:].split(" (")[0]: line[2:11].strip() for line in lines}

    def test(self, *options: str) -> "subprocess.CompletedProcess[str]":
        """`alerts test`."""
        return forks.run("prefect_hamilton.bootstrap", "alerts", "test", *options, env=self.env)

    def run(self, function: str, pool: str = "pool") -> UUID:
        """A run of the deployment that is named like the flow; without a pool, for later."""
        name = function.replace("_", "-")
        step = "prefect.deployments.steps.set_working_directory"
        deployment = self.api.post(
            "/deployments/",
            name=name,
            flow_id=self.api.post("/flows/", name=name)["id"],
            work_pool_name=pool or None,
            entrypoint=f"probes.py:{function}",
            pull_steps=[{step: {"directory": str(self.folder)}}],
            enforce_parameter_schema=False,
        )["id"]
        parameters = {"started": str(self.folder / name)}
        path = f"/deployments/{deployment}/create_flow_run"
        due = datetime.now(UTC) + timedelta(hours=0 if pool else 1)
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
        return UUID(self.api.post(path, parameters=parameters, state=state)["id"])

    def set_state(self, run: UUID, state: str, **more: str) -> None:
        """Give a run a state of this type."""
        wanted = {"type": state, "message": "No.", **more}
        self.api.post(f"/flow_runs/{run}/set_state", state=wanted)

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
        """The events with this name, the newest first."""
        query = {"event": {"name": [name]}}
        return list(self.api.post("/events/filter", filter=query, limit=50)["events"])

    def send(self, event: dict[str, Any]) -> None:
        """Send an event as clients of Prefect do."""
        content = {"id": str(uuid4()), **event}
        httpx.post(f"{self.server.url}/api/events", json=[content]).raise_for_status()

    def look_again(self, automation: str) -> None:
        """Let the server look now whether events are absent, not `seconds` after the last time."""
        query = {"name": {"any_": [automation]}}
        (found,) = self.api.post("/automations/filter", automations=query)
        self.api.patch(f"/automations/{found['id']}", enabled=True)

    def automations(self) -> set[str]:
        return {each["name"] for each in self.api.post("/automations/filter")}

    def name(self, run: UUID) -> str:
        return str(self.api.get(f"/flow_runs/{run}")["name"])


TEAM = {"type": "webhook", "secrets": {"url": {"from_env": "TEAM_URL"}}}
HOOK = {"type": "webhook", "secrets": {"url": {"from_env": "HOOK_URL"}}}
APPRISE = {"type": "apprise", "secrets": {"url": {"from_env": "APPRISE_URL"}}}
PRESETS: dict[str, dict[str, Any]] = {
    "failed": {"interval": 0},
    # Of these runs only: a process of a busy machine, too, may start after 20 seconds.
    "late": {"seconds": 20, "deployments": ["waits*"]},
    "pending": {"seconds": 10, "tags": ["without-process"]},
    "pool": {"seconds": 10, "pools": ["lonely"]},
    "zombie": {"enabled": True, "seconds": 90},
    "quality": {"interval": 0},
}
ALERTS = {"channels": {"team": TEAM}, "presets": PRESETS, "logs_url": LOGS}

TEST = "Test of the alerts"


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
            PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS="2",
        ) as server,
    ):
        found = Site(server, Receiver(receiver), folder)
        found.apply(ALERTS)
        try:
            yield found
        finally:
            found.stop_worker()


def without_process(site: Site, flow: str, *states: str) -> UUID:
    """A run that goes through these states, which are types, and has no process."""
    flow_id = site.api.post("/flows/", name=flow)["id"]
    run = UUID(site.api.post("/flow_runs/", flow_id=flow_id, tags=["without-process"])["id"])
    for state in states:
        site.set_state(run, state)
    return run


def send_old_heartbeat(site: Site, run: UUID) -> None:
    """Send for the run what a flow run with a process has sent, as if 85 seconds ago."""
    wait_until(lambda: len(site.events("prefect.flow-run.heartbeat")) > 0, 120)
    sent = site.events("prefect.flow-run.heartbeat")[0]
    known = site.api.get(f"/flow_runs/{run}")
    ids = {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.name": known["name"]}
    flow = {
        "prefect.resource.id": f"prefect.flow.{known['flow_id']}",
        "prefect.resource.role": "flow",
    }
    site.send(
        {
            "event": sent["event"],
            "occurred": (datetime.now(UTC) - timedelta(seconds=85)).isoformat(),
            "resource": sent["resource"] | ids,
            "related": [flow],
        }
    )


def test_each_preset_sends_one_message_for_its_cause(site: Site) -> None:
    site.api.post("/work_pools/", name="lonely", type="process")
    # The only heartbeat of a worker, which is offline after 3 seconds.
    site.api.post("/work_pools/lonely/workers/heartbeat", name="gone", heartbeat_interval_seconds=1)
    pending = without_process(site, "stuck", "PENDING")
    without_process(site, "begins", "PENDING", "RUNNING")
    before = site.run("waits", pool="lonely")
    site.set_state(before, "RUNNING")
    late = [site.run("waits", pool="lonely") for _ in range(2)]
    passed = site.run("waits_a_little", pool="lonely")
    site.start_worker()
    failed, poor, crashed = site.run("bad_end"), site.run("poor"), site.run("lost")
    for run in (passed, *late):
        wait_until(lambda run=run: site.api.state(run)["name"] == "Late", 120)
    site.set_state(passed, "PENDING")
    # The end of another run is no start.
    site.set_state(before, "COMPLETED")
    slow = without_process(site, "slow", "RUNNING")
    site.set_state(slow, "FAILED", name="TimedOut")

    started = site.folder / "lost"
    wait_until(lambda: started.exists() and started.read_text() != "", 120)
    zombie = without_process(site, "silent", "RUNNING")
    send_old_heartbeat(site, zombie)
    ended = without_process(site, "ends", "RUNNING", "COMPLETED")
    send_old_heartbeat(site, ended)
    suspended = without_process(site, "suspends", "RUNNING")
    site.set_state(suspended, "PAUSED", name="Suspended")
    send_old_heartbeat(site, suspended)
    psutil.Process(int(started.read_text())).send_signal(signal.SIGKILL)

    flows = {
        "bad-end failed": (failed, "ValueError: No rows in postgresql://***@db/flows."),
        "lost crashed": (crashed, "SIGKILL"),
        "slow timedout": (slow, "No."),
        "waits is late": (late[0], "for 20 seconds no run of its deployment has started"),
        "stuck does not start": (pending, "has been Pending for 10 seconds"),
        "poor: the quality of data is too low": (poor, "7 of 10 rows are rejected."),
        "silent sends no heartbeat": (zombie, "no heartbeat for 90 seconds"),
    }
    pool = "The work pool lonely has no worker"
    wait_until(lambda: is_found_silent(site), 120)
    site.receiver.wait_for(*flows, pool)
    assert site.test().returncode == 0  # a later message than all others
    assert site.receiver.subjects == sorted([*flows, pool, TEST])
    for subject, (run, cause) in flows.items():
        body = site.receiver.body(subject)
        assert cause in body
        if subject != "waits is late":  # either of two
            assert site.name(run) in body
            assert body.endswith(link_to(run))
    assert any(body_of_late(site, run) for run in late)
    assert "has been online for 10 seconds" in site.receiver.body(pool)
    assert site.receiver.body(pool).endswith(f"{UI}/work-pools/work-pool/lonely")


def is_found_silent(site: Site) -> bool:
    site.look_again("alert-zombie")
    try:
        wait_until(lambda: "silent sends no heartbeat" in site.receiver.subjects, 10)
    except RetryError:
        return False
    return True


def link_to(run: UUID) -> str:
    """What leads from a message to the flow run, and to its log lines."""
    return f"{UI}/runs/flow-run/{run}\nLog: {LOGS.replace('{flow_run_id}', str(run))}"


def body_of_late(site: Site, run: UUID) -> bool:
    body = site.receiver.body("waits is late")
    return site.name(run) in body and body.endswith(link_to(run))


def wait_until_late(site: Site, run: UUID) -> None:
    wait_until(lambda: site.api.state(run)["name"] == "Late", 120)


def test_a_run_that_is_late_or_pending_soon_after_another_began_is_reported(site: Site) -> None:
    site.receiver.messages.clear()
    site.api.post("/work_pools/", name="unattended", type="process")
    late = {}
    for flow in ("waits_again", "waits_in_time"):
        begun = site.run(flow, pool="unattended")
        wait_until_late(site, begun)
        site.set_state(begun, "PENDING")
        # The time in which a run had to begin is not over, and one has begun.
        late[flow] = site.run(flow, pool="unattended")
    for run in late.values():
        wait_until_late(site, run)
    site.set_state(late["waits_in_time"], "PENDING")
    again = ("PENDING", "SCHEDULED", "PENDING")
    pending = without_process(site, "stuck-again", *again)
    without_process(site, "begins-again", *again, "RUNNING")

    flows = {
        "waits-again is late": late["waits_again"],
        "stuck-again does not start": pending,
    }
    site.receiver.wait_for(*flows)
    assert site.test().returncode == 0  # a later message than all others
    assert site.receiver.subjects == sorted([*flows, TEST])
    for subject, run in flows.items():
        assert site.name(run) in site.receiver.body(subject)


def test_a_message_names_the_run_that_was_late_and_not_one_that_begins_at_last(
    site: Site,
) -> None:
    site.receiver.messages.clear()
    late, begins = site.run("waits_long", pool=""), site.run("waits_long", pool="")
    known = site.api.get(f"/flow_runs/{late}")
    named = {"prefect.resource.name": known["name"]}
    related = {
        role: {
            "prefect.resource.id": f"prefect.{role}.{known[f'{role}_id']}",
            "prefect.resource.role": role,
            "prefect.resource.name": "waits-long",
        }
        for role in ("flow", "deployment")
    }
    site.send(
        {
            "event": "prefect.flow-run.Late",
            # The 20 seconds are over.
            "occurred": (datetime.now(UTC) - timedelta(seconds=25)).isoformat(),
            "resource": {"prefect.resource.id": f"prefect.flow-run.{late}"} | named,
            "related": list(related.values()),
        }
    )
    site.set_state(begins, "PENDING")
    site.receiver.wait_for("waits-long is late")
    body = site.receiver.body("waits-long is late")
    assert site.name(late) in body
    assert site.name(begins) not in body


def test_a_flow_sends_one_message_in_the_interval(site: Site) -> None:
    site.apply(ALERTS | {"presets": PRESETS | {"failed": {"interval": 3600}}})
    site.receiver.messages.clear()
    first, other = f"flow-{uuid4()}", f"flow-{uuid4()}"
    for flow in (first, first, first, other):
        without_process(site, flow, "FAILED")
    assert site.test().returncode == 0  # a later message than all others
    assert site.receiver.subjects == sorted([f"{first} failed", f"{other} failed", TEST])


def test_a_receiver_that_refuses_is_visible_and_touches_no_run(site: Site) -> None:
    site.apply({"channels": {"team": TEAM, "hook": HOOK, "mail": APPRISE}, "presets": PRESETS})
    site.receiver.messages.clear()
    done = site.test()
    assert done.returncode == 1
    hook, mail, arrived = done.stdout.splitlines()
    assert arrived == "arrived  team"
    assert hook == "FAILED   hook: The receiver answered 500"
    assert mail.startswith("FAILED   mail: Notification failed: ")
    assert "error=500" in mail
    address = site.receiver.url.removeprefix("http://")
    assert address not in done.stdout + done.stderr
    assert site.receiver.subjects == [TEST]
    assert site.receiver.refused == 2

    site.apply({"channels": {"team": TEAM, "hook": HOOK}, "presets": PRESETS})
    site.receiver.messages.clear()
    before = len(site.events("prefect.automation.action.failed"))
    flow = f"flow-{uuid4()}"
    run = without_process(site, flow, "FAILED")
    site.receiver.wait_for(f"{flow} failed")
    assert site.test().returncode == 1  # a later message than all others
    failures = site.events("prefect.automation.action.failed")
    assert len(failures) == before + 2
    assert {failure["payload"]["reason"] for failure in failures[:2]} == {
        "The receiver answered 500"
    }
    assert site.receiver.refused == 4
    assert site.api.states(run)[-1:] == ["FAILED"]
    assert "The receiver answered 500" in site.server.log.read_text()
    assert address not in site.server.log.read_text()


def test_each_release_of_a_server_tests_its_own_channels(site: Site) -> None:
    site.apply(ALERTS)
    off = {name: {"enabled": False} for name in PRESETS}
    site.apply({"channels": {"hook": HOOK}, "presets": off}, release="other")
    site.receiver.messages.clear()
    refused = site.receiver.refused
    assert site.test("--release", "demo").stdout == "arrived  team\n"
    done = site.test("--release", "other")  # a later message than all others
    assert done.stdout == "FAILED   hook: The receiver answered 500\n"
    assert site.receiver.subjects == [TEST]
    assert site.receiver.refused == refused + 1

    unnamed = site.test()
    assert unnamed.returncode == 1
    assert "Several releases have alerts" in unnamed.stderr
    assert "name one with --release: demo, other." in unnamed.stderr
    unknown = site.test("--release", "another")
    assert unknown.returncode == 1
    assert "The release another has no alerts" in unknown.stderr

    assert site.apply({}, release="other")["alert-test"] == "removed"
    assert site.test().stdout == "arrived  team\n"


def test_applying_twice_changes_nothing_and_what_is_off_is_removed(site: Site) -> None:
    channels = {"team": TEAM, "hook": HOOK}
    site.apply({"channels": channels, "presets": PRESETS})
    again = site.apply({"channels": channels, "presets": PRESETS})
    names = {"alert-test", *(f"alert-{preset}" for preset in PRESETS)}
    assert again.keys() >= names | {"alert-team", "alert-hook"}
    assert set(again.values()) == {"unchanged"}
    assert site.automations() == names

    absent = {"type": "slack", "secrets": {"url": {"from_env": "URL_THAT_IS_NOT_SET"}}}
    with_absent = site.apply({"channels": channels | {"absent": absent}, "presets": PRESETS})
    assert {name: with_absent[name] for name in names} == dict.fromkeys(names, "unchanged")
    assert with_absent["alert-absent"] == "left out"

    off = PRESETS | {"late": {"enabled": False}}
    assert site.apply({"channels": channels, "presets": off})["alert-late"] == "removed"
    assert site.automations() == names - {"alert-late"}

    fewer = site.apply(ALERTS)
    assert fewer["alert-hook"] == "removed"
    assert site.test().stdout == "arrived  team\n"

    none = site.apply({})
    assert none["alert-team"] == none["alert-failed"] == none["alert-test"] == "removed"
    assert site.automations() == set()
    done = site.test()
    assert done.returncode == 1
    assert "The server has no alerts" in done.stderr
