"""The supervisor: forks the engine and is responsible for the flow run until it ends.

Follows `execute` in `prefect/cli/flow_run.py` of Prefect 3.9.1, which Prefect's client lacks. It
differs in one point: a pod that receives SIGTERM before it has reached the API ends at once, and
its run is rescheduled if the API answers within some seconds.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast
from uuid import UUID

import anyio
import anyio.abc
import anyio.to_thread
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.logging import get_logger
from tenacity import AsyncRetrying, retry_if_result, wait_fixed

from prefect_hamilton.flow_pod import attempt, engine, outages
from prefect_hamilton.flow_pod._prefect import (
    AttemptConclusion,
    ControlChannel,
    ControlSignalStatus,
    EngineOutcomeReceipt,
    FlowRunExecutionResult,
    FlowRunExecutor,
    FlowRunExecutorContext,
    Intent,
    ProcessHandle,
    WorkspaceHookRunner,
    WorkspaceSupervisorConfig,
    create_isolated_termination_scope,
    write_private_model,
)
from prefect_hamilton.states import NO_ANSWER, NOT_RESCHEDULED, propose, rescheduled

logger = get_logger("flow_pod")

ANSWER_SECONDS = 8
"""How long the API may take to answer when the pod ends, of the 30 s that Kubernetes gives it."""

STAY_SECONDS = 3
"""How long a pod that ends checks that its run stays rescheduled."""

ENGINE_SECONDS = 30
"""How long the engine may take to end if the API answers, with all that the flow does then."""


class EngineProcess:
    """The forked process. `returncode` is None until it has ended, as for a subprocess."""

    def __init__(self, pid: int, go: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._go = go

    def let_go(self, variables: dict[str, str]) -> None:
        """Tell the engine to run the flow, and the variables of its attempt and channel."""
        # A pull step may have ended the engine already; `wait` then reports it.
        with (
            contextlib.suppress(BrokenPipeError),
            os.fdopen(self._go, "w", encoding="utf-8") as words,
        ):
            json.dump(variables, words)

    def kill(self) -> None:
        """End the process, and what it has started, at once."""
        if self.returncode is None:
            # The process creates its group itself, and may not have done so yet.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

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
        self.conclusion: AttemptConclusion | None = None
        """How the attempt ended, as the engine reported it."""

    async def start(
        self,
        flow_run: FlowRun,
        task_status: anyio.abc.TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Let the engine run and wait for its end; `task_status` gets its handle at once."""
        self._process.let_go(self._variables(flow_run.id))
        task_status.started(
            ProcessHandle(
                self._process,  # type: ignore[arg-type]  # has what a handle uses of a process
                termination_scope=create_isolated_termination_scope(self._process.pid),
            )
        )
        await anyio.to_thread.run_sync(self._process.wait)
        # The channel forgets it with the process.
        self.conclusion = self._control_channel.get_conclusion(flow_run.id)

    def _variables(self, flow_run_id: UUID) -> dict[str, str]:
        """Return the variables of the control channel, and that of the attempt.

        Where nothing can listen on loopback, there is no channel. As in Prefect, such a run can
        still be ended, but does not learn the reason.
        """
        taken = {name: os.environ[name] for name in [attempt.VARIABLE] if name in os.environ}
        try:
            port, token = self._control_channel.register(flow_run_id)
        except RuntimeError:
            return taken
        return taken | {"PREFECT__CONTROL_PORT": str(port), "PREFECT__CONTROL_TOKEN": token}


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
    # A separate process group: the signal reaches the supervisor first, which then informs the
    # engine what is meant before it signals the group.
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    sys.exit(engine.run(config_path, waiting))


async def reschedule(client: PrefectClient, flow_run_id: UUID) -> bool:
    """Propose `AwaitingRetry`, unless the run is suspended, or has ended other than by a crash.

    A run that was marked Crashed is rescheduled: an observer of the pods may have seen its end
    before this did. Returns False if the API could not be asked.
    """
    with anyio.move_on_after(ANSWER_SECONDS):
        try:
            await _reschedule(client, flow_run_id)
        except Exception:
            logger.exception("Failed to reschedule flow run")
            return False
        return True
    logger.error(
        "The Prefect API did not answer within %s s: the flow run is not rescheduled.",
        ANSWER_SECONDS,
    )
    return False


