"""The private names of Prefect that a flow pod uses, and the version that has them.

Prefect promises none of them: `tests/images/test_prefect_contract.py` compares them, their
signatures and the order of their calls with the installed packages. No other module here imports a
private name, except `pull_errors`, which the image of the server also uses.
"""

import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import prefect

from prefect_hamilton import logs

SUPPORTED = "3.9"


def exit_unsupported(missing: str = "") -> None:
    """End the process with the required and the installed version of Prefect in one sentence."""
    lacks = f", where {missing}" if missing else ""
    found = f"found {prefect.__version__}{lacks}"
    with logs.lines("prefect.flow_pod"):
        sys.exit(f"flow_pod: this image supports Prefect {SUPPORTED}.x; {found}")


if prefect.__version__.split(".")[:2] != SUPPORTED.split("."):
    exit_unsupported()

try:
    from prefect import flow_engine
    from prefect._internal.attempt_control import (
        AttemptConclusion,
        EngineOutcomeReceipt,
        Intent,
    )
    from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.context import refresh_global_settings_context
    from prefect.flow_engine import (
        AsyncFlowRunEngine,
        FlowRunEngine,
        _main,
        _send_heartbeats,
    )
    from prefect.logging.handlers import APILogHandler
    from prefect.logging.loggers import flow_run_logger
    from prefect.runner import _workspace_supervisor
    from prefect.runner._control_channel import ControlChannel, ControlSignalStatus
    from prefect.runner._flow_run_executor import (
        FlowRunExecutionResult,
        FlowRunExecutor,
        FlowRunExecutorContext,
    )
    from prefect.runner._process_manager import ProcessHandle, create_isolated_termination_scope
    from prefect.runner._state_proposer import StateProposer
    from prefect.runner._workspace_hook_runner import WorkspaceHookRunner
    from prefect.runner._workspace_resolver import prepare_workspace as prepare_with_deployment
    from prefect.runner._workspace_runtime import (
        PreparedWorkspaceManifest,
        WorkspaceSupervisorConfig,
        read_model,
        write_private_model,
    )

    # Imported only to fail if the names no longer exist: they are replaced below.
    from prefect.runner._workspace_supervisor import (  # type: ignore[attr-defined]  # noqa: F401
        _launch_engine,
        prepare_workspace_for_flow_run,
    )
    from prefect.utilities.processutils import get_sys_executable
except ImportError as error:
    exit_unsupported(str(error))

__all__ = [
    "APILogHandler",
    "AttemptConclusion",
    "ControlChannel",
    "ControlSignalStatus",
    "EngineOutcomeReceipt",
    "FlowRunExecutionResult",
    "FlowRunExecutor",
    "FlowRunExecutorContext",
    "Intent",
    "PrefectHttpxAsyncClient",
    "PrefectHttpxSyncClient",
    "PreparedWorkspaceManifest",
    "ProcessHandle",
    "StateProposer",
    "WorkspaceHookRunner",
    "WorkspaceSupervisorConfig",
    "after_begin",
    "create_isolated_termination_scope",
    "flow_run_logger",
    "get_sys_executable",
    "prepare_workspace",
    "read_model",
    "refresh_global_settings_context",
    "run_engine",
    "write_private_model",
]

PULL_STEP_LOGGER = "prefect._internal"
"""Logs the traceback of a pull step that fails."""

Launch = Callable[..., Coroutine[Any, Any, int]]
"""As `_launch_engine`: the engine's command, and by name its `cwd` and `environment`."""


def run_engine(arguments: list[str]) -> int:
    """Run the flow in this process, as `python -m prefect.engine`; returns the exit code.

    Synchronous flows and their subflows end without their threads of heartbeats, as asynchronous
    ones do in Prefect: such a thread sleeps for whole seconds before it notices the end.
    """
    setattr(flow_engine, "_send_heartbeats", partial(_send_heartbeats, join_on_exit=False))  # noqa: B010
    return _main(arguments)


def after_begin(call: Callable[[], None]) -> None:
    """Make the engine call this in this process when a flow run has become Running."""
    begin, begin_async = FlowRunEngine.begin_run, AsyncFlowRunEngine.begin_run

    def begin_run(self: FlowRunEngine[Any, Any]) -> Any:
        state = begin(self)
        call()
        return state

    async def begin_run_async(self: AsyncFlowRunEngine[Any, Any]) -> Any:
        state = await begin_async(self)
        call()
        return state

    setattr(FlowRunEngine, "begin_run", begin_run)  # noqa: B010  # a method of Prefect's
    setattr(AsyncFlowRunEngine, "begin_run", begin_run_async)  # noqa: B010


async def prepare_workspace(
    config: WorkspaceSupervisorConfig,
    launch: Launch,
    client: PrefectClient,
    flow_run: FlowRun,
    deployment: DeploymentResponse,
) -> None:
    """Run the pull steps, write the manifest, and call `launch` instead of starting the engine.

    This is Prefect's own `python -m prefect.runner._workspace_supervisor`, stopped before its last
    step, and without its reading flow run and deployment again. Raises the exception of a pull
    step.
    """

    async def prepare(_: Any, root: Path | str) -> Any:
        return await prepare_with_deployment(client, flow_run, deployment, root)

    _workspace_supervisor._launch_engine = launch
    setattr(_workspace_supervisor, "prepare_workspace_for_flow_run", prepare)  # noqa: B010
    await _workspace_supervisor.supervise(config)
