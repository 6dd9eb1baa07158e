"""What becomes of a flow run while the Prefect API does not answer its pod, or answers late.

Between the pods and a real server is a proxy, which has the faults. No test waits for a time: each
fault is counted in requests, or ends when the pod has said what it does.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, cast

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Crashed

from prefect_hamilton import _headers
from prefect_hamilton.flow_pod import attempt
from prefect_hamilton.states import CLAIM, GIVEN_UP, NO_ANSWER, NOT_RESCHEDULED
from tests import services
from tests.faults_proxy import Action, FaultProxy, answer, hang, hold, lose_answer, pass_on, reset
from tests.images.pods import FLOWS, PACKAGE, Pods, Step, engine_pid, go_to, is_running
from tests.services import Service

pytestmark = pytest.mark.services

API = r"(GET|POST|PATCH) /api/"
READ_RUN = r"GET /api/flow_runs/[^/]+$"
READ_DEPLOYMENT = r"GET /api/deployments/"
SET_STATE = r"POST /api/flow_runs/[^/]+/set_state"
LOGS = r"POST /api/logs/"

BRIEF = {"PREFECT_HAMILTON_API_OUTAGE_SECONDS": "0", "PREFECT_CLIENT_MAX_RETRIES": "0"}
"""A pod that repeats nothing, so that an outage is over at once."""


@pytest.fixture
def proxy(prefect_server: Service) -> Iterator[FaultProxy]:
    with FaultProxy(prefect_server.port) as proxy:
        yield proxy


def through(proxy: FaultProxy, **env: str) -> dict[str, str]:
    """The environment of a pod that reaches the API through the proxy.

    Prefect's own repeats wait up to 32 s each; without them, these tests last as long as needed.
    """
    return {
        "PREFECT_API_URL": f"{proxy.url}/api",
        "PREFECT_API_REQUEST_TIMEOUT": "2",
        "PREFECT_CLIENT_MAX_RETRIES": "0",
        **env,
    }


def read_until(pod: subprocess.Popen[str], words: str) -> str:
    """What the pod says, to the first line with `words` in it."""
    said = []
    for line in cast(IO[str], pod.stdout):
        said.append(line)
        if words in line:
            return "".join(said)
    raise AssertionError(f"the pod has not said {words!r}: {''.join(said)}")


@pytest.mark.parametrize(
    "fault",
    [answer(500), answer(502), answer(503, Retry_After="0"), answer(504), reset, hang],
    ids=["500", "502", "503", "504", "reset", "hang"],
)
def test_an_outage_before_the_flow_starts_is_waited_out(
    pods: Pods, proxy: FaultProxy, fault: Action
) -> None:
    run = pods.taken_up()
    # The first requests of the supervisor and of the engine, which run at the same time.
    faults = proxy.add(fault, API, times=4)

    code, output = pods.execute(run, **through(proxy))

    assert code == 0, output
    assert len(faults.met) == 4
    assert "The Prefect API does not answer (GET /api/" in output
    assert pods.state(run).type == StateType.COMPLETED
    assert pods.run_count(run) == 1


def test_a_pod_waits_for_the_api_at_its_start(pods: Pods, proxy: FaultProxy) -> None:
    run = pods.taken_up()
    proxy.refuse()
    with pods.executing(run, **through(proxy)) as pod:
        read_until(pod, "ConnectError). Retrying for 600 s in total")
        proxy.accept()
        output, _ = pod.communicate(timeout=120)

    assert pod.returncode == 0, output
    assert pods.state(run).type == StateType.COMPLETED


def test_a_pull_step_waits_for_the_api(
    pods: Pods, proxy: FaultProxy, client: SyncPrefectClient
) -> None:
    client.request("POST", "/variables/", json={"name": "probes", "value": str(FLOWS)})
    run = pods.taken_up(pull=[go_to(Path("{{ prefect.variables.probes }}"))])
    faults = proxy.add(answer(500), "GET /api/variables/", times=2)

    code, output = pods.execute(run, **through(proxy))

    assert code == 0, output
    assert len(faults.met) == 2
    assert pods.state(run).type == StateType.COMPLETED


def test_states_and_logs_are_repeated_while_the_flow_runs(pods: Pods, proxy: FaultProxy) -> None:
    run = pods.taken_up()
    states = proxy.add(answer(500), SET_STATE, times=3)
    logs = proxy.add(answer(500), LOGS, times=3)

    code, output = pods.execute(run, **through(proxy))

    assert code == 0, output
    assert (len(states.met), len(logs.met)) == (3, 3)
    assert pods.state(run).type == StateType.COMPLETED
    assert pods.run_count(run) == 1
    pods.wait_for_log(run, "twice 21 is 42")


def test_a_state_is_set_once_when_the_response_is_lost(pods: Pods, proxy: FaultProxy) -> None:
    run = pods.taken_up()
    lost = proxy.add(lose_answer, SET_STATE, times=1)

    assert pods.execute(run, **through(proxy))[0] == 0

    assert len(lost.met) == 1
    assert pods.state(run).type == StateType.COMPLETED
    assert pods.run_count(run) == 1


def at_home(tmp_path: Path) -> list[Step]:
    """Pull steps of one's own making, after which the engine starts in a new interpreter."""
    (tmp_path / "own.py").write_text(
        "import os\ndef step() -> None:\n    pass\ndef leave() -> None:\n    os._exit(0)\n"
    )
    return [{"own.step": {}}, go_to(FLOWS)]