async def _reschedule(client: PrefectClient, flow_run_id: UUID) -> None:
    """Repeat the proposal while the run moves on between its reading and the proposal.

    The engine may be about to report its end: a flow that completed must not run again.
    """
    answer: SetStateStatus | None = None
    proposed_from: UUID | None = None
    while True:
        state = (await client.read_flow_run(flow_run_id)).state
        if state is None or (state.is_final() and not state.is_crashed()):
            name = state and state.name
            logger.info("Flow run is already in final state %r; not rescheduling.", name)
            return
        if state.is_paused() and state.state_details.pause_reschedule:
            logger.info("Flow run is suspended, and will be scheduled when it is resumed.")
            return
        if state.id == proposed_from:
            logger.info("Flow run was not rescheduled: the server answered %s.", answer)
            return
        proposed_from = state.id
        answer = (await propose(client, flow_run_id, rescheduled(), state.id)).status
        if answer == SetStateStatus.ACCEPT:
            logger.info("Flow run rescheduled.")
            return


async def stay_rescheduled(client: PrefectClient, flow_run_id: UUID) -> None:
    """Reschedule the run once more if it is marked Crashed after all.

    An observer of the pods reads the state before it sets Crashed, and may have read it before the
    run was rescheduled. Watches until the run is taken up, for some seconds at most.
    """

    async def is_scheduled() -> bool:
        state = (await client.read_flow_run(flow_run_id)).state
        if state is not None and state.is_crashed():
            await reschedule(client, flow_run_id)
            return False
        return state is not None and state.is_scheduled()

    try:
        with anyio.move_on_after(STAY_SECONDS) as watch:
            await AsyncRetrying(retry=retry_if_result(bool), wait=wait_fixed(0.25))(is_scheduled)
        if watch.cancelled_caught:
            logger.debug("Flow run is still waiting to be taken up.")
    except Exception:
        logger.warning("Failed to see whether the flow run stays rescheduled.", exc_info=True)


class Termination:
    """What SIGTERM means for the run. From now on the signal is handled, not held back.

    Without an intent the signal ends this process, as Prefect does it.
    """

    def __init__(self) -> None:
        behavior = os.environ.get("PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR", "").lower()
        known = behavior in ("reschedule", "relinquish")
        self.intent = cast(Intent, behavior) if known else None
        self.asked = anyio.Event()
        if known:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.asked.set)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    async def decide(self, client: PrefectClient, flow_run_id: UUID) -> bool:
        """Set the run's next state; False if that could not be done."""
        return self.intent != "reschedule" or await reschedule(client, flow_run_id)

    async def exit_code(self, client: PrefectClient, flow_run_id: UUID, *, decided: bool) -> int:
        """Return the code of a pod that was ended by the signal.

        1 lets Kubernetes retry the pod if the Job allows it; from `NOT_RESCHEDULED` the worker
        learns what remains to be done.
        """
        if self.intent == "relinquish":
            return 1
        if not decided:
            return NOT_RESCHEDULED
        await stay_rescheduled(client, flow_run_id)
        return 0


async def run_until_terminated(
    supervised: FlowRunExecutorContext,
    executor: FlowRunExecutor,
    starter: ForkedEngineStarter,
    flow_run: FlowRun,
    termination: Termination,
) -> int:
    """Run the flow to its end, or until SIGTERM; returns the exit code of the pod."""
    flow_run_id = flow_run.id
    result: FlowRunExecutionResult | None = None
    decided: bool | None = None

    async with anyio.create_task_group() as tasks:

        async def terminate_on_signal(intent: Intent) -> None:
            nonlocal decided
            await termination.asked.wait()
            logger.info("SIGTERM received, initiating graceful shutdown...")
            # The engine learns the intent before it sees a signal, so that it ends without
            # proposing a state; one that does not answer gets no chance to propose any.
            status = await supervised.control_channel.signal(flow_run_id, intent)
            if status is ControlSignalStatus.ALREADY_CONCLUDED:
                logger.info("Engine already reported a final state; leaving it unchanged.")
                return
            is_decided = await termination.decide(supervised.client, flow_run_id)
            # Without the API, an engine that ends would wait in vain to send its last log lines.
            await supervised.process_manager.kill(
                flow_run_id,
                grace_seconds=ENGINE_SECONDS if is_decided else ANSWER_SECONDS,
                force=status is not ControlSignalStatus.ACKNOWLEDGED,
            )
            decided = is_decided
            # Nothing may be awaited between the kill and this, or the executor would see the
            # exit code and propose Crashed.
            tasks.cancel_scope.cancel()

        if termination.intent is not None:
            tasks.start_soon(terminate_on_signal, termination.intent)
        result = await executor.submit()
        if not termination.asked.is_set():
            tasks.cancel_scope.cancel()
    if decided is None:
        return await exit_code(supervised.client, flow_run, result, starter.conclusion)
    return await termination.exit_code(supervised.client, flow_run_id, decided=decided)


