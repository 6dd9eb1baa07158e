"""The command of flow pods, against a real Prefect server.

Each test executes a flow run as a pod does: the run's id and the API's address in the environment.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
import tenacity
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Cancelling, Crashed

from tests.services import ROOT, Service

pytestmark = pytest.mark.services

FLOWS = ROOT / "tests/images"
PACKAGE = ROOT / "images/flows"

eventually = tenacity.retry(
    stop=tenacity.stop_after_delay(60), wait=tenacity.wait_fixed(0.2), reraise=True
)


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


class Pods:
    """Deployments and their pods: processes with the environment that a worker would give them."""

    def __init__(self, client: SyncPrefectClient, server: Service, folder: Path) -> None:
        self._client = client
        self._api = f"{server.url}/api"
        self.notes = folder / "notes"
        self.notes.mkdir()
        self._home = folder / "home"

    def flow_run(
        self, flow_name: str = "probe", pull: Path = FLOWS, **parameters: object
    ) -> FlowRun:
        """A flow run of a deployment whose pull step goes to the folder `pull`."""
        entrypoint = f"probes.py:{flow_name}"
        flow_id = self._client.create_flow(load_flow_from_entrypoint(f"{FLOWS}/{entrypoint}"))
        step = {"prefect.deployments.steps.set_working_directory": {"directory": str(pull)}}
        deployment = self._client.request(
            "POST",
            "/deployments/",
            json=DeploymentCreate(
                flow_id=flow_id,
                name=pull.name,
                entrypoint=entrypoint,
                pull_steps=[step],
                enforce_parameter_schema=False,
            ).model_dump(mode="json", exclude_unset=True),
        ).json()
        return self._client.create_flow_run_from_deployment(
            UUID(deployment["id"]), parameters=parameters
        )

    @contextmanager
    def executing(self, flow_run: FlowRun, **env: str) -> Iterator[subprocess.Popen[str]]:
        """The pod's process; killed if it has not ended when the block does."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flow_pod"],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(PACKAGE),
                "PREFECT_HOME": str(self._home),
                "PREFECT_API_URL": self._api,
                "PREFECT__FLOW_RUN_ID": str(flow_run.id),
                "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
                "PROBE_NOTES": str(self.notes),
                "DO_NOT_TRACK": "1",
                **env,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def execute(self, flow_run: FlowRun, **env: str) -> tuple[int, str]:
        """Exit code and output of a pod that ends by itself."""
        with self.executing(flow_run, **env) as process:
            output, _ = process.communicate(timeout=120)
            return process.returncode, output

    def state(self, flow_run: FlowRun) -> State[object]:
        state = self._client.read_flow_run(flow_run.id).state
        assert state is not None
        return state

    @eventually
    def wait_for_log(self, flow_run: FlowRun, words: str) -> None:
        """Return when the server has a log line of the run with `words` in it."""
        messages = self.log(flow_run)
        assert any(words in message for message in messages), messages

    @eventually
    def wait_for_state(self, flow_run: FlowRun, type: StateType) -> State[object]:
        state = self.state(flow_run)
        assert state.type == type, state
        return state

    def log(self, flow_run: FlowRun) -> list[str]:
        """The flow run's log, as the server has it."""
        only = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run.id]))
        answer = self._client.request(
            "POST", "/logs/filter", json={"logs": only.model_dump(mode="json")}
        )
        return [line["message"] for line in answer.json()]


@pytest.fixture
def pods(client: SyncPrefectClient, prefect_server: Service, tmp_path: Path) -> Pods:
    return Pods(client, prefect_server, tmp_path)


def engine_pid(messages: list[str]) -> int:
    """The process that ran the flow, by the flow's own word."""
    (pid,) = [m[1] for line in messages if (m := re.match(r"pid (\d+),", line))]
    return int(pid)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_flow_completes_and_its_log_reaches_the_server(pods: Pods) -> None:
    run = pods.flow_run()

    code, output = pods.execute(run)

    assert code == 0
    assert pods.state(run).type == StateType.COMPLETED
    pods.wait_for_log(run, "beside, twice 21 is 42")
    pods.wait_for_log(run, "All deployment steps completed")
    assert "twice 21 is 42" in output  # the pod's own log has it, too


def test_an_asynchronous_flow_completes(pods: Pods) -> None:
    run = pods.flow_run("asynchronous")

    assert pods.execute(run)[0] == 0

    assert pods.state(run).type == StateType.COMPLETED
    pods.wait_for_log(run, "in an event loop")