def test_an_engine_in_a_new_interpreter_waits_for_the_api(
    pods: Pods, proxy: FaultProxy, tmp_path: Path
) -> None:
    run = pods.taken_up(pull=at_home(tmp_path))
    states = proxy.add(answer(500), SET_STATE, times=2)

    code, output = pods.execute(run, PYTHONPATH=f"{PACKAGE}:{tmp_path}", **through(proxy))

    assert code == 0, output
    assert len(states.met) == 2
    assert pods.state(run).type == StateType.COMPLETED


def test_a_workspace_interpreter_gets_the_prefect_settings(pods: Pods, tmp_path: Path) -> None:
    workspace, programs = tmp_path / "workspace", tmp_path / "programs"
    shutil.copytree(FLOWS, workspace)
    (workspace / "pyproject.toml").write_text(
        '[project]\nname = "own"\nversion = "1"\ndependencies = ["prefect"]\n'
    )
    programs.mkdir()
    uv = programs / "uv"
    # Called again for the hook of the crash.
    first, second = tmp_path / "environment", tmp_path / "of-hook"
    uv.write_text(
        f"#!/bin/sh\n[ -e {first} ] && file={second} || file={first}\nenv > $file\nexit 3\n"
    )
    uv.chmod(0o755)
    run = pods.taken_up(pull=workspace)

    pods.execute(
        run,
        PATH=f"{programs}:{os.environ['PATH']}",
        PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES="true",
        PREFECT_CLIENT_MAX_RETRIES="7",
        PREFECT_CLIENT_CUSTOM_HEADERS='{"Team": "blue"}',
        PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER="json",
    )

    # It need not have the class of this package.
    for each in (first, second):
        assert "PREFECT_LOGGING_FORMATTERS_JSON_CLASS" not in each.read_text()
    found = first.read_text().splitlines()
    assert "PREFECT_CLIENT_RETRY_EXTRA_CODES=500,504" in found
    assert "PREFECT_CLIENT_MAX_RETRIES=7" in found  # the user's own
    variables = dict(line.split("=", 1) for line in found if line.startswith("PREFECT_"))
    named = variables[attempt.VARIABLE]
    assert named.startswith(f"{run.id}:")
    headers = json.loads(variables["PREFECT_CLIENT_CUSTOM_HEADERS"])
    assert headers == {"Team": "blue", _headers.ATTEMPT: named}