async def exit_code(
    client: PrefectClient,
    flow_run: FlowRun,
    result: FlowRunExecutionResult | None,
    conclusion: AttemptConclusion | None,
) -> int:
    """Return the pod's exit code after the engine has ended: 0 only if the end is reported.

    With another code, the worker marks the run as crashed. An engine that ends with 0 and sends no
    message may not have run the flow. The server is asked for the states, because Prefect's result
    treats a run that was final already as unreported.
    """
    if conclusion not in (None, EngineOutcomeReceipt.orchestration_aborted()):
        return 0
    status = (result and result.status_code) or 0
    try:
        with anyio.fail_after(ANSWER_SECONDS):
            states = await client.read_flow_run_states(flow_run.id)
    except Exception:
        states = []
    if attempt.is_superseded(states):
        logger.info("Flow run was taken up again, for another pod: its end here does not count.")
        return 0
    state = states[-1] if states else None
    if state is not None and (
        state.is_final()
        or (state.is_scheduled() and state.id != flow_run.state_id)
        or state.is_paused()
        # The supervisor completes a cancellation, and may not have done so yet.
        or (state.is_cancelling() and not status)
    ):
        return 0
    logger.error("Flow run process crashed (status code %s), which cannot be reported.", status)
    # The number of a signal is negative; a shell reports 128 plus the number.
    return 128 - status if status < 0 else status or 1


async def supervise(flow_run_id: UUID, process: EngineProcess, manifest_path: Path) -> int:
    """Supervise the flow run until it ends; returns the exit code of the pod."""
    attempt.name_in_requests()
    termination = Termination()
    watching = anyio.CancelScope()
    code: int | None = None

    async with anyio.create_task_group() as tasks:

        async def give_up_on_signal() -> None:
            with watching:
                await termination.asked.wait()
                tasks.cancel_scope.cancel()

        tasks.start_soon(give_up_on_signal)
        taken = await take_up(flow_run_id, termination)
        if isinstance(taken, int):
            code = taken
            watching.cancel()
        else:
            async with AsyncExitStack() as stack:
                supervised = FlowRunExecutorContext()
                # Also when it was entered in part: it may wait for the API.
                stack.push_async_exit(supervised)
                await supervised.__aenter__()
                # From here on, the signal is handled where it can be passed on to the engine.
                watching.cancel()
                starter = ForkedEngineStarter(process, supervised.control_channel)
                executor = supervised.create_executor(
                    taken,
                    starter,
                    propose_submitting=False,
                    hook_runner=WorkspaceHookRunner(
                        manifest_path=manifest_path, stream_output=True
                    ),
                )
                code = await run_until_terminated(supervised, executor, starter, taken, termination)
    if code is not None:
        return code
    logger.info("SIGTERM received before the flow could start.")
    process.kill()
    async with get_client() as client:
        decided = await termination.decide(client, flow_run_id)
        return await termination.exit_code(client, flow_run_id, decided=decided)


async def take_up(flow_run_id: UUID, termination: Termination) -> FlowRun | int:
    """Return the flow run to execute, or the exit code of a pod that executes none."""
    is_only_pod = termination.intent == "reschedule"
    async with get_client() as client:
        try:
            flow_run = await client.read_flow_run(flow_run_id)
            taken = await attempt.take_up(client, flow_run_id, is_only_pod=is_only_pod)
        except attempt.NotWaitedForError as error:
            logger.info("The flow is not started: %s.", error)
            return error.exit_code
        except Exception as error:
            if (sentence := outages.explain(error)) is None:
                raise
            # No state is set: the worker learns of the end from Kubernetes and reschedules the run.
            logger.error("The flow is not started: %s", sentence)
            return NO_ANSWER
    if taken is not None and attempt.VARIABLE not in os.environ:
        os.environ.update(attempt.variables(flow_run_id, taken))
        attempt.name_in_requests()
    return flow_run


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
    except Exception as error:
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        outages.log_failure("The flow run is not executed", error)
        return 1
    finally:
        process.kill()
        shutil.rmtree(folder, ignore_errors=True)
