"""Tracking in the Hamilton UI: what it shows, and that a flow never fails because of it.

All against the real Hamilton UI and a real Prefect server.
"""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx
import pandas as pd
import pytest
from hamilton import ad_hoc_utils, driver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect import State, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from pydantic import BaseModel

from prefect_hamilton import tracking
from prefect_hamilton.bootstrap.hamilton import ensure_project
from prefect_hamilton.tracking import settings as tracking_settings
from tests import services
from tests.conftest import HamiltonUi
from tests.library import tracked_flow

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_api")]

BOUND = 10.0
"""Seconds that a flow run may take longer because of the Hamilton UI, in any case."""


@dataclass
class Outcome:
    """The outcome of a flow run, and what the UIs and the log show of it."""

    state: State[Any]
    seconds: float
    records: list[logging.LogRecord]
    urls: list[str | None]

    @property
    def result(self) -> Any:
        return self.state.result(raise_on_failure=False)

    @property
    def warnings(self) -> list[str]:
        return [r.getMessage() for r in self.records if r.levelno >= logging.WARNING]

    @property
    def messages(self) -> list[str]:
        return [r.getMessage() for r in self.records]


Run = Callable[..., Outcome]


@pytest.fixture
def run(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the flow in this process with an environment and a function called at its points."""

    def run(env: dict[str, str], at: Callable[[str], None] | None = None, x: int = 1) -> Outcome:
        pending = {"before", "built", "executing"}

        def once(point: str) -> None:
            if point in pending:
                pending.remove(point)
                if at is not None:
                    at(point)

        caplog.clear()
        with monkeypatch.context() as patch:
            for name in [n for n in os.environ if n.startswith("HAMILTON_")]:
                patch.delenv(name)
            for name, value in env.items():
                patch.setenv(name, value)
            patch.setattr(tracked_flow, "at", once)
            started = time.monotonic()
            state = tracked_flow.tracked_flow(x, return_state=True)
            seconds = time.monotonic() - started
        return Outcome(state, seconds, list(caplog.records), list(tracked_flow.urls))

    return run


@pytest.fixture
def baseline(run: Run) -> Outcome:
    """The flow run without tracking."""
    if not _baseline:
        _baseline.append(run({}))
    return _baseline[0]


_baseline: list[Outcome] = []


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    with services.hamilton_ui(tmp_path_factory.mktemp("own-hamilton-ui")) as service:
        yield service


@pytest.fixture
def own_ui(own_service: services.Service, request: pytest.FixtureRequest) -> Iterator[HamiltonUi]:
    """A Hamilton UI that the test may stop and freeze, with a new project."""
    project_id = ensure_project(own_service.url, "tests", request.node.name)
    yield HamiltonUi(own_service, "tests", project_id)
    if own_service.alive:
        own_service.thaw()
    else:
        own_service.start()


def get(ui: HamiltonUi, path: str, **params: Any) -> Any:
    headers = {"x-api-user": ui.username}
    return httpx.get(f"{ui.url}/api/v1{path}", params=params, headers=headers).json()


def hamilton_run(ui: HamiltonUi, url: str | None) -> Any:
    """The run behind a permalink, as the Hamilton UI requests it."""
    match = re.fullmatch(rf"{ui.url}/dashboard/project/{ui.project_id}/runs/(\d+)", url or "")
    assert match, url
    params = {"attr": ["primitive", "error"]}
    return get(ui, f"/dag_runs/{match[1]}", **params)[0]


def node_states(run: Any) -> dict[str, str]:
    return {node["node_name"]: node["status"] for node in run["node_runs"]}


ALL_SUCCEEDED = {"doubled": "SUCCESS", "checked": "SUCCESS", "total": "SUCCESS"}


def assert_as_without_tracking(outcome: Outcome, baseline: Outcome, cause: str) -> None:
    assert outcome.state.name == baseline.state.name == "Completed"
    assert outcome.result == baseline.result == [3, 3]
    assert outcome.seconds <= baseline.seconds + BOUND
    assert len(outcome.warnings) == 1, outcome.warnings
    assert re.search(cause, outcome.warnings[0]), outcome.warnings[0]


# What shows


def test_tracked_run_has_all_its_nodes_as_soon_as_the_flow_is_done(
    run: Run, hamilton_ui: HamiltonUi
) -> None:
    outcome = run(hamilton_ui.env)
    assert outcome.result == [3, 3]
    assert outcome.warnings == []
    for url in outcome.urls:
        in_ui = hamilton_run(hamilton_ui, url)
        assert in_ui["run_status"] == "SUCCESS"
        assert in_ui["run_end_time"] is not None
        assert node_states(in_ui) == ALL_SUCCEEDED


def test_an_execution_has_the_task_name_and_the_flow_run(
    run: Run, hamilton_ui: HamiltonUi, prefect_server: services.Service
) -> None:
    outcome = run(hamilton_ui.env)
    in_ui = hamilton_run(hamilton_ui, outcome.urls[0])
    flow_run_id = str(outcome.state.state_details.flow_run_id)
    assert in_ui["tags"] == {
        "orchestrator": "prefect",
        "prefect_task": "first_task",
        "prefect_flow": "tracked-flow",
        "prefect_flow_run_id": flow_run_id,
        "prefect_flow_run_url": f"{prefect_server.url}/runs/flow-run/{flow_run_id}",
    }
    (version,) = get(hamilton_ui, f"/dag_templates/{in_ui['dag_template']}")
    assert version["name"] == "prefect_first_task"
    # A version is shared by many flow runs.
    assert "prefect_flow_run_id" not in version["tags"]


def test_permalink_is_in_the_log_and_in_a_markdown_artifact(
    run: Run, hamilton_ui: HamiltonUi
) -> None:
    outcome = run(hamilton_ui.env)
    assert len(outcome.urls) == 2
    for url in outcome.urls:
        assert f"Hamilton UI tracking is on: {url}" in outcome.messages
    flow_run_id = outcome.state.state_details.flow_run_id
    assert flow_run_id is not None
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        )
    assert {(a.type, a.key, a.data) for a in artifacts} == {
        (
            "markdown",
            f"hamilton-run-{name}-task",
            f"[prefect_{name}_task in the Hamilton UI]({url})",
        )
        for name, url in zip(("first", "second"), outcome.urls, strict=True)
    }


def test_failing_dataflow_fails_the_same_way_and_shows_as_failed(
    run: Run, hamilton_ui: HamiltonUi
) -> None:
    untracked, tracked = run({}, x=-1), run(hamilton_ui.env, x=-1)
    assert tracked.state.name == untracked.state.name == "Failed"
    assert repr(tracked.result) == repr(untracked.result) == "ValueError('negative')"
    in_ui = hamilton_run(hamilton_ui, tracked.urls[0])
    assert in_ui["run_status"] == "FAILURE"
    assert node_states(in_ui) == {"doubled": "SUCCESS", "checked": "FAILURE"}


def test_links_and_warnings_hide_the_password_of_an_address(
    run: Run, hamilton_ui: HamiltonUi
) -> None:
    address = hamilton_ui.url.replace("://", "://me:hunter2@")
    outcome = run(hamilton_ui.env | {"HAMILTON_UI_URL": address})
    assert outcome.urls[0] is not None
    assert outcome.urls[0].startswith(hamilton_ui.url)
    nobody = f"http://me:hunter2@127.0.0.1:{services.free_port()}"
    wrong = {"HAMILTON_API_URL": "http://me:hunt/er2@127.0.0.1:port"}
    warnings = [
        *run(hamilton_ui.env | {"HAMILTON_API_URL": nobody}).warnings,
        *run(hamilton_ui.env | wrong).warnings,
    ]
    assert len(warnings) == 2
    assert not [text for text in (*warnings, *outcome.messages) if "hunt" in text]


def test_the_sdk_logs_nothing(run: Run, hamilton_ui: HamiltonUi) -> None:
    names = {record.name for record in run(hamilton_ui.env).records}
    assert not [name for name in names if not name.startswith("prefect")]


def test_without_settings_nothing_is_tracked_or_logged(run: Run) -> None:
    outcome = run({"HAMILTON_API_URL": "http://127.0.0.1:1"})
    assert outcome.result == [3, 3]
    assert outcome.urls == [None, None]
    assert not [message for message in outcome.messages if "Hamilton" in message]


def first_row(source: str, rows: list[int]) -> str:
    return f"{rows[0]} of {source}"


def test_password_of_a_url_and_large_inputs_are_not_stored(
    hamilton_ui: HamiltonUi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in hamilton_ui.env.items():
        monkeypatch.setenv(name, value)
    module = ad_hoc_utils.create_temporary_module(first_row, module_name="first_row")
    inputs = {"source": "postgresql://reader:hunter2@db/warehouse", "rows": list(range(5000))}
    with tracking.track("first_row") as tracked:
        dataflow = driver.Builder().with_modules(module).with_adapters(*tracked.adapters).build()
        assert "hunter2" in dataflow.execute(["first_row"], inputs=inputs)["first_row"]
    in_ui = hamilton_run(hamilton_ui, tracked.run_url)
    assert in_ui["inputs"] == {
        "source": "postgresql://***@db/warehouse",
        "rows": "list of 5000 items, not kept",
    }
    assert node_states(in_ui) == {"first_row": "SUCCESS"}
    assert "postgresql://***@db" in str(in_ui["node_runs"])
    assert "hunter2" not in str(in_ui)


MARK = "Zq7w"
"""A part of each password below, which no code and no other text has."""

passwords = st.lists(
    st.text(
        st.sampled_from("%@/#?:[]&=+!")
        | st.characters(exclude_categories=["Cs"], min_codepoint=0xA0),
        max_size=4,
    ),
    min_size=1,
    max_size=3,
).map(lambda pieces: MARK.join(["", *pieces, ""]))

WITH_SECRET = (
    "postgresql://reader:{}@db:5432/warehouse",
    "read from postgresql://reader:{}@db/warehouse to s3://bucket/key in 3 s",
    "https://{}@git.example.org/flows.git",
    "https://example.org/raw.csv?X-Amz-Signature={}",
    "https://example.org/raw.csv?a=b&sig={}&c=d#top",
    "postgresql://db/warehouse?user=me&password={}",
    "host=db password={} dbname=warehouse",
    "host=db password='{}' dbname=warehouse",
    "Server=db;PWD={};Database=warehouse",
    "first line\nAuthorization: Bearer {}\nlast line",
)


class Login(BaseModel):
    """What a flow may keep a secret in."""

    user: str
    password: str


def as_text(source: str) -> str:
    return f"1 row of {source}"


def as_list(source: str) -> list[Any]:
    return [source, {source: source}, (source,)]


def as_categories(source: str) -> pd.DataFrame:
    return pd.DataFrame({"source": pd.Categorical([source, source])})


def failing(source: str, as_text: str, as_list: list[Any], as_categories: pd.DataFrame) -> int:
    piece = source[source.index("7w") - 2 :][:6]
    raise ConnectionError(f"{source}: port could not be cast to integer value as {piece!r}")


with_secret = ad_hoc_utils.create_temporary_module(
    as_text, as_list, as_categories, failing, module_name="with_secret"
)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, hamilton_ui: HamiltonUi) -> list[Any]:
    """The bodies of all requests to the Hamilton UI."""
    bodies: list[Any] = []
    send = httpx.Client.send

    def record(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        if str(request.url).startswith(hamilton_ui.url) and request.content:
            bodies.append(json.loads(request.content))
        return send(client, request, **options)

    for name, value in hamilton_ui.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(httpx.Client, "send", record)
    return bodies


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(password=passwords, form=st.sampled_from(WITH_SECRET))
def test_no_part_of_a_password_reaches_the_hamilton_ui(
    sent: list[Any], password: str, form: str
) -> None:
    source = form.format(password)
    inputs = {
        "source": source,
        "sources": [source, [source], {source: 1}],
        "login": Login(user="me", password=password),
        "options": {"password": password, "nested": {"api_key": password}},
        "db_password": password,
        "frame": pd.DataFrame({"source": [source]}),
        "path": Path(source),
        "error": ValueError(source),
    }
    sent.clear()
    with tracking.track("with_secret", tags={"source": source}) as tracked:
        builder = driver.Builder().with_modules(with_secret).with_config({"also": source})
        dataflow = builder.with_adapters(*tracked.adapters).build()
        with pytest.raises(ConnectionError, match="could not be cast"):
            dataflow.execute(["failing"], inputs=inputs)

    statuses = {
        update["node_name"]: update["status"]
        for body in sent
        for update in body.get("task_updates", [])
    }
    assert statuses == dict.fromkeys(["as_text", "as_list", "as_categories"], "SUCCESS") | {
        "failing": "FAILURE"
    }
    assert MARK not in json.dumps(sent, ensure_ascii=False)
    assert "ConnectionError: message not stored" in str(sent)


def test_messages_of_exceptions_are_shown_where_no_input_holds_a_secret(
    run: Run, hamilton_ui: HamiltonUi
) -> None:
    in_ui = hamilton_run(hamilton_ui, run(hamilton_ui.env, x=-1).urls[0])
    assert "ValueError: negative" in str(in_ui["node_runs"])


class Unprintable:
    """An object whose text blocks for ever."""

    def __str__(self) -> str:
        raise AssertionError("printed")

    __repr__ = __str__


class Counted(list[int]):
    """A list that knows how many of its items were looked at."""

    looked_at = 0

    def __iter__(self) -> Iterator[int]:
        for item in super().__iter__():
            self.looked_at += 1
            yield item


def numbers(rows: Counted) -> pd.DataFrame:
    return pd.DataFrame({"number": range(300_000), "half": 0.5})


def mixed(rows: Counted, thing: Unprintable) -> dict[str, Any]:
    return {"thing": thing, "rows": [[0] * 100_000], "few": [1, 2]}


def text(numbers: pd.DataFrame, mixed: dict[str, Any]) -> str:
    return "x" * 20_000


def test_large_and_unknown_values_are_not_summarised(
    sent: list[Any], hamilton_ui: HamiltonUi
) -> None:
    module = ad_hoc_utils.create_temporary_module(numbers, mixed, text, module_name="large")
    rows = Counted(range(300_000))
    inputs = {"rows": rows, "thing": Unprintable()}
    with tracking.track("large") as tracked:
        dataflow = driver.Builder().with_modules(module).with_adapters(*tracked.adapters).build()
        assert len(dataflow.execute(["text"], inputs=inputs)["text"]) == 20_000

    assert rows.looked_at <= 10_000
    in_ui = hamilton_run(hamilton_ui, tracked.run_url)
    assert in_ui["inputs"] == {"rows": "Counted of 300000 items, not kept", "thing": "Unprintable"}
    assert node_states(in_ui) == {"numbers": "SUCCESS", "mixed": "SUCCESS", "text": "SUCCESS"}
    shown = {
        attribute["node_name"]: attribute["value"]["value"]
        for body in sent
        for attribute in body.get("attributes", [])
    }
    assert shown == {
        "numbers": "DataFrame of 300000 rows and 2 columns (number, half), not summarized",
        "mixed": "dict of 3 items, not kept",
        "text": "str of 20000 characters, not kept",
    }


def by_day(days: int) -> pd.DataFrame:
    """Columns that are dates, and one of intervals."""
    return pd.DataFrame({pd.Timestamp("2026-01-05"): [1.0], pd.Interval(0, 1): [2.0]})


def by_pair(by_day: pd.DataFrame) -> pd.Series:
    return pd.Series([1.0], name=("amount", "sum"))


def test_frames_whose_labels_are_no_text_are_tracked(
    sent: list[Any], hamilton_ui: HamiltonUi, caplog: pytest.LogCaptureFixture
) -> None:
    module = ad_hoc_utils.create_temporary_module(by_day, by_pair, module_name="labels")
    with tracking.track("labels") as tracked:
        dataflow = driver.Builder().with_modules(module).with_adapters(*tracked.adapters).build()
        dataflow.execute(["by_pair"], inputs={"days": 1})

    in_ui = hamilton_run(hamilton_ui, tracked.run_url)
    assert node_states(in_ui) == {"by_day": "SUCCESS", "by_pair": "SUCCESS"}
    assert "2026-01-05" in str(sent)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_nodes_are_tracked_after_the_time_limit_for_summaries(
    run: Run, hamilton_ui: HamiltonUi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_settings, "SUMMARY_TIME", 0.0)
    outcome = run(hamilton_ui.env)
    assert outcome.result == [3, 3]
    assert outcome.warnings == []
    in_ui = hamilton_run(hamilton_ui, outcome.urls[0])
    assert node_states(in_ui) == ALL_SUCCEEDED
    assert "not summarized: the time" in str(in_ui["node_runs"])


@pytest.mark.parametrize("tracked", [True, False])
def test_hamiltons_log_is_silenced_within_the_block_only(
    run: Run, hamilton_ui: HamiltonUi, tracked: bool
) -> None:
    hamilton = logging.getLogger("hamilton")
    before = hamilton.level
    names = {r.name for r in run(hamilton_ui.env if tracked else {}, x=-1).records}
    assert not [name for name in names if name.startswith("hamilton")]
    with tracking.track("outer"), tracking.track("inner"):
        assert not hamilton.isEnabledFor(logging.ERROR)
    assert hamilton.level == before != logging.CRITICAL


# What goes wrong


@pytest.mark.parametrize(
    ("env", "cause"),
    [
        ({"HAMILTON_UI_USERNAME": "a"}, "HAMILTON_UI_PROJECT_ID is not set"),
        ({"HAMILTON_UI_PROJECT_ID": "1"}, "HAMILTON_UI_USERNAME is not set"),
        ({"HAMILTON_UI_PROJECT_ID": "mine"}, "must be a number, not 'mine'"),
        ({"HAMILTON_API_URL": "localhost:8241"}, "HAMILTON_API_URL must be an http"),
    ],
)
def test_an_invalid_setting_is_reported(
    run: Run, baseline: Outcome, env: dict[str, str], cause: str
) -> None:
    if len(env) == 1 and "is not set" not in cause:
        env = {"HAMILTON_UI_USERNAME": "a", "HAMILTON_UI_PROJECT_ID": "1"} | env
    assert_as_without_tracking(run(env), baseline, cause)


def test_a_tracking_server_that_is_down_at_the_start(
    run: Run, baseline: Outcome, hamilton_ui: HamiltonUi
) -> None:
    env = hamilton_ui.env | {"HAMILTON_API_URL": f"http://127.0.0.1:{services.free_port()}"}
    assert_as_without_tracking(
        run(env), baseline, "http://127.0.0.1:.* cannot be reached .*refused"
    )


@pytest.mark.parametrize("point", ["built", "executing"])
def test_a_tracking_server_that_goes_down_during_the_run(
    run: Run, baseline: Outcome, own_ui: HamiltonUi, point: str
) -> None:
    def stop(reached: str) -> None:
        if reached == point:
            own_ui.service.stop()

    outcome = run(own_ui.env, stop)
    assert not own_ui.service.alive
    assert_as_without_tracking(outcome, baseline, "cannot be reached")


@pytest.mark.parametrize("point", ["before", "built", "executing"])
def test_a_server_that_accepts_but_never_responds(
    run: Run, baseline: Outcome, own_ui: HamiltonUi, point: str
) -> None:
    def freeze(reached: str) -> None:
        if reached == point:
            own_ui.service.freeze()

    outcome = run(own_ui.env, freeze)
    assert_as_without_tracking(outcome, baseline, "does not answer")


def test_a_tracking_server_that_returns_in_time_misses_no_node(
    run: Run, own_ui: HamiltonUi
) -> None:
    def restart(reached: str) -> None:
        if reached == "executing":
            own_ui.service.stop()
            own_ui.service.start()

    outcome = run(own_ui.env, restart)
    assert outcome.warnings == []
    for url in outcome.urls:
        assert node_states(hamilton_run(own_ui, url)) == ALL_SUCCEEDED


def test_unknown_project(run: Run, baseline: Outcome, hamilton_ui: HamiltonUi) -> None:
    outcome = run(hamilton_ui.env | {"HAMILTON_UI_PROJECT_ID": "999"})
    assert_as_without_tracking(outcome, baseline, "project 999 does not exist")


def test_a_project_of_another_user_is_reported(
    run: Run, baseline: Outcome, hamilton_ui: HamiltonUi
) -> None:
    outcome = run(hamilton_ui.env | {"HAMILTON_UI_USERNAME": "stranger"})
    assert_as_without_tracking(outcome, baseline, "user 'stranger' may not write to it")


def test_key(run: Run, baseline: Outcome, tmp_path: Path) -> None:
    with services.hamilton_ui(tmp_path / "ui", global_key="the-right-key") as service:
        project = ensure_project(service.url, "tests", "tests", "the-right-key")
        env = HamiltonUi(service, "tests", project).env

        tracked = run(env | {"HAMILTON_API_KEY": "the-right-key"})
        assert tracked.warnings == []
        assert None not in tracked.urls
        for key in ({"HAMILTON_API_KEY": "a-wrong-key"}, {}):
            outcome = run(env | key)
            assert_as_without_tracking(outcome, baseline, "refuses the API key")
            assert not [m for m in outcome.messages if "wrong-key" in m]


def test_many_simultaneous_runs_register_the_same_new_dag(own_ui: HamiltonUi) -> None:
    """The server answers 500 to some of them; each gets the id of one and the same version."""
    from hamilton_sdk.api.projecttypes import GitInfo

    from prefect_hamilton.tracking import sdk as tracking_sdk

    clients = 8
    to_ui = tracking_settings.Settings.from_env(own_ui.env)
    assert to_ui is not None
    barrier = Barrier(clients)

    def register(dag: str) -> int:
        sender = tracking_sdk.Sender(to_ui, tracking_settings.FlowRunTracking())
        assert sender.project_exists(own_ui.project_id)
        barrier.wait()
        try:
            return sender.register_dag_template_if_not_exists(
                project_id=own_ui.project_id,
                dag_hash=dag,
                code_hash=dag,
                nodes=[],
                code_artifacts=[],
                name=f"prefect_{dag}",
                config={},
                tags={},
                code=[],
                vcs_info=GitInfo("main", "0", True, "none", "."),
            )
        finally:
            sender.close()

    with ThreadPoolExecutor(clients) as pool:
        for attempt in range(20):  # on a busy machine, all may come one after the other
            assert len(set(pool.map(register, clients * [f"new{attempt}"]))) == 1
            if "IntegrityError" in own_ui.service.log.read_text():
                return
    pytest.fail("Never did two clients register the same dag at once.")


# Other processes


@pytest.fixture
def start(prefect_api: str) -> Iterator[Callable[[dict[str, str], str], subprocess.Popen[str]]]:
    """Start the flow in a separate process, which waits at a point for a line of input."""
    processes = []

    def start(env: dict[str, str], point: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, tracked_flow.__file__, point],
            env=os.environ | {"PREFECT_API_URL": prefect_api} | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], point: str) -> str:
    """Read the process's output until it announces the point."""
    seen = ""
    assert process.stdout is not None
    for line in process.stdout:
        seen += line
        if line == f"at {point}\n":
            return seen
    raise AssertionError(f"ended before {point}: {seen}")


Start = Callable[[dict[str, str], str], "subprocess.Popen[str]"]


def test_two_simultaneous_flow_runs_register_the_same_new_dag(
    start: Start, own_ui: HamiltonUi
) -> None:
    both = [start(own_ui.env, "before") for _ in range(2)]
    for process in both:
        wait_for(process, "before")
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        assert "result [3, 3]" in output
        assert "WARNING" not in output
        assert len(re.findall("Hamilton UI tracking is on", output)) == 2
    runs = get(own_ui, "/dag_runs/latest/", project_id=own_ui.project_id)
    assert [r["run_status"] for r in runs] == ["SUCCESS"] * 4
    assert len({r["dag_template"] for r in runs}) == 2


def test_a_run_killed_in_the_middle(start: Start, hamilton_ui: HamiltonUi, run: Run) -> None:
    process = start(hamilton_ui.env, "executing")
    seen = wait_for(process, "executing")
    process.kill()
    process.communicate(timeout=BOUND)
    url = re.search(r"tracking is on: (\S+)", seen)
    assert url is not None
    # No process was left to report its end.
    assert hamilton_run(hamilton_ui, url[1])["run_status"] == "RUNNING"
    assert run(hamilton_ui.env).warnings == []


def test_a_run_terminated_in_the_middle(start: Start, own_ui: HamiltonUi) -> None:
    """As without tracking: same exit code, and soon, even when the Hamilton UI hangs."""

    def terminate(process: subprocess.Popen[str]) -> float:
        began = time.monotonic()
        process.terminate()
        process.wait(timeout=60)
        return time.monotonic() - began

    untracked, tracked, hanging = (start(env, "executing") for env in ({}, own_ui.env, own_ui.env))
    wait_for(untracked, "executing")
    seen = wait_for(tracked, "executing")
    wait_for(hanging, "executing")
    seconds = terminate(untracked)

    terminate(tracked)
    assert tracked.returncode == untracked.returncode
    url = re.search(r"tracking is on: (\S+)", seen)
    assert url is not None
    in_ui = hamilton_run(own_ui, url[1])
    assert in_ui["run_status"] == "FAILURE"
    assert node_states(in_ui) == {"doubled": "SUCCESS", "checked": "FAILURE"}

    own_ui.service.freeze()
    assert terminate(hanging) <= seconds + BOUND
    assert hanging.returncode == untracked.returncode


@pytest.mark.parametrize("has_models", [False, True])
def test_models_are_summarised_only_if_the_flow_imports_scikit_learn(
    has_models: bool,
) -> None:
    program = (
        f"{'import sklearn.base' if has_models else ''}\n"
        "import sys\n"
        "from prefect_hamilton import tracking\n"
        "sdk = tracking._import_sdk()\n"
        "from hamilton_sdk.tracking import data_observation\n"
        "known = {kind.__name__ for kind in data_observation.compute_stats.registry}\n"
        "print('BaseEstimator' in known, 'sklearn' in sys.modules)\n"
    )
    # Hamilton's own extensions would import it.
    environment = os.environ | {"HAMILTON_AUTOLOAD_EXTENSIONS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(has_models)] * 2, done.stderr