def test_a_long_outage_is_reported_by_exit_code_and_log(pods: Pods, proxy: FaultProxy) -> None:
    run = pods.taken_up()
    proxy.add(answer(500), READ_RUN)

    code, output = pods.execute(run, **through(proxy, **BRIEF))

    # The worker schedules the run again.
    assert code == NO_ANSWER
    assert pods.state(run).type == StateType.PENDING
    sentence = f"The Prefect API has not answered for 0 s (GET /api/flow_runs/{run.id}: 500 "
    assert f"The flow is not started: {sentence}" in output
    assert "PREFECT_HAMILTON_API_OUTAGE_SECONDS sets how long to wait" in output
    assert "Traceback" not in output


def test_a_long_outage_ends_the_preparation_with_a_message(pods: Pods, proxy: FaultProxy) -> None:
    run = pods.taken_up()
    proxy.add(answer(500), READ_DEPLOYMENT)

    code, output = pods.execute(run, **through(proxy, **BRIEF))

    assert code == 0, output  # the state tells it
    state = pods.state(run)
    assert state.type == StateType.CRASHED
    assert str(state.message).startswith("The Prefect API has not answered for 0 s (GET /api/depl")
    pods.wait_for_log(run, str(state.message))


def test_the_exit_code_is_not_0_if_a_failed_preparation_cannot_be_reported(
    pods: Pods, proxy: FaultProxy
) -> None:
    run = pods.taken_up()
    proxy.add(answer(500), READ_DEPLOYMENT)
    proxy.add(answer(500), SET_STATE)

    code, output = pods.execute(run, **through(proxy, **BRIEF))

    assert code == NO_ANSWER, output
    assert pods.state(run).type == StateType.PENDING


def test_the_exit_code_is_not_0_if_the_engine_did_not_run_the_flow(
    pods: Pods, tmp_path: Path
) -> None:
    steps = at_home(tmp_path)
    run = pods.taken_up(pull=[{"own.leave": {}}, *steps])

    code, output = pods.execute(run, PYTHONPATH=f"{PACKAGE}:{tmp_path}")

    assert code == 1, output
    assert "which cannot be reported" in output


def test_the_exit_code_is_not_0_if_the_final_state_cannot_be_reported(
    pods: Pods, proxy: FaultProxy
) -> None:
    run = pods.taken_up()
    proxy.add(answer(500), SET_STATE)
    running = proxy.add(pass_on, SET_STATE, times=1)

    code, output = pods.execute(run, **through(proxy, **BRIEF))

    assert len(running.met) == 1
    assert code == 1, output
    assert "The Prefect API has not answered for 0 s" in output
    assert pods.state(run).type == StateType.RUNNING


def test_sigterm_ends_a_pod_that_repeats_requests(pods: Pods, proxy: FaultProxy) -> None:
    run = pods.taken_up()
    faults = proxy.add(answer(500), API)
    with pods.executing(run, **through(proxy)) as pod:
        faults.wait_until_met(2)
        pod.send_signal(signal.SIGTERM)
        output, _ = pod.communicate(timeout=120)

    assert pod.returncode == NOT_RESCHEDULED, output
    assert "SIGTERM received before the flow could start" in output
    assert "the flow run is not rescheduled" in output


@pytest.mark.parametrize("fault", [answer(500), hang], ids=["500", "hang"])
def test_sigterm_ends_a_pod_whose_flow_cannot_report(
    pods: Pods, proxy: FaultProxy, fault: Action
) -> None:
    run = pods.taken_up(end="wait")
    with pods.executing(run, **through(proxy)) as pod:
        pods.wait_for_log(run, "about to wait")
        pid = engine_pid(pods.log(run))
        proxy.add(fault, API)
        pod.send_signal(signal.SIGTERM)
        output, _ = pod.communicate(timeout=120)

    assert pod.returncode == NOT_RESCHEDULED, output
    assert not is_running(pid)
    assert pods.state(run).type == StateType.RUNNING


