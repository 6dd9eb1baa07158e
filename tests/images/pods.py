"""Flow runs and the pods that execute them: processes against a real Prefect server."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import tenacity
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentCreate
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Pending

from tests.services import ROOT, Service

FLOWS = ROOT / "tests/images"
PACKAGE = ROOT / "src"

eventually = tenacity.retry(
    stop=tenacity.stop_after_delay(60), wait=tenacity.wait_fixed(0.2), reraise=True
)


Step = dict[str, dict[str, object]]


def go_to(folder: Path) -> Step:
    return {"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}


class Pods:
    """Deployments and their pods: processes with the environment that a worker would give them.

    They have Prefect's client and nothing else of Prefect, as in the image.
    """

    def __init__(
        self, client: SyncPrefectClient, server: Service, python: Path, folder: Path
    ) -> None:
        self.python = python
        self._client = client
        self._api = f"{server.url}/api"
        self.notes = folder / "notes"
        self.notes.mkdir()
        self._home = folder / "home"

    def flow_run(
        self,
        flow_name: str = "probe",
        pull: Path | list[Step] = FLOWS,
        file: Path = FLOWS / "probes.py",
        **parameters: object,
    ) -> FlowRun:
        """A flow run of a deployment with the pull steps, or with one that goes to the folder."""
        entrypoint = f"{file.name}:{flow_name}"
        flow_id = self._client.create_flow(load_flow_from_entrypoint(f"{file}:{flow_name}"))
        steps = pull if isinstance(pull, list) else [go_to(pull)]
        deployment = self._client.request(
            "POST",
            "/deployments/",
            json=DeploymentCreate(
                flow_id=flow_id,
                name=str(uuid4()),
                entrypoint=entrypoint,
                pull_steps=steps,
                enforce_parameter_schema=False,
            ).model_dump(mode="json", exclude_unset=True),
        ).json()
        return self._client.create_flow_run_from_deployment(
            UUID(deployment["id"]), parameters=parameters
        )

    def taken_up(self, *arguments: Any, **parameters: object) -> FlowRun:
        """As `flow_run`; a worker has set it Pending, as before it starts a pod."""
        run = self.flow_run(*arguments, **parameters)
        self.take_up(run)
        return run

    def take_up(self, flow_run: FlowRun) -> None:
        """Set the run Pending, as a worker does."""
        answer = self._client.set_flow_run_state(flow_run.id, Pending())
        assert answer.status == SetStateStatus.ACCEPT, answer

    @contextmanager
    def executing(self, flow_run: FlowRun, **env: str) -> Iterator[subprocess.Popen[str]]:
        """The pod's process; killed if it has not ended when the block does."""
        with self._started(PREFECT__FLOW_RUN_ID=str(flow_run.id), **env) as process:
            yield process

    @contextmanager
    def standing_by(self, **env: str) -> Iterator[subprocess.Popen[str]]:
        """The process of a standby pod, whose input can be written to; killed in the end.

        Returns when it is idle. Its file is `notes/flow-run`.
        """
        standby = {
            "PREFECT_HAMILTON_STANDBY_SECONDS": "600",
            "PREFECT_HAMILTON_STANDBY_FILE": str(self.notes / "flow-run"),
        }
        with self._started(stdin=subprocess.PIPE, **standby | env) as process:
            assert process.stdout
            for line in process.stdout:
                if "Standby pod is idle" in line:
                    break
            yield process

    @contextmanager
    def _started(self, stdin: int | None = None, **env: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [self.python, "-P", "-m", "prefect_hamilton.flow_pod"],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(PACKAGE),
                "PREFECT_HOME": str(self._home),
                "PREFECT_API_URL": self._api,
                "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule",
                "PROBE_NOTES": str(self.notes),
                "DO_NOT_TRACK": "1",
                **env,
            },
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                # The engine, which outlives its supervisor, holds the output.
                for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                    each.kill()
            process.communicate()

    def execute(self, flow_run: FlowRun, **env: str) -> tuple[int, str]:
        """Exit code and output of a pod that ends by itself."""
        with self.executing(flow_run, **env) as process:
            output, _ = process.communicate(timeout=120)
            return process.returncode, output

    def run_count(self, flow_run: FlowRun) -> int:
        """How often the run was Running, by the server's count."""
        return self._client.read_flow_run(flow_run.id).run_count

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


def engine_pid(messages: list[str]) -> int:
    """The process that ran the flow, by the flow's own word."""
    (pid,) = [m[1] for line in messages if (m := re.match(r"pid (\d+),", line))]
    return int(pid)


@eventually
def wait_until_sigterm_is(pod: subprocess.Popen[str], mask: str) -> None:
    """Return when SIGTERM is in the process's mask: `SigBlk` of held, `SigCgt` of caught ones."""
    status = Path(f"/proc/{pod.pid}/status").read_text()
    signals = int(re.findall(rf"{mask}:\s+(\w+)", status)[0], 16)
    assert signals & 1 << (signal.SIGTERM - 1)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
