"""Hamilton adapters of a run. Imports Hamilton: import it in functions only."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from hamilton.lifecycle import base

from prefect_hamilton.errors import note_node


class Observer(base.BasePreNodeExecute, base.BasePostNodeExecute):
    """Records the duration of each node, and which node raised an exception."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started: dict[tuple[str | None, str], float] = {}

    def pre_node_execute(self, *, node_: Any, task_id: str | None = None, **_: Any) -> None:
        """Note the start of a node."""
        self._started[task_id, node_.name] = time.perf_counter()

    def post_node_execute(
        self,
        *,
        node_: Any,
        error: BaseException | None,
        task_id: str | None = None,
        **_: Any,
    ) -> None:
        """Add the node's time: a node of a parallel block is executed many times."""
        self.add({node_.name: time.perf_counter() - self._started.pop((task_id, node_.name))})
        if error is not None:
            note_node(error, node_.name)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add times of nodes."""
        for name, taken in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + taken


class AsyncHooks(
    base.BasePostGraphConstructAsync,
    base.BasePreGraphExecuteAsync,
    base.BasePostGraphExecuteAsync,
    base.BasePreNodeExecuteAsync,
    base.BasePostNodeExecuteAsync,
):
    """Hooks that are plain functions, called at the right moments of the async driver.

    It would call them itself, but around the start of a node, not around the node. Those of the
    whole graph may wait for a server, so a thread calls them.
    """

    def __init__(self, *hooks: Any) -> None:
        self._hooks = hooks

    async def post_graph_construct(self, **event: Any) -> None:
        """Call the hook of that name."""
        await asyncio.to_thread(self._call, "post_graph_construct", event)

    async def pre_graph_execute(self, **event: Any) -> None:
        """Call the hook of that name."""
        await asyncio.to_thread(self._call, "pre_graph_execute", event)

    async def pre_node_execute(self, **event: Any) -> None:
        """Call the hook of that name."""
        self._call("pre_node_execute", event)

    async def post_node_execute(self, **event: Any) -> None:
        """Call the hook of that name."""
        self._call("post_node_execute", event)

    async def post_graph_execute(self, **event: Any) -> None:
        """Call the hook of that name."""
        await asyncio.to_thread(self._call, "post_graph_execute", event)

    def _call(self, hook: str, event: dict[str, Any]) -> None:
        for adapter in self._hooks:
            if hasattr(adapter, hook):
                getattr(adapter, hook)(**event)