@pytest.mark.parametrize(
    "variable", ["PREFECT_HAMILTON_API_OUTAGE_SECONDS", "PREFECT_HAMILTON_GIT_OUTAGE_SECONDS"]
)
def test_an_invalid_number_of_seconds_is_reported_in_one_sentence(
    variable: str, pods: Pods
) -> None:
    run = pods.taken_up()

    code, output = pods.execute(run, **{variable: "10m"})

    assert code == 2
    assert output == f"flow_pod: '10m' is not a number of seconds; correct {variable}\n"
    assert pods.state(run).type == StateType.PENDING


def earned(pods: Pods, end: str, **env: str) -> tuple[FlowRun, State[object]]:
    """A run that has ended, and its state."""
    run = pods.taken_up(end=end)
    assert pods.execute(run, **env)[0] == 0
    return run, pods.state(run)


@pytest.mark.parametrize(
    ("end", "type"), [("return", StateType.COMPLETED), ("raise", StateType.FAILED)]
)
def test_a_worker_starts_nothing_for_an_ended_run(pods: Pods, end: str, type: StateType) -> None:
    run, before = earned(pods, end, PREFECT_RESULTS_PERSIST_BY_DEFAULT=str(end == "raise"))
    assert before.type == type
    # A worker's request that was long under way: Prefect's server accepts it.
    pods.take_up(run)

    code, output = pods.execute(run)

    assert code == 0, output
    assert f"it has already ended, in state '{before.name}'" in output
    after = pods.state(run)
    assert (after.type, after.name, after.message) == (before.type, before.name, before.message)
    assert after.data == before.data
    assert pods.run_count(run) == 1


def test_a_worker_with_a_late_request_starts_nothing(pods: Pods, proxy: FaultProxy) -> None:
    run = pods.flow_run()
    held = proxy.add(hold, SET_STATE)
    with ThreadPoolExecutor() as threads:
        late = threads.submit(
            httpx.post,
            f"{proxy.url}/api/flow_runs/{run.id}/set_state",
            json={"state": {"type": "PENDING", "name": "Pending"}},
            timeout=None,
        )
        held.wait_until_met()
        # Meanwhile another worker takes the run up, and it ends.
        pods.take_up(run)
        assert pods.execute(run)[0] == 0
        assert pods.state(run).type == StateType.COMPLETED
        proxy.end(held)
        assert late.result().json()["status"] == "ACCEPT"
    assert pods.state(run).type == StateType.PENDING

    assert pods.execute(run)[0] == 0

    assert pods.state(run).type == StateType.COMPLETED
    assert pods.run_count(run) == 1


def test_a_pod_of_an_ended_run_does_not_run_the_flow(pods: Pods) -> None:
    run, before = earned(pods, "return")

    code, output = pods.execute(run)

    assert code == 0, output
    assert pods.state(run).id == before.id


def test_an_ended_run_that_was_scheduled_again_runs_again(
    pods: Pods, client: SyncPrefectClient
) -> None:
    run, _ = earned(pods, "return")
    client.set_flow_run_state(run.id, AwaitingRetry())
    pods.take_up(run)

    assert pods.execute(run)[0] == 0

    assert pods.state(run).type == StateType.COMPLETED
    assert pods.run_count(run) == 2


def test_a_run_marked_crashed_before_its_pod_started_runs(
    pods: Pods, client: SyncPrefectClient
) -> None:
    run = pods.taken_up()
    client.set_flow_run_state(run.id, Crashed(message="No active or succeeded pods found"))

    assert pods.execute(run)[0] == 0

    assert pods.state(run).type == StateType.COMPLETED


def test_a_second_pod_of_an_attempt_does_not_run_the_flow(pods: Pods) -> None:
    run = pods.taken_up(end="wait")
    with pods.executing(run):
        pods.wait_for_log(run, "about to wait")

        code, output = pods.execute(run)

        assert code == 1, output
        assert "The flow is not started: another pod has taken it up" in output
        assert pods.state(run).type == StateType.RUNNING
        assert pods.run_count(run) == 1


