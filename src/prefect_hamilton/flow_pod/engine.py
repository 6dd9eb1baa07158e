"""The engine's process: prepares the workspace, waits for its supervisor, runs the flow."""

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

import anyio
from prefect.client.orchestration import get_client
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from prefect_hamilton.flow_pod import JSON_FORMATTER, _prefect, outages, pull_errors
from prefect_hamilton.states import NO_ANSWER

LEAVE_NO_TRACE = (
    "prefect.deployments.steps.git_clone",
    "prefect.deployments.steps.pull.git_clone",
    "prefect.deployments.steps.set_working_directory",
    "prefect.deployments.steps.pull.set_working_directory",
)
"""Pull steps after which this interpreter is as it was, but for its folder."""


class Prepared(NamedTuple):
    """What Prefect would now replace this process by: a command, its folder and environment."""

    command: list[str]
    folder: Path
    environment: dict[str, str]
    needs_fresh_interpreter: bool
    """Whether a pull step may have installed something, started threads or imported modules."""


def prepare(config: _prefect.WorkspaceSupervisorConfig) -> Prepared:
    """Run the deployment's pull steps and write the manifest that the hooks need.

    Raises what a step raises.
    """
    launched: list[tuple[list[str], Path, dict[str, str]]] = []
    folder = Path.cwd()

    async def keep(command: list[str], *, cwd: Path, environment: dict[str, str]) -> int:
        launched.append((command, cwd, environment))
        return 0

    async def start_afresh() -> None:
        os.chdir(folder)
        shutil.rmtree(config.workspace_root)
        config.workspace_root.mkdir()
        await _prefect.prepare_workspace(config, keep)

    async def prepare_and_log() -> bool:
        try:
            leaves_traces = await has_other_steps(config.flow_run_id)
            await AsyncRetrying(
                retry=retry_if_exception(_is_worth_another_try),
                stop=stop_after_attempt(3),
                wait=wait_random_exponential(max=10),
                reraise=True,
            )(start_afresh)
        finally:
            await _prefect.APILogHandler.aflush()
        return leaves_traces

    with _without_tracebacks_of_git_clone():
        leaves_traces = anyio.run(prepare_and_log)
    ((command, cwd, environment),) = launched
    return Prepared(command, cwd, environment, leaves_traces)


async def has_other_steps(flow_run_id: UUID) -> bool:
    """Whether the flow run's deployment has a pull step that may change the interpreter."""
    async with get_client() as client:
        flow_run = await client.read_flow_run(flow_run_id)
        if flow_run.deployment_id is None:
            return False
        deployment = await client.read_deployment(flow_run.deployment_id)
    return leave_traces(deployment.pull_steps or [])


def leave_traces(steps: Sequence[dict[str, Any]]) -> bool:
    """Whether one of the pull steps is not known to leave the interpreter as it was.

    A step that `requires` a package installs it.
    """
    return any(
        name not in LEAVE_NO_TRACE or (inputs or {}).get("requires")
        for step in steps
        for name, inputs in step.items()
    )


@contextmanager
def _without_tracebacks_of_git_clone() -> Iterator[None]:
    """Keep Prefect from logging a traceback of an error that is reported in a sentence."""
    logger = logging.getLogger(_prefect.PULL_STEP_LOGGER)

    def is_wanted(record: logging.LogRecord) -> bool:
        return "git_clone" not in record.getMessage()

    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)


def _is_worth_another_try(error: BaseException) -> bool:
    """Whether the Git server failed where Prefect, which repeats `git clone`, does not try again.

    That is while it fetches the commit that a deployment is pinned to.
    """
    failed = error.__cause__
    return isinstance(failed, subprocess.CalledProcessError) and pull_errors.is_unreachable(failed)


async def report(flow_run_id: UUID, error: Exception) -> bool:
    """Tell the flow run's log and state why it cannot run; False if the state could not be set."""
    sentence = outages.explain(error) or pull_errors.explain(error)
    async with get_client() as client:
        flow_run = await client.read_flow_run(flow_run_id)
        _prefect.flow_run_logger(flow_run).error(sentence)
        await _prefect.APILogHandler.aflush()
        proposer = _prefect.StateProposer(client=client)
        state = await proposer.propose_crashed(flow_run, sentence)
    return state is not None


def adopt(prepared: Prepared) -> None:
    """Make this process what the new one would have been: folder, environment, import path."""
    os.chdir(prepared.folder)
    os.environ.clear()
    os.environ.update(prepared.environment)
    # The workspace may bring settings: prefect.toml, pyproject.toml, .env.
    _prefect.refresh_global_settings_context()
    # As `python -m` with PYTHONPATH; entries that are there already keep their place.
    first = [str(prepared.folder), *prepared.environment["PYTHONPATH"].split(os.pathsep)]
    sys.path[:0] = [entry for entry in dict.fromkeys(first) if entry not in sys.path]
    importlib.invalidate_caches()


def run(config_path: Path, go: int) -> int:
    """Run the flow once the descriptor `go` has given the variables of the control channel.

    They come as a JSON object, an empty one where there is no channel. Returns the exit code. If
    `go` ends without a word, the run was not to be started, and 0.
    """
    config = _prefect.read_model(config_path, _prefect.WorkspaceSupervisorConfig)
    failure: Exception | None = None
    try:
        prepared = prepare(config)
    except Exception as error:
        failure = error
        if sentence := outages.explain(error):
            sys.stderr.write(f"flow_pod: {sentence}\n")
        elif pull_errors.git_failure(error) is None:
            traceback.print_exception(error)
    with os.fdopen(go, encoding="utf-8") as words:
        said = words.read()
    if not said:
        return 0
    if failure is not None:
        # Not 0 tells the supervisor to mark the run as crashed.
        if anyio.run(report, config.flow_run_id, failure):
            return 0
        return NO_ANSWER if outages.explain(failure) else 1
    channel: dict[str, str] = json.loads(said)
    default = [_prefect.get_sys_executable(), "-m", "prefect.engine"]
    # Another command is the workspace's own interpreter or environment.
    if prepared.command[:3] != default:
        # It may not have this package: Prefect's own formatter then writes JSON.
        prepared.environment.pop(JSON_FORMATTER, None)
        _become(
            prepared.command,
            prepared.folder,
            outages.FOREIGN_SETTINGS | prepared.environment | channel,
        )
    if prepared.needs_fresh_interpreter:
        fresh = [default[0], "-P", "-m", "prefect_hamilton.flow_pod.fresh"]
        _become(fresh, prepared.folder, prepared.environment | channel)
    adopt(prepared)
    os.environ.update(channel)
    return _prefect.run_engine([prepared.environment["PREFECT__FLOW_ENTRYPOINT"]])


def _become(command: list[str], folder: Path, environment: dict[str, str]) -> NoReturn:
    """Replace this process."""
    os.chdir(folder)
    os.execvpe(command[0], command, environment)  # noqa: S606
