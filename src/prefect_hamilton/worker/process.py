"""The worker of type `process` of the local profile: it forks flow runs.

Prefect's own starts Python twice for each flow run: for the pull steps, and for the flow. Each
imports Prefect, which takes longer than all the rest. Here a process that has imported Prefect is
forked instead. It is the standard library's fork server, so it has neither threads nor an event
loop. Everything else is Prefect's: what is forked is only the command that it would start.
"""

import contextlib
import multiprocessing
import multiprocessing.process
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from typing import Any

import anyio
import anyio.abc
from prefect.client.schemas.objects import FlowRun
from prefect.runner import _starter_engine
from prefect.workers.process import (
    ProcessJobConfiguration,
    ProcessWorker,
    ProcessWorkerResult,
)
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random_exponential

from prefect_hamilton.flow_pod import attempt, outages
from prefect_hamilton.flow_pod.standby import IMPORTED_LATE
from prefect_hamilton.worker import forked
from prefect_hamilton.worker.taking_up import TakingUp
from prefect_hamilton.worker.wake import Listening

CAN_FORK = "forkserver" in multiprocessing.get_all_start_methods()
"""False on Windows, where each flow run is started as Prefect does it."""

COMMAND = [sys.executable, "-m", "prefect.runner._workspace_supervisor"]
"""What Prefect starts for a flow run whose deployment and work pool set no command."""

PRELOADED = (
    "prefect_hamilton.worker.fork_server",
    forked.__name__,
    # What each flow run would import otherwise.
    "hamilton.registry",
    *IMPORTED_LATE,
)
"""Modules that are imported before the fork."""

AT_START = ("PYTHON", "LD_", "DYLD_")
"""Prefixes of variables that count only when a program starts."""

END_SECONDS = 10
"""Time that a flow run has to end after SIGTERM, when the worker ends."""

UNKNOWN = 255
"""Exit code of a process whose fork server was killed. The process may not have ended."""

_start_process = getattr(_starter_engine, "run_process")  # noqa: B009  # an import of Prefect's


class Worker(Listening, TakingUp, ProcessWorker):
    """Prefect's process worker. It listens to events, skips late runs, and forks flow runs."""

    async def setup(self) -> None:
        """Prepare the worker, and the process that is forked."""
        await super().setup()
        if CAN_FORK:
            setattr(_starter_engine, "run_process", run_process)  # noqa: B010
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(list(PRELOADED))
            # Started now, so that the first flow run is not slower.
            await run_process([*COMMAND, ""], env=dict(os.environ), cwd=None)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ProcessJobConfiguration,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> ProcessWorkerResult:
        """Start the process of a run, which says in its requests that it has this attempt."""
        if (taken := self._attempts.get(flow_run.id)) is not None:
            configuration.env |= attempt.variables(flow_run.id, taken)
        return await super().run(flow_run, configuration, task_status)

    @retry(
        retry=retry_if_exception(outages.is_outage),
        stop=stop_after_delay(outages.DEFAULT_SECONDS),
        wait=wait_random_exponential(max=10),
        reraise=True,
    )
    async def _await_answer(self) -> None:
        """Wait until the API answers. No sweep would find a run whose state was not set."""
        (await self.client.hello()).raise_for_status()


class Forked:
    """A forked process with what Prefect uses of a subprocess."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int | None:
        """The id of the process, which is also that of its process group."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None until the process has ended."""
        return self._process.exitcode

    async def end(self) -> None:
        """Send SIGTERM if the process has not ended, and SIGKILL if that does not end it."""
        if self.returncode is not None:
            return
        with anyio.CancelScope(shield=True):
            self._process.terminate()
            with anyio.move_on_after(END_SECONDS):
                await self.wait()
            if self.returncode is None:
                self._kill()
                await self.wait()

    async def wait(self) -> None:
        """Wait until the process has ended."""
        while self.returncode is None:
            await anyio.wait_readable(self._process.sentinel)
        if self.returncode == UNKNOWN:
            self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # type: ignore[arg-type]


async def run_process(
    command: list[str],
    *,
    env: Mapping[str, str],
    cwd: Any,
    stream_output: Any = False,
    task_status: Any = anyio.TASK_STATUS_IGNORED,
    task_status_handler: Any = None,
    **options: Any,
) -> Any:
    """Fork where Prefect would start its supervisor of a flow run; else start the command."""
    if command[:-1] != COMMAND or not _can_be_set_later(env):
        return await _start_process(
            command,
            env=env,
            cwd=cwd,
            stream_output=stream_output,
            task_status=task_status,
            task_status_handler=task_status_handler,
            **options,
        )
    process = Forked(await _fork(command[-1], str(cwd), dict(env), bool(stream_output)))
    try:
        task_status.started(task_status_handler(process) if task_status_handler else process.pid)
        await process.wait()
    finally:
        await process.end()
    return process


def _can_be_set_later(env: Mapping[str, str]) -> bool:
    """Whether no variable differs that only a new interpreter would take account of."""
    names = {name for name in (*env, *os.environ) if name.startswith(AT_START)}
    return all(env.get(name) == os.environ.get(name) for name in names)


async def _fork(config: str, folder: str, env: dict[str, str], shows_output: bool) -> BaseProcess:
    """Fork a process, and wait until it has a process group, so that a signal reaches it."""
    context = multiprocessing.get_context("forkserver")
    ready, is_ready = context.Pipe(duplex=False)
    arguments = (config, folder, env, shows_output, is_ready)
    process = context.Process(target=forked.main, args=arguments)
    await anyio.to_thread.run_sync(process.start)
    # Else the next start would read the exit code too, in its thread: only one can.
    getattr(multiprocessing.process, "_children").discard(process)  # noqa: B009
    is_ready.close()
    with ready:
        await anyio.wait_readable(ready)
    return process