def test_a_pod_of_an_attempt_that_its_worker_gave_up_does_not_run_the_flow(
    pods: Pods, client: SyncPrefectClient
) -> None:
    run = pods.taken_up()
    began = pods.state(run)
    client.create_flow_run_input(run.id, key=f"{CLAIM}{began.id}", value=GIVEN_UP)

    code, output = pods.execute(run)

    assert code == NO_ANSWER, output
    assert "The flow is not started: its worker schedules it again" in output
    assert pods.state(run).id == began.id


def test_only_one_of_two_simultaneous_pods_runs_the_flow(pods: Pods) -> None:
    run = pods.taken_up()
    with pods.executing(run) as first, pods.executing(run) as second:
        output = [pod.communicate(timeout=120)[0] for pod in (first, second)]

        assert pods.run_count(run) == 1, output
        assert pods.state(run).type == StateType.COMPLETED
        assert 0 in (first.returncode, second.returncode)


def test_a_pod_runs_the_flow_when_the_response_to_its_claim_is_lost(
    pods: Pods, proxy: FaultProxy
) -> None:
    run = pods.taken_up()
    lost = proxy.add(lose_answer, r"POST /api/flow_runs/[^/]+/input$", times=1)

    code, output = pods.execute(run, **through(proxy))

    assert code == 0, output
    assert len(lost.met) == 1
    assert pods.state(run).type == StateType.COMPLETED


def test_a_pod_of_a_rescheduled_attempt_does_not_run_the_flow(
    pods: Pods, client: SyncPrefectClient
) -> None:
    run = pods.taken_up()
    client.set_flow_run_state(run.id, AwaitingRetry())

    code, output = pods.execute(run)

    assert code == 0, output
    assert "it was scheduled again and waits for a worker" in output
    assert pods.state(run).name == "AwaitingRetry"


def test_a_pod_restarted_by_kubernetes_runs_the_flow(pods: Pods) -> None:
    retried = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "relinquish"}
    run = pods.taken_up(end="wait")
    with pods.executing(run, **retried) as first:
        pods.wait_for_log(run, "about to wait")
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=120) == 1

    with pods.executing(run, **retried) as second:
        read_until(second, "about to wait")

    assert pods.run_count(run) == 2


STATES = {
    "S": (StateType.SCHEDULED, "Scheduled"),
    "A": (StateType.SCHEDULED, "AwaitingRetry"),
    "P": (StateType.PENDING, "Pending"),
    "I": (StateType.PENDING, "InfrastructurePending"),
    "R": (StateType.RUNNING, "Running"),
    "Z": (StateType.PAUSED, "Suspended"),
    "C": (StateType.COMPLETED, "Completed"),
    "F": (StateType.FAILED, "Failed"),
    "X": (StateType.CRASHED, "Crashed"),
    "N": (StateType.CANCELLED, "Cancelled"),
}


@pytest.mark.parametrize(
    ("history", "position"),
    [
        ("S", None),
        ("SP", None),
        ("SPI", None),
        ("SPR", None),
        ("SPRAPI", None),
        ("SPRZSP", None),
        ("SPRCAP", None),
        ("SPRFSPI", None),
        # An observer attributed the end of an earlier attempt to this one.
        ("SPRAPX", None),
        ("SPRAPXI", None),
        ("SPRX", None),
        ("SPRC", 3),
        ("SPRCP", 3),
        ("SPRFPI", 3),
        ("SPRNP", 3),
        ("SPRXP", 3),
        # Said late by a worker of the attempt that has ended.
        ("SPRCI", 3),
        ("SPRCPX", 3),
        ("SPRCPXI", 3),
    ],
)
def test_the_state_that_a_run_has_earned(history: str, position: int | None) -> None:
    states = [State[object](type=STATES[each][0], name=STATES[each][1]) for each in history]

    found = attempt.earned_state(states)

    assert found == (None if position is None else states[position])


