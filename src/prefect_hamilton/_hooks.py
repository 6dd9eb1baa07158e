"""Hamilton adapters of a run. Imports Hamilton: import it in functions only."""

import asyncio
import time
from collections.abc import Mapping
from contextvars import Token
from typing import Any

from hamilton.lifecycle import base
from opentelemetry import context, trace

from prefect_hamilton.errors import note_node
from prefect_hamilton.traces import TRACER, note_error


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


_OpenSpan = tuple[trace.Span, Token[context.Context] | None]


class NodeSpans(base.BasePreNodeExecute, base.BasePostNodeExecute):
    """Records each node as a span.

    Its parent is the span that is current: that of the dataflow, or of the task run that computes a
    block of it. In a thread that knows of none it is that of the dataflow. `in_thread` says that
    the node runs in the thread that calls this: what it logs and records is then part of its span.
    """

    def __init__(self, dataflow: trace.Span, *, in_thread: bool) -> None:
        self._parent = trace.set_span_in_context(dataflow)
        self._in_thread = in_thread
        self._tracer = trace.get_tracer(TRACER)
        self._open: dict[tuple[str | None, str], _OpenSpan] = {}

    def pre_node_execute(self, *, node_: Any, task_id: str | None = None, **_: Any) -> None:
        """Start the span of a node."""
        has_parent = trace.get_current_span().get_span_context().is_valid
        span = self._tracer.start_span(
            node_.name,
            context=None if has_parent else self._parent,
            attributes={"hamilton.node.type": str(node_.type)},
        )
        token = context.attach(trace.set_span_in_context(span)) if self._in_thread else None
        self._open[task_id, node_.name] = span, token

    def post_node_execute(
        self,
        *,
        node_: Any,
        error: BaseException | None,
        task_id: str | None = None,
        **_: Any,
    ) -> None:
        """End the span of a node."""
        span, token = self._open.pop((task_id, node_.name))
        if token is not None:
            context.detach(token)
        if error is not None:
            note_error(span, error)
        span.end()


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
