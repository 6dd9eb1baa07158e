"""The engine's process: prepares the workspace, waits for its supervisor, runs the flow."""

import importlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from uuid import UUID

import anyio
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from prefect_hamilton import extensions, traces
from prefect_hamilton.flow_pod import JSON_FORMATTER, _prefect, attempt, outages, pull_errors
from prefect_hamilton.states import NO_ANSWER

logger = logging.getLogger("prefect.flow_pod")

LEAVE_NO_TRACE = (
    "prefect.deployments.steps.git_clone",
    "prefect.deployments.steps.pull.git_clone",
    "prefect.deployments.steps.set_working_directory",
    "prefect.deployments.steps.pull.set_working_directory",
)
"""Pull steps that change nothing in this interpreter except the working directory."""


class Prepared(NamedTuple):
    """What Prefect would now replace this process by: a command, its folder and environment."""

    command: list[str]
    folder: Path
    environment: dict[str, str]
    needs_fresh_interpreter: bool
    """Whether a pull step may have installed something, started threads or imported modules."""


def prepare(config: _prefect.WorkspaceSupervisorConfig, *, clears: bool = True) -> Prepared:
    """Run the deployment's pull steps and write the manifest that the hooks need.

    `clears` says to empty the workspace's folder first. Raises what a step raises.
    """
    launched: list[tuple[list[str], Path, dict[str, str]]] = []
    folder = Path.cwd()

    async def keep(command: list[str], *, cwd: Path, environment: dict[str, str]) -> int:
        launched.append((command, cwd, environment))
        return 0

    async def start_afresh(*of_run: Any) -> None:
        os.chdir(folder)
        if clears:
            shutil.rmtree(config.workspace_root)
            config.workspace_root.mkdir()
        await _prefect.prepare_workspace(config, keep, *of_run)

    async def prepare_and_log() -> bool:
        try:
            async with get_client() as client:
                flow_run = await client.read_flow_run(config.flow_run_id)
                if flow_run.deployment_id is None:
                    raise ValueError("Flow run does not have an associated deployment")
                deployment = await client.read_deployment(flow_run.deployment_id)
                await AsyncRetrying(
                    retry=retry_if_exception(_is_git_server_away),
                    stop=stop_after_delay(outages.git_seconds()),
                    wait=wait_random_exponential(multiplier=2, max=20),
                    before_sleep=partial(_log_git_failure, flow_run),
                    reraise=True,
                )(start_afresh, client, flow_run, deployment)
        finally:
            await _prefect.APILogHandler.aflush()
        return leave_traces(deployment.pull_steps or [])

    with _without_tracebacks_of_git_clone():
        leaves_traces = anyio.run(prepare_and_log)
    ((command, cwd, environment),) = launched
    return Prepared(command, cwd, environment, leaves_traces)


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


def _is_git_server_away(error: BaseException) -> bool:
    """Whether git failed because its server did not answer, so that it may answer later.

    Prefect repeats `git clone` for some seconds only, and not at all while it fetches the commit
    that a deployment is pinned to.
    """
    failed = pull_errors.git_failure(error)
    return failed is not None and pull_errors.is_unreachable(failed)


def _log_git_failure(flow_run: FlowRun, attempt: RetryCallState) -> None:
    if attempt.outcome and (error := attempt.outcome.exception()):
        _prefect.flow_run_logger(flow_run).warning(
            "Cannot clone: %s. Retrying for %g s in total.",
            pull_errors.explain_wait(error),
            outages.git_seconds(),
        )


async def report(flow_run_id: UUID, error: Exception) -> bool:
    """Report in log and state why the flow cannot run; False if the state could not be set."""
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
    has_other_settings = (
        settings_in(prepared.environment) != settings_in(os.environ)
        or brings_settings(Path.cwd())
        or brings_settings(prepared.folder)
    )
    os.chdir(prepared.folder)
    os.environ.clear()
    os.environ.update(prepared.environment)
    if has_other_settings:
        _prefect.refresh_global_settings_context()
    # As `python -m` with PYTHONPATH; entries that are there already keep their place.
    first = [str(prepared.folder), *prepared.environment["PYTHONPATH"].split(os.pathsep)]
    sys.path[:0] = [entry for entry in dict.fromkeys(first) if entry not in sys.path]
    importlib.invalidate_caches()


def settings_in(env: Mapping[str, str]) -> dict[str, str]:
    """Return Prefect's settings; what begins with PREFECT__ is about the flow run."""
    return {
        name: value
        for name, value in env.items()
        if name.startswith("PREFECT_") and not name.startswith("PREFECT__")
    }


def brings_settings(folder: Path) -> bool:
    """Whether Prefect reads settings from a file in the folder, if it is the current one."""
    with suppress(OSError):
        if "tool.prefect" in (folder / "pyproject.toml").read_text(errors="replace"):
            return True
    return any((folder / name).exists() for name in ("prefect.toml", ".env"))


def run(config_path: Path, go: int, *, clears: bool = True) -> int:
    """Run the flow once the descriptor `go` has given the variables of its attempt and channel.

    They come as a JSON object, which may be empty. Returns the exit code. If
    `go` is closed without data, the run must not be started, and the code is 0.
    """
    config = _prefect.read_model(config_path, _prefect.WorkspaceSupervisorConfig)
    failure: Exception | None = None
    try:
        prepared = prepare(config, clears=clears)
    except Exception as error:
        failure = error
        if sentence := outages.explain(error):
            logger.error("%s", sentence)
        elif pull_errors.git_failure(error) is None:
            outages.log_failure("The flow cannot be prepared", error)
    with os.fdopen(go, encoding="utf-8") as words:
        said = words.read()
    if not said:
        return 0
    given: dict[str, str] = json.loads(said)
    if failure is not None:
        os.environ.update(given)
        attempt.name_in_requests()
        # A code other than 0 makes the supervisor mark the run as crashed.
        if anyio.run(report, config.flow_run_id, failure):
            return 0
        return NO_ANSWER if outages.explain(failure) else 1
    prepared.environment.update(given)
    default = [_prefect.get_sys_executable(), "-m", "prefect.engine"]
    # Another command is the workspace's own interpreter or environment.
    if prepared.command[:3] != default:
        # It may not have this package: Prefect's own formatter then writes JSON, also for hooks.
        prepared.environment.pop(JSON_FORMATTER, None)
        manifest = _prefect.read_model(config.manifest_path, _prefect.PreparedWorkspaceManifest)
        manifest.environment.pop(JSON_FORMATTER, None)
        _prefect.write_private_model(config.manifest_path, manifest)
        settings = outages.FOREIGN_SETTINGS | prepared.environment
        settings |= attempt.settings(prepared.environment)
        _become(prepared.command, prepared.folder, settings)
    if prepared.needs_fresh_interpreter:
        fresh = [default[0], "-P", "-m", "prefect_hamilton.flow_pod.fresh"]
        _become(fresh, prepared.folder, prepared.environment)
    adopt(prepared)
    attempt.name_in_requests()
    extensions.load_lazily()
    traces.start()
    return _prefect.run_engine([prepared.environment["PREFECT__FLOW_ENTRYPOINT"]])


def _become(command: list[str], folder: Path, environment: dict[str, str]) -> NoReturn:
    """Replace this process."""
    os.chdir(folder)
    os.execvpe(command[0], command, environment)  # noqa: S606
