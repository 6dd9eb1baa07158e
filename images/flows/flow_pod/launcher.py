"""The supervisor: forks the engine and answers for the flow run until it ends.

Follows `execute` in `prefect/cli/flow_run.py` of Prefect 3.8.8, which Prefect's client lacks.
"""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import cast
from uuid import UUID

import anyio
import anyio.abc
import anyio.to_thread
from prefect._internal.attempt_control import Intent
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort, Pause
from prefect.logging import get_logger
from prefect.runner._control_channel import ControlChannel, ControlSignalStatus
from prefect.runner._flow_run_executor import FlowRunExecutor, FlowRunExecutorContext
from prefect.runner._process_manager import ProcessHandle, create_isolated_termination_scope
from prefect.runner._workspace_hook_runner import WorkspaceHookRunner
from prefect.runner._workspace_runtime import WorkspaceSupervisorConfig, write_private_model
from prefect.states import AwaitingRetry
from prefect.utilities.engine import propose_state
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_delay, wait_fixed

from flow_pod import engine

logger = get_logger("flow_pod")


class EngineProcess:
    """The forked process. `returncode` is None until it has ended, as for a subprocess."""

    def __init__(self, pid: int, go: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._go = go

    def let_go(self, port: int, token: str) -> None:
        """Tell the engine to run the flow, and the control channel that it reports to."""
        with os.fdopen(self._go, "w", encoding="ascii") as words:
            words.write(f"{port} {token}")

    def wait(self) -> int:
        """Wait until the process has ended; returns its exit code, negative for a signal."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


class ForkedEngineStarter:
    """Starts a flow run in the process that was forked for it (Prefect's `ProcessStarter`)."""

    def __init__(self, process: EngineProcess, control_channel: ControlChannel) -> None:
        self._process = process
        self._control_channel = control_channel

    async def start(
        self,
        flow_run: FlowRun,
        task_status: anyio.abc.TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Let the engine run and wait for its end; `task_status` gets its handle at once."""
        self._process.let_go(*self._control_channel.register(flow_run.id))
        task_status.started(
            ProcessHandle(
                self._process,  # type: ignore[arg-type]  # has what a handle uses of a process
                termination_scope=create_isolated_termination_scope(self._process.pid),
            )
        )
        await anyio.to_thread.run_sync(self._process.wait)


def fork_engine(config_path: Path) -> EngineProcess:
    """Fork the engine's process and return its handle; in the engine, run and exit.

    Called before any thread or event loop exists: neither survives a fork.
    """
    waiting, go = os.pipe()
    pid = os.fork()
    if pid:
        os.close(waiting)
        return EngineProcess(pid, go)
    os.close(go)
    # A process group of its own: the end of the pod reaches the supervisor first, which tells the
    # engine what is meant before it signals the group.
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    sys.exit(engine.run(config_path, waiting))


def termination_intent() -> Intent | None:
    """Return what SIGTERM means for the run; None leaves the engine to mark it Crashed."""
    behavior = os.environ.get("PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR", "").lower()
    return cast(Intent, behavior) if behavior in ("reschedule", "relinquish") else None


async def reschedule(supervised: FlowRunExecutorContext, flow_run_id: UUID) -> None:
    """Propose `AwaitingRetry`, unless the run has ended otherwise than by a crash.

    A run that was marked Crashed is rescheduled: whoever watches the pods may have seen its end
    before this did.
    """
    try:
        state = (await supervised.client.read_flow_run(flow_run_id)).state
        if state is not None and state.is_final() and not state.is_crashed():
            logger.info("Flow run is already in final state %r; not rescheduling.", state.name)
            return
    except Exception:
        logger.warning("Failed to read flow run state; rescheduling anyway.", exc_info=True)
    try:
        await propose_state(supervised.client, AwaitingRetry(), flow_run_id=flow_run_id)
        logger.info("Flow run rescheduled.")
    except (Abort, Pause):
        logger.info("Flow run was not rescheduled.")
    except Exception:
        logger.exception("Failed to reschedule flow run")


async def stay_rescheduled(supervised: FlowRunExecutorContext, flow_run_id: UUID) -> None:
    """Reschedule the run once more if it is marked Crashed after all.

    Whoever watches the pods reads the state before it sets Crashed, and may have read it before
    the run was rescheduled. Watches until the run is taken up, for some seconds at most.
    """

    async def is_scheduled() -> bool:
        state = (await supervised.client.read_flow_run(flow_run_id)).state
        if state is not None and state.is_crashed():
            await reschedule(supervised, flow_run_id)
            return False
        return state is not None and state.is_scheduled()

    try:
        await AsyncRetrying(
            retry=retry_if_result(bool), stop=stop_after_delay(3), wait=wait_fixed(0.25)
        )(is_scheduled)
    except RetryError:
        logger.debug("Flow run is still waiting to be taken up.")
    except Exception:
        logger.warning("Failed to see whether the flow run stays rescheduled.", exc_info=True)


async def run_until_terminated(
    supervised: FlowRunExecutorContext,
    executor: FlowRunExecutor,
    flow_run_id: UUID,
    intent: Intent,
) -> bool:
    """Run the flow; True if SIGTERM ended it, with its next state decided here."""
    terminating = anyio.Event()
    terminated = False
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminating.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    async with anyio.create_task_group() as tasks:

        async def terminate_on_signal() -> None:
            nonlocal terminated
            await terminating.wait()
            logger.info("SIGTERM received, initiating graceful shutdown...")
            # The engine learns the intent before it sees a signal, so that it ends without
            # proposing a state; one that does not answer gets no chance to propose any.
            status = await supervised.control_channel.signal(flow_run_id, intent)
            if status is ControlSignalStatus.ALREADY_CONCLUDED:
                logger.info("Engine already reported a final state; leaving it unchanged.")
                return
            if intent == "reschedule":
                await reschedule(supervised, flow_run_id)
            await supervised.process_manager.kill(
                flow_run_id, force=status is not ControlSignalStatus.ACKNOWLEDGED
            )
            terminated = True
            # Nothing may be awaited between the kill and this, or the executor would see the
            # exit code and propose Crashed.
            tasks.cancel_scope.cancel()

        tasks.start_soon(terminate_on_signal)
        await executor.submit()
        if not terminating.is_set():
            tasks.cancel_scope.cancel()
    return terminated


async def supervise(flow_run_id: UUID, process: EngineProcess, manifest_path: Path) -> int:
    """Answer for the flow run until it ends; returns the exit code of the pod."""
    intent = termination_intent()
    terminated = False
    async with FlowRunExecutorContext() as supervised:
        flow_run = await supervised.client.read_flow_run(flow_run_id)
        executor = supervised.create_executor(
            flow_run,
            ForkedEngineStarter(process, supervised.control_channel),
            propose_submitting=False,
            hook_runner=WorkspaceHookRunner(manifest_path=manifest_path, stream_output=True),
        )
        if intent is None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            await executor.submit()
        else:
            terminated = await run_until_terminated(supervised, executor, flow_run_id, intent)
        if terminated and intent == "reschedule":
            await stay_rescheduled(supervised, flow_run_id)
    # Not 0 tells Kubernetes to retry the pod, which then takes the run up again.
    return 1 if terminated and intent == "relinquish" else 0


def execute(flow_run_id: UUID) -> int:
    """Execute a flow run in a forked engine; returns the exit code of the pod."""
    folder = Path(tempfile.mkdtemp(prefix="prefect-flow-run-"))
    config = WorkspaceSupervisorConfig(
        flow_run_id=flow_run_id,
        workspace_root=folder / "workspace",
        manifest_path=folder / "workspace.json",
    )
    config.workspace_root.mkdir()
    write_private_model(folder / "supervisor.json", config)
    # The engine never returns from the fork, so it cleans nothing up that is its supervisor's.
    process = fork_engine(folder / "supervisor.json")
    try:
        return anyio.run(supervise, flow_run_id, process, config.manifest_path)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