def test_a_pod_that_starts_after_its_run_was_taken_up_again_does_not_run_the_flow(
    pods: Pods, client: SyncPrefectClient
) -> None:
    run = pods.taken_up()
    earlier = attempt_at(pods, run)
    take_up_again(pods, client, run)
    latest = attempt_at(pods, run)

    code, output = pods.execute(run, **earlier)

    assert code == 0, output
    assert "The flow is not started: it was taken up again, for another pod" in output
    assert pods.state(run).type == StateType.PENDING
    assert pods.execute(run, **latest)[0] == 0
    assert pods.state(run).type == StateType.COMPLETED


def attempt_at(pods: Pods, run: FlowRun) -> dict[str, str]:
    """The variable that a worker which has just taken the run up gives to its pod."""
    return attempt.variables(run.id, pods.state(run).id)


def take_up_again(pods: Pods, client: SyncPrefectClient, run: FlowRun) -> None:
    """Do what workers do when the pod of the run seems to be lost."""
    client.set_flow_run_state(run.id, AwaitingRetry())
    pods.take_up(run)


class Late(NamedTuple):
    """Pods and the project's own server, with a proxy in between."""

    pods: Pods
    proxy: FaultProxy
    client: SyncPrefectClient

    def set_state_late(
        self, run: FlowRun, fault: Action, meets: str, *, ended: bool = False, times: int = 1
    ) -> tuple[int, str]:
        """Exit code and output of a pod whose requests meet a fault until it has lost its run.

        `ended` says that it is ended by SIGTERM then.
        """
        delayed = self.proxy.add(fault, meets, times=times)
        env = attempt_at(self.pods, run) | {"PYTHONPATH": f"{PACKAGE}:{self.pods.notes.parent}"}
        env |= through(self.proxy, PREFECT_API_REQUEST_TIMEOUT="60")
        with self.pods.executing(run, **env) as pod:
            delayed.wait_until_met(times)
            take_up_again(self.pods, self.client, run)
            if ended:
                pod.send_signal(signal.SIGTERM)
            else:
                self.proxy.end(delayed)
            output, _ = pod.communicate(timeout=120)
        return pod.returncode, output


@pytest.fixture
def late(prefect_client_python: Path, tmp_path: Path) -> Iterator[Late]:
    home = tmp_path / "server"
    with (
        services.prefect_server(home, program=services.OWN_SERVER) as server,
        FaultProxy(server.port) as proxy,
        temporary_settings({PREFECT_API_URL: f"{server.url}/api"}),
        get_client(sync_client=True) as client,
    ):
        yield Late(Pods(client, server, prefect_client_python, tmp_path), proxy, client)


@pytest.mark.parametrize("is_fresh", [False, True], ids=["forked", "in a new interpreter"])
def test_a_flow_does_not_begin_after_its_run_was_taken_up_again(
    late: Late, tmp_path: Path, is_fresh: bool
) -> None:
    """Its request was on its way while the pod was lost, and the run was given to another one."""
    run = late.pods.taken_up(pull=at_home(tmp_path) if is_fresh else FLOWS)

    code, output = late.set_state_late(run, hold, SET_STATE)

    assert code == 0, output
    assert "Flow run was taken up again, for another pod" in output
    assert late.pods.state(run).type == StateType.PENDING
    assert late.pods.run_count(run) == 0
    assert not any("twice 21" in line for line in late.pods.log(run))


def test_a_failed_pull_step_does_not_crash_a_run_that_was_taken_up_again(
    late: Late, tmp_path: Path
) -> None:
    run = late.pods.taken_up(pull=[*at_home(tmp_path), {"own.absent": {}}])

    code, output = late.set_state_late(run, hold, SET_STATE)

    assert "own.absent" in output
    assert code == 0, output
    assert late.pods.state(run).type == StateType.PENDING


def test_a_pod_that_is_ended_before_it_starts_leaves_a_run_that_was_taken_up_again(
    late: Late,
) -> None:
    run = late.pods.taken_up()

    # The first request of the supervisor, and that of the engine.
    code, output = late.set_state_late(run, hang, READ_RUN, ended=True, times=2)

    assert code == 0, output
    assert "SIGTERM received before the flow could start" in output
    assert late.pods.state(run).type == StateType.PENDING
