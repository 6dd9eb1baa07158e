"""The local profile with real servers and a real worker, on free ports."""

import asyncio
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import psutil
import pytest
import yaml
from prefect.server.schemas.schedules import CronSchedule
from tenacity import RetryError
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as websocket
from websockets.typing import Origin, Subprotocol

from prefect_hamilton import warehouse
from prefect_hamilton.worker import late
from scripts import local, local_profile
from tests import first_start, services
from tests.deployments.git_server import git
from tests.profiles import LocalProfile, wait_until
from tests.server.runs import Api

# One profile for the module: these tests belong on one process, in this order.
pytestmark = [
    pytest.mark.services,
    pytest.mark.timeout(600),
]

ETL = "Enterprise Data Pipeline/production-etl"
WALKTHROUGH = "ui-walkthrough-retries/walkthrough"


def users_prefect_files() -> dict[Path, float]:
    return {path: path.stat().st_mtime for path in (Path.home() / ".prefect").rglob("*")}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project without what Git ignores: a person's prefect-state.local.yaml, too."""
    folder = tmp_path_factory.mktemp("project")
    listed = git("ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=services.ROOT)
    for name in listed.split("\0"):
        if (source := services.ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def profile(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalProfile]:
    profile = LocalProfile(tmp_path_factory.mktemp("state"), new=True, project=project)
    before = users_prefect_files()
    try:
        started = profile.up()
        assert started.returncode == 0, started.stdout + started.stderr
        assert "4 deployments in the work pool local-process-pool" in started.stdout
        profile.log_in()
        yield profile
    finally:
        profile.run("down")
    assert not local_profile.processes(profile.state)
    assert users_prefect_files() == before


def test_a_new_profile_has_the_desired_state(profile: LocalProfile) -> None:
    names = {
        path: {each["name"] for each in profile.api.post(f"/{path}/filter", json={}).json()}
        for path in ("deployments", "variables", "automations", "block_documents")
    }
    expected = {"production-etl", "absenteeism-local", "walkthrough", "on-failure"}
    assert expected <= names["deployments"]
    assert {"anomaly_z_threshold", "max_rejected_ratio"} <= names["variables"]
    assert "report-failed-runs" in names["automations"]
    assert {"warehouse-url", "flow-results"} <= names["block_documents"]


def test_everything_listens_on_the_loopback_address_only(profile: LocalProfile) -> None:
    listening = {
        connection.laddr.ip
        for process in local_profile.processes(profile.state)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


FOREIGN = [
    pytest.param({"Origin": "https://evil.example"}, id="origin"),
    pytest.param({"Host": "evil.example"}, id="host"),
    # A browser asks no permission first for a form, which has this type.
    pytest.param(
        {"Origin": "https://evil.example", "Content-Type": "text/plain"}, id="without-preflight"
    ),
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_another_site_or_host_runs_no_command(
    profile: LocalProfile, tmp_path: Path, headers: dict[str, str]
) -> None:
    deployment = profile.api.get(f"/deployments/name/{WALKTHROUGH}").json()
    path = f"/deployments/{deployment['id']}/create_flow_run"
    ran = tmp_path / "ran"
    order = json.dumps({"job_variables": {"command": f"touch {ran}"}})
    headers = {"Content-Type": "application/json"} | headers
    before = len(profile.runs(deployments={"id": {"any_": [deployment["id"]]}}))
    with httpx.Client(base_url=profile.api.base_url, timeout=60) as stranger:
        for auth in (None, ("prefect", "guessed")):
            answer = stranger.post(path, content=order, headers=headers, auth=auth)
            assert answer.status_code == 401
            assert "access-control-allow-origin" not in answer.headers
            secret = stranger.post(
                "/block_documents/filter",
                content='{"include_secrets": true}',
                headers=headers,
                auth=auth,
            )
            assert secret.status_code == 401
            assert "warehouse" not in secret.text
    assert len(profile.runs(deployments={"id": {"any_": [deployment["id"]]}})) == before
    assert not ran.exists()


def test_the_same_request_runs_with_the_password(profile: LocalProfile, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    order = {"command": f"touch {ran}"}
    profile.create(WALKTHROUGH, state={"type": "SCHEDULED"}, job_variables=order)
    wait_until(ran.exists)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("http://127.0.0.1:{}", True), ("http://localhost:{}", True), ("https://evil.example", False)],
)
def test_a_browser_lets_only_the_ui_read_responses(
    profile: LocalProfile, origin: str, allowed: bool
) -> None:
    origin = origin.format(profile.port)
    preflight = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    for answer in (
        profile.api.options("/flows/filter", headers=preflight),
        profile.api.post("/flows/filter", json={}, headers={"Origin": origin}),
    ):
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out"])
@pytest.mark.parametrize("token", [None, "prefect:guessed"])
def test_events_and_logs_require_the_password(
    profile: LocalProfile, path: str, token: str | None
) -> None:
    address = f"ws://127.0.0.1:{profile.port}/api/{path}"
    with (
        pytest.raises((InvalidStatus, ConnectionClosed)),
        websocket(
            address, origin=Origin("https://evil.example"), subprotocols=[Subprotocol("prefect")]
        ) as socket,
    ):
        socket.send(json.dumps({"type": "auth", "token": token}))
        socket.recv(timeout=30)
        socket.recv(timeout=30)


def test_the_password_is_in_one_private_file_and_no_command_line(
    profile: LocalProfile,
) -> None:
    file = profile.state / "prefect-auth-string"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    user, _, password = profile.auth_string.partition(":")
    assert user == "prefect"
    assert len(password) >= 32
    commands = [process.cmdline() for process in local_profile.processes(profile.state)]
    assert not any(password in word for command in commands for word in command)
    assert password not in (profile.state / "running.json").read_text()
    assert f"Password  {profile.auth_string} " in profile.run("login").stdout


def test_make_env_gives_a_terminal_the_password(profile: LocalProfile) -> None:
    done = profile.in_a_terminal(
        "prefect work-pool create a-pool --type process; "
        f"prefect deployment run '{ETL}' --watch --param batch_size=1000; "
        "python flows/data_pipeline.py"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert profile.api.get("/work_pools/a-pool").status_code == 200
    password = profile.auth_string.partition(":")[2]
    assert password not in done.stdout + done.stderr + profile.log.read_text()


def test_a_second_up_starts_nothing(profile: LocalProfile) -> None:
    # Flow runs of the tests before may end meanwhile: only services are compared.
    before = _services(profile.state)
    again = profile.up()
    assert again.returncode == 0
    assert "already running" in again.stdout
    assert _services(profile.state) == before


def _services(state: Path) -> set[int]:
    manager = local_profile.manager(state)
    assert manager
    services = {process.pid for process in manager.children()}
    assert services
    return {manager.pid} | services


def test_the_schedule_is_nine_in_chicago_also_across_a_change_of_the_clocks(
    profile: LocalProfile,
) -> None:
    deployment = profile.api.get(f"/deployments/name/{ETL}").json()
    wait_until(
        lambda: bool(
            profile.runs(
                deployments={"id": {"any_": [deployment["id"]]}},
                flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}},
            )
        )
    )
    # 8 March 2026 is the day on which the clocks change there.
    schedule = deployment["schedules"][0]["schedule"]
    cron = CronSchedule.model_validate(schedule)
    dates = asyncio.run(
        cron.get_dates(3, start=datetime(2026, 3, 7, tzinfo=ZoneInfo("America/Chicago")))
    )
    local = [date.astimezone(ZoneInfo("America/Chicago")) for date in dates]
    assert [(date.day, date.hour) for date in local] == [(7, 9), (8, 9), (9, 9)]
    assert [date.astimezone(ZoneInfo("UTC")).hour for date in dates] == [15, 14, 14]


def test_runs_with_default_overridden_and_json_parameters(profile: LocalProfile) -> None:
    runs = [
        profile.trigger(ETL, "default"),
        profile.trigger(
            ETL,
            "overridden",
            "--param",
            "batch_size=1000",
            "--param",
            "target_table=warehouse.staging.metrics",
        ),
        profile.trigger(
            ETL, "json", "--params", '{"batch_size": 200, "target_table": "warehouse.test.metrics"}'
        ),
    ]
    assert [profile.ended(run) for run in runs] == ["Completed"] * 3
    # The report of the first of them may hold the file still: connect waits for it.
    with warehouse.connect(f"duckdb:///{profile.state}/warehouse.duckdb") as opened:
        counts = {
            int(opened.read(f"SELECT count(*) AS rows FROM warehouse.{schema}.metrics")["rows"][0])  # noqa: S608  # names of this test
            for schema in ("prod", "staging", "test")
        }
    assert len(counts) == 1
    assert counts != {0}


def test_an_invalid_url_fails_after_three_retries_and_is_reported(profile: LocalProfile) -> None:
    run = profile.trigger(ETL, "invalid", "--param", "source_url=invalid://url")
    assert profile.ended(run) == "Failed"
    assert profile.attempts(run) == 4
    wait_until(
        lambda: any(
            report["parameters"]["flow_run_id"] == run["id"] and report["state_name"] == "Completed"
            for report in profile.runs(deployments={"name": {"any_": ["on-failure"]}})
        ),
        seconds=120,
    )


@pytest.mark.parametrize(
    ("should_fail", "state", "attempts"), [("false", "Completed", 2), ("true", "Failed", 3)]
)
def test_retries(profile: LocalProfile, should_fail: str, state: str, attempts: int) -> None:
    run = profile.trigger(
        WALKTHROUGH, f"retry-{should_fail}", "--param", f"should_fail={should_fail}"
    )
    assert profile.ended(run) == state
    assert profile.attempts(run) == attempts


def test_a_killed_worker_crashes_its_run_and_is_restarted(
    profile: LocalProfile,
) -> None:
    # The flow takes some seconds: all else that takes time comes before or after.
    killed = profile.process(local_profile.OWN_WORKER)
    fails = {"should_fail": True}
    run = profile.create(WALKTHROUGH, parameters=fails, state={"type": "SCHEDULED"})
    # The state says it before the process knows it, and a flow that has not begun starts again.
    wait_until(lambda: profile.task_runs(run) != [])
    killed.kill()
    # Not Running for ever: the run's process misses its worker and says so.
    assert profile.ended(run) == "Crashed"
    wait_until(lambda: profile.process(local_profile.OWN_WORKER).pid != killed.pid)
    again = profile.trigger(WALKTHROUGH, "after-worker-killed")
    assert profile.ended(again) == "Completed"


def test_a_run_that_a_killed_worker_had_only_taken_up_starts_again(profile: LocalProfile) -> None:
    run = profile.create(WALKTHROUGH, state={"type": "PENDING"})

    profile.process(local_profile.OWN_WORKER).kill()

    assert profile.ended(run) == "Completed"


def test_a_run_whose_process_ends_silently_after_its_worker_was_killed_starts_again(
    profile: LocalProfile,
) -> None:
    run = profile.create(WALKTHROUGH, state={"type": "PENDING"})
    env = {local_profile.MARKER: str(profile.state), "PREFECT__FLOW_RUN_ID": run["id"]}
    with subprocess.Popen(["sleep", "300"], env=env) as orphan:
        assert run["id"] in local_profile.executed_flow_runs(profile.state)
        profile.process(local_profile.OWN_WORKER).kill()
        wait_until(lambda: is_recovering(profile))
        with pytest.raises(RetryError):
            wait_until(lambda: not is_recovering(profile), seconds=3)
        # Its flow begins before it misses its worker.
        begins = {"state": {"type": "RUNNING"}}
        profile.api.post(f"/flow_runs/{run['id']}/set_state", json=begins).raise_for_status()
        orphan.kill()

    assert profile.ended(run) == "Completed"


def is_recovering(profile: LocalProfile) -> bool:
    commands = [process.cmdline() for process in local_profile.processes(profile.state)]
    return any("recover" in command for command in commands)


def test_a_run_survives_the_death_of_the_server(profile: LocalProfile) -> None:
    run = profile.trigger(WALKTHROUGH, "server-killed")
    wait_until(lambda: profile.state_of(run) == "Running")
    killed = profile.process("prefect_hamilton.server")
    killed.kill()
    assert profile.ended(run) == "Completed"
    wait_until(lambda: profile.process("prefect_hamilton.server").pid != killed.pid)
    wait_until(lambda: profile.run("status").returncode == 0)


def test_a_killed_manager_leaves_no_process_and_interrupted_runs_start_again(
    profile: LocalProfile,
) -> None:
    run = profile.trigger(WALKTHROUGH, "interrupted")
    wait_until(lambda: profile.state_of(run) == "Running")
    manager = local_profile.manager(profile.state)
    assert manager is not None
    manager.kill()

    assert profile.run("down").returncode == 0
    assert not local_profile.processes(profile.state)
    assert "not running" in profile.run("down").stdout

    started = profile.up()
    assert started.returncode == 0, started.stdout + started.stderr
    assert profile.ended(run) == "Completed"


def test_up_keeps_manual_changes_and_reports_its_own(profile: LocalProfile) -> None:
    def block() -> dict[str, Any]:
        found = profile.api.post(
            "/block_documents/filter",
            json={
                "include_secrets": True,
                "block_documents": {"name": {"any_": ["warehouse-url"]}},
            },
        )
        return dict(found.raise_for_status().json()[0])

    def changed_by_hand() -> tuple[object, ...]:
        return (
            block()["data"]["value"],
            profile.api.get("/variables/name/max_rejected_ratio").json()["value"],
            profile.api.get("/v2/concurrency_limits/warehouse-writes").json()["limit"],
        )

    for path, change in (
        (f"/block_documents/{block()['id']}", {"data": {"value": "postgresql://by-hand"}}),
        ("/variables/name/max_rejected_ratio", {"value": 0.5}),
        ("/v2/concurrency_limits/warehouse-writes", {"limit": 2}),
    ):
        profile.api.patch(path, json=change).raise_for_status()
    assert profile.run("down").returncode == 0
    profile.hamilton_port = services.free_port()

    started = profile.up()
    assert started.returncode == 0, started.stdout + started.stderr
    assert changed_by_hand() == ("postgresql://by-hand", 0.5, 2)
    said = re.findall(r"^  (updated|kept) +(.*?)  +(\S+)(.*)$", started.stdout, re.MULTILINE)
    assert {words[:3] for words in said} == {
        ("kept", "secret block", "warehouse-url"),
        ("kept", "variable", "max_rejected_ratio"),
        ("kept", "global concurrency limit", "warehouse-writes"),
        # It holds the Hamilton UI's address.
        ("updated", "work pool", "local-process-pool"),
    }
    (differences,) = [words[3] for words in said if words[0] == "updated"]
    assert "env.default.HAMILTON_UI_URL differs" in differences


FOLDER_FLOW = "from prefect import flow\n\n@flow\ndef work():\n    pass\n"


class Folder:
    """A flows repository without an environment of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "work.py").write_text(FOLDER_FLOW)

    def write(self, deployments: list[str], variables: list[str], alerts: list[str]) -> None:
        pool = {"name": local_profile.WORK_POOL}
        entry = {"entrypoint": "work.py:work", "work_pool": pool, "schedules": [{"interval": 3600}]}
        listed = {"variables": [{"name": name, "value": 1} for name in variables]}
        channels = {
            name: {"type": "slack", "secrets": {"url": {"from_env": "HOME"}}} for name in alerts
        }
        for name, content in (
            ("prefect.yaml", {"deployments": [entry | {"name": name} for name in deployments]}),
            ("prefect-state.yaml", listed),
            ("prefect-state.local.yaml", {"alerts": {"channels": channels}}),
        ):
            (self.path / name).write_text(yaml.safe_dump(content))


def names_of(profile: LocalProfile, *paths: str) -> set[str]:
    found: set[str] = set()
    for path in paths:
        answer = profile.api.post(f"/{path}/filter", json={"limit": 200}).raise_for_status()
        found |= {each["name"] for each in answer.json()}
    return found


KINDS = ("deployments", "variables", "automations", "block_documents")


def test_up_deletes_what_left_the_files_of_a_folder_and_nothing_else(
    profile: LocalProfile, tmp_path: Path
) -> None:
    folder, other = Folder(tmp_path / "folder"), Folder(tmp_path / "other")
    for each, deployments in ((other, ["others"]), (folder, ["stays", "goes"])):
        each.write(deployments, [f"of_{name}" for name in deployments], [])
        done = profile.up("--flows", str(each.path))
        assert done.returncode == 0, done.stdout + done.stderr
    folder.write(["stays", "goes"], ["of_stays", "of_goes"], ["me"])
    assert profile.up("--flows", str(folder.path)).returncode == 0
    made = {"stays", "goes", "of_stays", "of_goes", "alert-me", "alert-failed"}
    before = names_of(profile, *KINDS)
    assert made <= before
    flow = profile.api.get("/flows/name/work").json()["id"]
    by_hand = {"name": "by-hand", "flow_id": flow}
    profile.api.post("/deployments/", json=by_hand).raise_for_status()
    profile.api.post("/variables/", json={"name": "by_hand", "value": 1}).raise_for_status()

    folder.write(["stays"], ["of_stays"], [])
    done = profile.up("--flows", str(folder.path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^  removed +deployment +work/goes \(- schedule", done.stdout, re.MULTILINE)
    after = names_of(profile, *KINDS)
    alerts = {name for name in before if name.startswith("alert-")}
    assert after == (before - {"goes", "of_goes"} - alerts) | {"by-hand", "by_hand"}

    again = profile.up("--flows", str(folder.path)).stdout
    assert "removed" not in again
    assert "updated" not in again


def test_up_deletes_what_left_the_files_of_this_project(profile: LocalProfile) -> None:
    file = profile.project / "prefect-state.local.yaml"
    file.write_text(yaml.safe_dump({"variables": [{"name": "mine", "value": 1}]}))
    assert profile.up().returncode == 0
    assert "mine" in names_of(profile, "variables")

    file.unlink()
    done = profile.up()
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  removed +variable +mine$", done.stdout, re.MULTILINE)
    assert "mine" not in names_of(profile, "variables")
    assert "production-etl" in names_of(profile, "deployments")


def test_the_worker_of_up_skips_late_runs_if_it_is_told_to(profile: LocalProfile) -> None:
    assert profile.run("down").returncode == 0
    started = profile.up("--skip-late-after", "600")
    assert started.returncode == 0, started.stdout + started.stderr
    worker = profile.process(local_profile.OWN_WORKER)
    assert worker.environ()[late.VARIABLE] == "600"


def test_a_busy_port_is_reported_with_its_user_and_the_options(tmp_path: Path) -> None:
    other = LocalProfile(tmp_path / "state")
    with ExitStack() as stack:
        for port in (other.port, other.hamilton_port):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", port))
            listener.listen()
        done = other.up()
    assert done.returncode == 1
    assert done.stderr.startswith(f"Port {other.port} is in use by process {os.getpid()}")
    (line,) = done.stderr.strip().splitlines()
    advice = re.search("OPTIONS='(--port [0-9]+ --hamilton-port [0-9]+)' to the make command", line)
    assert advice is not None
    assert str(other.port) not in advice[1]
    assert str(other.hamilton_port) not in advice[1]


@pytest.mark.parametrize("content", ["", "no colon\n", "prefect:\n", "prefect:a\nb\n"])
def test_a_damaged_password_file_is_reported_in_one_sentence(tmp_path: Path, content: str) -> None:
    file = tmp_path / "prefect-auth-string"
    file.write_text(content)
    other = LocalProfile(tmp_path)
    for command in (other.up(), other.run("env"), other.run("login")):
        assert command.returncode == 1
        assert command.stderr == (
            f"{file} does not contain user:password: remove it, and make up creates a new one.\n"
        )


def test_the_processes_started_one_by_one(tmp_path: Path) -> None:
    alone = LocalProfile(tmp_path)
    server = alone.start_in_a_terminal("python -m prefect_hamilton.server")
    try:
        wait_until(lambda: alone.api.get("/health").is_success)
        assert alone.api.get("/work_pools/local-process-pool").status_code == 401
        alone.log_in()
        pool = "prefect work-pool create local-process-pool --type process"
        done = alone.in_a_terminal(pool)
        assert done.returncode == 0, done.stdout + done.stderr
        worker = alone.start_in_a_terminal("prefect worker start --pool local-process-pool")
        try:
            wait_until(
                lambda: alone.api.get("/work_pools/local-process-pool").json()["status"] == "READY"
            )
        finally:
            alone.end(worker)
    finally:
        alone.end(server)


def test_a_state_folder_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prefect-version").write_text("99.0\n")
    done = LocalProfile(tmp_path).up()
    assert done.returncode == 1
    assert "was last used with Prefect 99.0" in done.stderr


def test_a_process_that_was_just_started_is_recognized(tmp_path: Path) -> None:
    """On a busy machine, its environment cannot be read for a moment."""
    for _ in range(200):
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", "input()"],
            env={local_profile.MARKER: str(tmp_path)},
            stdin=subprocess.PIPE,
        )
        try:
            local_profile.wait_for_environment(process)
            assert psutil.Process(process.pid).environ() == {local_profile.MARKER: str(tmp_path)}
        finally:
            process.kill()
            process.communicate()


def test_a_server_that_ends_at_once_shows_its_log(tmp_path: Path) -> None:
    # A folder where the database should be.
    (tmp_path / "prefect" / "prefect.db").mkdir(parents=True)
    broken = LocalProfile(tmp_path)
    done = broken.up()
    assert done.returncode == 1
    assert "The local profile stopped while it was starting." in done.stderr
    assert "unable to open database file" in done.stderr
    assert str(tmp_path / "logs" / "profile.log") in done.stderr
    assert not local_profile.processes(tmp_path)


def test_all_interrupted_runs_start_again_beyond_one_result_page(tmp_path: Path) -> None:
    first_start.prefect_ui(tmp_path)
    local_profile.prepare(tmp_path)
    count = local.PAGE + 5
    with services.prefect_server(tmp_path / "server", program=services.OWN_SERVER) as server:
        profile = local_profile.Profile(state=tmp_path, port=server.port, api_port=server.port)
        api = Api(server.url)
        api.post("/work_pools/", name=local_profile.WORK_POOL, type="process")
        flow = api.post("/flows/", name="interrupted")
        deployment = api.post(
            "/deployments/",
            name="interrupted",
            flow_id=flow["id"],
            work_pool_name=local_profile.WORK_POOL,
        )
        create = f"/deployments/{deployment['id']}/create_flow_run"
        runs = [api.post(create, state={"type": "RUNNING"})["id"] for _ in range(count)]
        # Its process waits to try its flow again.
        policy = {"retries": 1, "retry_delay": 3600}
        api.patch(f"/flow_runs/{runs[0]}", empirical_policy=policy)
        assert api.propose(runs[0], "FAILED") == "REJECT"
        due = api.get(f"/flow_runs/{runs[0]}")["next_scheduled_start_time"]

        assert local.restart_interrupted_runs(profile, datetime.now(UTC)) == count

        assert local.restart_interrupted_runs(profile, datetime.now(UTC)) == 0
        found = api.post(f"/work_pools/{local_profile.WORK_POOL}/get_scheduled_flow_runs")
        given = {each["flow_run"]["id"]: each["flow_run"] for each in found}
        assert len(given) == local.PAGE
        retried = api.get(f"/flow_runs/{runs[0]}")
        assert retried["next_scheduled_start_time"] == due
        assert retried["empirical_policy"]["retry_type"] == "reschedule"
