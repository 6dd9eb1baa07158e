"""The command of flow pods, against a real Prefect server.

Each test executes a flow run as a pod does: the run's id and the API's address in the environment.
"""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling, Crashed

from prefect_hamilton.flow_pod import launcher
from prefect_hamilton.states import NOT_RESCHEDULED
from tests.deployments.git_server import git
from tests.images.pods import (
    FLOWS,
    PACKAGE,
    Pods,
    Step,
    engine_pid,
    go_to,
    is_running,
    wait_until_sigterm_is,
)
from tests.services import Service

pytestmark = pytest.mark.services


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


def test_a_subflow_is_not_held_up_by_its_heartbeats(pods: Pods) -> None:
    run = pods.flow_run("calls_a_subflow")

    assert pods.execute(run)[0] == 0

    # That of the subflow, which has ended, and that of the flow.
    pods.wait_for_log(run, "2 threads of heartbeats")


def at_each_start(folder: Path, code: str) -> str:
    """The PYTHONPATH with which each start of Python first runs the code."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return f"{PACKAGE}:{folder}"


def test_an_engine_that_ended_early_is_waited_for() -> None:
    """A pull step can end it before the supervisor lets it run the flow."""
    waiting, go = os.pipe()
    os.close(waiting)
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 7"], os.environ)

    engine = launcher.EngineProcess(pid, go)
    engine.let_go({})

    assert engine.wait() == 7


def test_one_python_start_imports_prefect(pods: Pods, tmp_path: Path) -> None:
    count = (
        "import os, pathlib\n"
        "pathlib.Path(os.environ['PROBE_NOTES'], f'python-{os.getpid()}').touch()\n"
    )
    repository = tmp_path / "repository"
    shutil.copytree(FLOWS, repository)
    git("init", "--quiet", cwd=repository)
    git("add", "--all", cwd=repository)
    git("commit", "--quiet", "--message", "Flows", cwd=repository)
    clone: Step = {"prefect.deployments.steps.git_clone": {"repository": f"file://{repository}"}}
    run = pods.flow_run(pull=[clone])

    code, output = pods.execute(run, PYTHONPATH=at_each_start(tmp_path / "start", count))
    assert code == 0, output

    assert pods.state(run).type == StateType.COMPLETED
    assert len(list(pods.notes.glob("python-*"))) == 1


def test_a_flow_imports_packages_that_a_pull_step_installed(pods: Pods, tmp_path: Path) -> None:
    (tmp_path / "installing.py").write_text(
        "import pathlib, library\n"
        "def install() -> None:\n"
        "    pathlib.Path(library.__file__).write_text('VERSION = \"new version\"')\n"
    )
    (tmp_path / "library.py").write_text("VERSION = 'old'")
    run = pods.flow_run("importing", pull=[{"installing.install": {}}, go_to(FLOWS)])

    assert pods.execute(run, PYTHONPATH=f"{PACKAGE}:{tmp_path}")[0] == 0

    assert pods.state(run).type == StateType.COMPLETED
    pods.wait_for_log(run, "found the new version")


def test_a_pull_step_that_needs_pip_says_that_there_is_none(pods: Pods) -> None:
    step: Step = {
        "prefect.deployments.steps.pip_install_requirements": {
            "directory": str(FLOWS),
            "requirements_file": "requirements.txt",
        }
    }
    run = pods.flow_run(pull=[step])

    pods.execute(run)

    state = pods.state(run)
    assert state.type == StateType.CRASHED
    assert "No module named pip" in str(state.message)


def test_settings_of_the_workspace_take_effect(
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


def test_a_failed_pull_step_is_reported_and_crashes_the_run(pods: Pods, tmp_path: Path) -> None:
    run = pods.flow_run(pull=tmp_path / "nowhere")

    _, output = pods.execute(run)

    state = pods.state(run)
    assert state.type == StateType.CRASHED
    assert "set_working_directory: [Errno 2] No such file" in str(state.message)
    pods.wait_for_log(run, str(state.message))
    assert "Traceback" in output  # the step may be of one's own making


def test_sigterm_reschedules_the_run(pods: Pods) -> None:
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


def test_sigterm_before_the_flow_starts_reschedules_the_run(pods: Pods) -> None:
    run = pods.flow_run(end="wait")
    with pods.executing(run) as pod:
        # As early as can be: Prefect is being imported.
        wait_until_sigterm_is(pod, "SigBlk")
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(timeout=60) == 0

    state = pods.state(run)
    assert (state.type, state.name) == (StateType.SCHEDULED, "AwaitingRetry")


def test_sigterm_ends_a_pod_while_the_api_does_not_respond(
    pods: Pods, prefect_server: Service
) -> None:
    run = pods.flow_run()
    prefect_server.freeze()
    try:
        with pods.executing(run) as pod:
            wait_until_sigterm_is(pod, "SigCgt")
            pod.send_signal(signal.SIGTERM)
            output, _ = pod.communicate(timeout=60)
    finally:
        prefect_server.thaw()

    # The worker reschedules the run once it reaches the API.
    assert pod.returncode == NOT_RESCHEDULED, output
    assert "the flow run is not rescheduled" in output
    assert pods.state(run).type == StateType.SCHEDULED


def test_sigterm_reschedules_the_run_where_loopback_is_refused(pods: Pods, tmp_path: Path) -> None:
    refuse = (
        "import asyncio\n"
        "async def start_server(*args, **kwargs):\n"
        "    raise OSError('no loopback')\n"
        "asyncio.start_server = start_server\n"
    )
    run = pods.flow_run(end="wait")
    with pods.executing(run, PYTHONPATH=at_each_start(tmp_path / "start", refuse)) as pod:
        pods.wait_for_log(run, "about to wait")
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(timeout=60) == 0

    assert pods.state(run).name == "AwaitingRetry"


def test_a_crash_that_cannot_be_reported_sets_the_exit_code(
    pods: Pods, prefect_server: Service
) -> None:
    run = pods.flow_run(end="wait")
    quickly = {
        "PREFECT_API_REQUEST_TIMEOUT": "1",
        "PREFECT_CLIENT_MAX_RETRIES": "0",
        "PREFECT_HAMILTON_API_OUTAGE_SECONDS": "1",
    }
    with pods.executing(run, **quickly) as pod:
        pods.wait_for_log(run, "about to wait")
        pid = engine_pid(pods.log(run))
        prefect_server.freeze()
        try:
            os.kill(pid, signal.SIGKILL)
            output, _ = pod.communicate(timeout=120)
        finally:
            prefect_server.thaw()

    assert pod.returncode == 128 + signal.SIGKILL, output
    assert pods.state(run).type == StateType.RUNNING


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


def test_a_run_that_kubernetes_will_retry_is_left_unchanged(pods: Pods) -> None:
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


def start(pods: Pods, *arguments: str, **env: str) -> tuple[int, str]:
    """Exit code and errors of a pod's command without an API."""
    done = subprocess.run(
        [pods.python, "-P", "-m", "prefect_hamilton.flow_pod", *arguments],
        env={"PYTHONPATH": str(PACKAGE), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_without_a_flow_run_the_command_says_what_is_missing(pods: Pods) -> None:
    assert start(pods) == (
        2,
        "flow_pod: '' is not the id of a flow run; set PREFECT__FLOW_RUN_ID\n",
    )


def test_another_prefect_version_is_reported_in_one_sentence(pods: Pods, tmp_path: Path) -> None:
    package = tmp_path / "prefect"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '4.0.1'")

    found = start(pods, str(uuid4()), PYTHONPATH=f"{PACKAGE}:{tmp_path}")

    assert found == (1, "flow_pod: this image supports Prefect 3.9.x; found 4.0.1\n")


def test_a_name_removed_from_prefect_is_reported_in_one_sentence(
    pods: Pods, tmp_path: Path
) -> None:
    rename = (
        "from prefect.runner import _workspace_supervisor as module\n"
        "module._launch = module.__dict__.pop('_launch_engine')\n"
    )

    code, said = start(pods, str(uuid4()), PYTHONPATH=at_each_start(tmp_path / "start", rename))

    assert code == 1
    assert re.fullmatch(
        r"flow_pod: this image supports Prefect 3\.9\.x; found 3\.9\.\d+, "
        r"where cannot import name '_launch_engine' from .*\n",
        said,
    )
