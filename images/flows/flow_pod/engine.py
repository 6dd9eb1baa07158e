"""The engine's process: prepares the workspace, waits for its supervisor, runs the flow."""

import importlib
import logging
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import anyio
from prefect import context, flow_engine
from prefect.client.orchestration import get_client
from prefect.logging.handlers import APILogHandler
from prefect.logging.loggers import flow_run_logger
from prefect.runner import _workspace_supervisor
from prefect.runner._state_proposer import StateProposer
from prefect.runner._workspace_runtime import WorkspaceSupervisorConfig, read_model
from prefect.utilities.processutils import get_sys_executable
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from flow_pod import pull_errors


class Prepared(NamedTuple):
    """What Prefect would now replace this process by: a command, its folder and environment."""

    command: list[str]
    folder: Path
    environment: dict[str, str]


def prepare(config: WorkspaceSupervisorConfig) -> Prepared:
    """Run the deployment's pull steps and write the manifest that the hooks need.

    This is Prefect's own `python -m prefect.runner._workspace_supervisor`, stopped before its
    last act. Raises what a step raises.
    """
    prepared: list[Prepared] = []
    folder = Path.cwd()

    async def keep(command: list[str], *, cwd: Path, environment: dict[str, str]) -> int:
        prepared.append(Prepared(command, cwd, environment))
        return 0

    async def start_afresh() -> None:
        os.chdir(folder)
        shutil.rmtree(config.workspace_root)
        config.workspace_root.mkdir()
        await _workspace_supervisor.supervise(config)

    async def prepare_and_log() -> None:
        try:
            await AsyncRetrying(
                retry=retry_if_exception(_is_worth_another_try),
                stop=stop_after_attempt(3),
                wait=wait_random_exponential(max=10),
                reraise=True,
            )(start_afresh)
        finally:
            await APILogHandler.aflush()

    _workspace_supervisor._launch_engine = keep
    anyio.run(prepare_and_log)
    return prepared[0]


def _is_worth_another_try(error: BaseException) -> bool:
    """Whether the Git server failed where Prefect, which repeats `git clone`, does not try again.

    That is while it fetches the commit that a deployment is pinned to.
    """
    failed = error.__cause__
    return isinstance(failed, subprocess.CalledProcessError) and pull_errors.is_unreachable(failed)


async def report(flow_run_id: UUID, error: Exception) -> bool:
    """Tell the flow run's log and state why it cannot run; False if the state could not be set."""
    sentence = pull_errors.explain(error)
    async with get_client() as client:
        flow_run = await client.read_flow_run(flow_run_id)
        flow_run_logger(flow_run).error(sentence)
        await APILogHandler.aflush()
        state = await StateProposer(client=client).propose_crashed(flow_run, sentence)
    return state is not None


def adopt(prepared: Prepared) -> None:
    """Make this process what the new one would have been: folder, environment, import path."""
    os.chdir(prepared.folder)
    os.environ.clear()
    os.environ.update(prepared.environment)
    # The workspace may bring settings: prefect.toml, pyproject.toml, .env.
    context.refresh_global_settings_context()
    # As `python -m` with PYTHONPATH; entries that are there already keep their place.
    first = [str(prepared.folder), *prepared.environment["PYTHONPATH"].split(os.pathsep)]
    sys.path[:0] = [entry for entry in dict.fromkeys(first) if entry not in sys.path]
    importlib.invalidate_caches()


def run(config_path: Path, go: int) -> int:
    """Run the flow once the descriptor `go` has given the control channel as `port token`.

    Returns the exit code. If `go` ends without a word, the run was not to be started, and 0.
    """
    config = read_model(config_path, WorkspaceSupervisorConfig)
    # It would print a traceback of what is told in a sentence.
    logging.getLogger("prefect._internal").addFilter(lambda r: "git_clone" not in r.getMessage())
    failure: Exception | None = None
    try:
        prepared = prepare(config)
    except Exception as error:
        failure = error
        if pull_errors.git_failure(error) is None:
            traceback.print_exception(error)
    with os.fdopen(go, encoding="ascii") as words:
        control = words.read().split()
    if not control:
        return 0
    if failure is not None:
        # Not 0 tells the supervisor to mark the run as crashed.
        return 0 if anyio.run(report, config.flow_run_id, failure) else 1
    port, token = control
    channel = {"PREFECT__CONTROL_PORT": port, "PREFECT__CONTROL_TOKEN": token}
    if prepared.command[:3] != [get_sys_executable(), "-m", "prefect.engine"]:
        # The workspace brings its own interpreter or environment.
        os.execvpe(prepared.command[0], prepared.command, prepared.environment | channel)  # noqa: S606
    adopt(prepared)
    os.environ.update(channel)
    return flow_engine._main([prepared.environment["PREFECT__FLOW_ENTRYPOINT"]])
