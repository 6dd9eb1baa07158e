"""Blocks between `Parallelizable` and `Collect` in a Prefect task runner. Imports Hamilton."""

import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hamilton.execution.executors import (
    TaskExecutor,
    TaskFuture,
    TaskImplementation,
    base_execute_task,
)
from hamilton.execution.state import TaskState
from hamilton.lifecycle.base import LifecycleAdapterSet
from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_hamilton._hooks import NodeSpans, Observer
from prefect_hamilton.tracking import quiet_hamilton

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture
    from prefect.task_runners import TaskRunner

PATIENCE = 0.01
"""Seconds to wait for a block before Hamilton looks at all again: it does not wait itself."""


class BlockExecutor(TaskExecutor):
    """Runs each block as a task run of a task runner: the given one, else that of the flow.

    Raises RuntimeError outside of a flow run when no task runner is given.
    """

    def __init__(self, runner: "TaskRunner[Any] | None", observer: Observer) -> None:
        context = FlowRunContext.get()
        if runner is None and context is None:
            raise RuntimeError(
                "parallel=True uses the task runner of the flow, but there is no flow: execute the "
                "dataflow in a flow, or pass a task runner"
            )
        # Its own, since the dataflow may be executed several times at once.
        self._own = runner and runner.duplicate()
        self._runner: TaskRunner[Any] = self._own or context.task_runner  # type: ignore[union-attr]
        self._observer = observer
        self._turns = _Turns()
        self._started = ExitStack()

    def init(self) -> None:
        """Start a separate task runner."""
        if self._own is not None:
            self._started.enter_context(self._own)

    def finalize(self) -> None:
        """End it."""
        self._started.close()

    def can_submit_task(self) -> bool:
        """Whether a block may be submitted: the task runner queues."""
        return True

    def submit_task(self, task: TaskImplementation) -> "_BlockFuture":
        """Submit a block."""
        in_threads = isinstance(self._runner, ThreadPoolTaskRunner)
        block = task if in_threads else _without_ours(task)

        def compute() -> tuple[dict[str, Any], dict[str, float]]:
            return _compute(block, in_threads)

        made: Task[..., Any] = Task(
            compute,
            name=task.base_id,
            task_run_name=task.task_id,
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        future = self._runner.submit(made, parameters={})
        self._turns.submitted()
        return _BlockFuture(future, self._observer, self._turns)


def _without_ours(task: TaskImplementation) -> TaskImplementation:
    """Return a block for another process: what is connected to other programs stays here."""
    from prefect_hamilton.tracking.sdk import BestEffortTracker

    kept = [
        adapter
        for adapter in task.adapter.adapters
        if not isinstance(adapter, BestEffortTracker | NodeSpans | Observer)
    ]
    return replace(task, adapter=LifecycleAdapterSet(*kept))


def _compute(
    block: TaskImplementation, in_threads: bool
) -> tuple[dict[str, Any], dict[str, float]]:
    """Compute a block; returns its results and, from another process, the times of its nodes."""
    if in_threads:
        return base_execute_task(block), {}
    observer = Observer()
    block.adapter = LifecycleAdapterSet(*block.adapter.adapters, observer)
    with quiet_hamilton():
        return base_execute_task(block), observer.seconds


class _Turns:
    """Hamilton's turns: in each it submits a block, if there is one, and asks all for their state.

    The first block that is asked twice since the last submission waits: in this turn nothing was
    submitted.
    """

    def __init__(self) -> None:
        self._asked: set[_BlockFuture] = set()
        self._has_ended = threading.Event()

    def submitted(self) -> None:
        """Note that there may be more to submit."""
        self._asked.clear()

    def ended(self) -> None:
        """Note that a block has ended; called in any thread."""
        self._has_ended.set()

    def await_end(self, block: "_BlockFuture") -> None:
        """Wait a moment for the end of any block, once a turn."""
        if block in self._asked:
            self._has_ended.wait(PATIENCE)
            self._has_ended.clear()
            self._asked.clear()
        self._asked.add(block)


class _BlockFuture(TaskFuture):
    def __init__(self, future: "PrefectFuture[Any]", observer: Observer, turns: _Turns) -> None:
        self._future = future
        self._observer = observer
        self._turns = turns
        self._done = threading.Event()
        self._counted = False
        future.add_done_callback(self._end)

    def _end(self, _: "PrefectFuture[Any]") -> None:
        self._done.set()
        self._turns.ended()

    def get_state(self) -> TaskState:
        if not self._done.is_set():
            self._turns.await_end(self)
        if not self._done.is_set():
            return TaskState.RUNNING
        self._future.wait()
        return TaskState.SUCCESSFUL if self._future.state.is_completed() else TaskState.FAILED

    def get_result(self) -> Any:
        if not self._done.is_set():
            return None
        results, seconds = self._future.result()
        if not self._counted:
            self._counted = True
            self._observer.add(seconds)
        return results