def test_prefect_is_imported_by_one_start_of_python(pods: Pods, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    starts.mkdir()
    (starts / "sitecustomize.py").write_text(
        "import os, pathlib\n"
        "pathlib.Path(os.environ['PROBE_NOTES'], f'python-{os.getpid()}').touch()\n"
    )
    run = pods.flow_run()

    assert pods.execute(run, PYTHONPATH=f"{PACKAGE}:{starts}")[0] == 0

    assert pods.state(run).type == StateType.COMPLETED
    assert len(list(pods.notes.glob("python-*"))) == 1


def test_settings_of_the_workspace_count(
    pods: Pods, client: SyncPrefectClient, tmp_path: Path
) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    for name in ("probes.py", "beside.py"):
        (workspace / name).write_text((FLOWS / name).read_text())
    (workspace / "prefect.toml").write_text("[flows]\ndefault_retries = 1\n")
    run = pods.flow_run(pull=workspace, end="raise")

    pods.execute(run)

    assert pods.state(run).type == StateType.FAILED
    assert client.read_flow_run(run.id).run_count == 2


def test_a_flow_that_raises_fails(pods: Pods) -> None:
    run = pods.flow_run(end="raise")

    assert pods.execute(run)[0] == 0

    state = pods.state(run)
    assert state.type == StateType.FAILED
    assert "as asked" in str(state.message)
    assert list(pods.notes.iterdir()) == []


@pytest.mark.parametrize(("end", "status"), [("exit", "7"), ("segfault", "-11")])
def test_a_flow_whose_process_dies_is_crashed(pods: Pods, end: str, status: str) -> None:
    run = pods.flow_run(end=end)

    assert pods.execute(run)[0] == 0

    state = pods.state(run)
    assert state.type == StateType.CRASHED
    assert f"status code: {status}." in str(state.message)
    assert [note.name for note in pods.notes.iterdir()] == [f"crashed-{run.id}"]


def test_a_pull_step_that_fails_is_told_and_crashes_the_run(pods: Pods, tmp_path: Path) -> None:
    run = pods.flow_run(pull=tmp_path / "nowhere")

    _, output = pods.execute(run)

    state = pods.state(run)
    assert state.type == StateType.CRASHED
    assert "set_working_directory: [Errno 2] No such file" in str(state.message)
    pods.wait_for_log(run, str(state.message))
    assert "Traceback" in output  # the step may be of one's own making


def test_a_pod_told_to_end_reschedules_its_run(pods: Pods) -> None:
    run = pods.flow_run(end="wait")
    with pods.executing(run) as pod:
        pods.wait_for_log(run, "about to wait")
        pid = engine_pid(pods.log(run))
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(timeout=60) == 0

    state = pods.state(run)
    assert (state.type, state.name) == (StateType.SCHEDULED, "AwaitingRetry")
    assert not is_running(pid)
    assert list(pods.notes.iterdir()) == []


def test_a_pod_told_to_end_before_the_flow_runs_reschedules_its_run(pods: Pods) -> None:
    run = pods.flow_run(end="wait")
    with pods.executing(run) as pod:
        # As early as can be: Prefect is being imported.
        @eventually
        def wait_until_signals_are_held() -> None:
            status = Path(f"/proc/{pod.pid}/status").read_text()
            held = int(re.findall(r"SigBlk:\s+(\w+)", status)[0], 16)
            assert held & 1 << (signal.SIGTERM - 1)

        wait_until_signals_are_held()
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(timeout=60) == 0

    state = pods.state(run)
    assert (state.type, state.name) == (StateType.SCHEDULED, "AwaitingRetry")


def test_a_run_stays_rescheduled_when_the_worker_marks_it_crashed_too_late(
    pods: Pods, client: SyncPrefectClient
) -> None:
    run = pods.flow_run(end="wait")
    with pods.executing(run) as pod:
        pods.wait_for_log(run, "about to wait")
        pod.send_signal(signal.SIGTERM)
        pods.wait_for_state(run, StateType.SCHEDULED)
        marked = client.set_flow_run_state(run.id, Crashed(message="No active pods found"))
        # What the server answered: a moment later the pod has rescheduled the run again.
        assert marked.state is not None and marked.state.type == StateType.CRASHED
        assert pod.wait(timeout=60) == 0

    assert pods.state(run).name == "AwaitingRetry"


def test_a_run_that_is_to_be_retried_by_kubernetes_is_left_to_it(pods: Pods) -> None:
    run = pods.flow_run(end="wait")
    with pods.executing(run, PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR="relinquish") as pod:
        pods.wait_for_log(run, "about to wait")
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(timeout=60) == 1

    assert pods.state(run).type == StateType.RUNNING


def test_a_cancelled_run_ends_with_its_process(pods: Pods, client: SyncPrefectClient) -> None:
    run = pods.flow_run(end="wait")
    with pods.executing(run) as pod:
        pods.wait_for_log(run, "about to wait")
        pid = engine_pid(pods.log(run))
        client.set_flow_run_state(run.id, Cancelling())
        assert pod.wait(timeout=90) == 0

    pods.wait_for_state(run, StateType.CANCELLED)
    assert not is_running(pid)
    assert [note.name for note in pods.notes.iterdir()] == [f"cancelled-{run.id}"]


def test_a_run_that_was_cancelled_before_does_not_start(
    pods: Pods, client: SyncPrefectClient
) -> None:
    run = pods.flow_run()
    client.set_flow_run_state(run.id, Cancelling(), force=True)

    assert pods.execute(run)[0] == 0

    pods.wait_for_state(run, StateType.CANCELLED)
    assert not any("about to" in line for line in pods.log(run))


def test_without_a_flow_run_the_command_says_what_is_missing(pods: Pods) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-m", "flow_pod"],
        env={"PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 2
    assert result.stderr == "flow_pod: '' is not the id of a flow run; set PREFECT__FLOW_RUN_ID\n"
