"""Execute a Hamilton dataflow inside a Prefect task or flow.

    @task
    def prepare(path: str) -> pd.DataFrame:
        run = dataflow.execute(features, ["table"], inputs={"path": path})
        return run["table"]

The Hamilton UI shows the execution if it is configured (see `prefect_hamilton.tracking`). The task
run gets a picture of the dataflow and a link to the Hamilton UI as artifacts, and a log line with
the durations of the nodes. None of these can make a run fail. Each can be turned off: `track`,
`link`, `picture`, `timings`. Secrets are masked in all of them.

A node that raises fails the execution with its own exception's type and a message that names the
node; see `NodeError`. Outside of a run, as in a test, a dataflow is executed, but nothing is
published.

With an OTLP endpoint, the execution is a span of the flow run's trace, and each node a child of it;
see `prefect_hamilton.traces`. Importing this module starts the traces, and masks secrets in the
tracebacks that Prefect logs of runs. It imports neither Hamilton nor pandas.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from prefect.runtime import flow_run, task_run

from prefect_hamilton import graphs, traces, tracking
from prefect_hamilton._run_logger import mask_tracebacks, run_logger
from prefect_hamilton.errors import NodeError, named

if TYPE_CHECKING:
    from hamilton.async_driver import AsyncDriver
    from hamilton.driver import Builder, Driver
    from prefect.task_runners import TaskRunner

    from prefect_hamilton._hooks import Observer
    from prefect_hamilton._nodes import Selection

__all__ = ["Dataflow", "NodeError", "Run", "aexecute", "execute"]

LONGEST = 3
"""Number of nodes in the log line about durations."""

NOT_ASYNC = "Hamilton's async driver does not"

traces.start()
mask_tracebacks()

Modules = ModuleType | Sequence[ModuleType]
Outputs = str | Iterable[str | Callable[..., Any]]


class Options(TypedDict, total=False):
    """The fields of `Dataflow` that `execute` also accepts; `Dataflow` documents them."""

    name: str | None
    tags: Mapping[str, str]
    track: bool
    link: bool
    picture: bool
    timings: bool
    nodes: "Selection | None"
    parallel: "bool | TaskRunner[Any]"


@dataclass(frozen=True)
class Run:
    """The results of an execution: `run["node"]` is the result of a node.

    `results` is what Hamilton returned: a dict, unless an adapter builds something else. `url` is
    the permalink in the Hamilton UI, None where the run is not tracked. `node_seconds` are the
    times of the nodes that were computed, in the order of their end.
    """

    results: Any
    url: str | None = None
    seconds: float = 0.0
    node_seconds: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, output: str) -> Any:
        """Return the result of an output."""
        return self.results[output]


@dataclass(frozen=True)
class Dataflow:
    """A dataflow that is defined once and executed any number of times.

        FEATURES = Dataflow(features, config={"label": "hours"}).with_cache(path="/data/cache")
        run = FEATURES.execute(["table"], inputs={"path": path})

    The `with_` methods are those of Hamilton's `driver.Builder` and take its objects. Each returns
    another Dataflow.

    Attributes:
        modules: The module of the nodes, or several.
        config: Hamilton's config, which decides which nodes exist. Nodes can also use it as input.
        name: How the dataflow is called in the Hamilton UI's tag `dataflow`; without it as its
            modules are. Pictures, links and the version in the Hamilton UI are named after the
            task, or after the flow where there is no task.
        tags: Further tags of the run in the Hamilton UI.
        track: Whether to track in the Hamilton UI, where one is configured.
        link: Whether to publish the link to the Hamilton UI as an artifact.
        picture: Whether to publish a picture of the dataflow as an artifact.
        timings: Whether to log the times of the nodes.
        nodes: "tasks" makes each node a Prefect task run, a dict of Hamilton tags those nodes that
            have these tags. The tags prefect_retries, prefect_retry_delay_seconds,
            prefect_timeout_seconds and prefect_tags of a node are options of its task.
        parallel: Whether what is between Hamilton's Parallelizable and Collect runs in the flow's
            task runner; or another task runner for it, as `DaskTaskRunner(address=...)`.

    """

    modules: Modules
    config: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    track: bool = True
    link: bool = True
    picture: bool = True
    timings: bool = True
    nodes: "Selection | None" = None
    parallel: "bool | TaskRunner[Any]" = False
    _steps: tuple[Callable[["Builder"], Any], ...] = ()

    def with_builder(self, step: Callable[["Builder"], Any]) -> Self:
        """Let `step` change the builder of each execution, by any of its methods."""
        return replace(self, _steps=(*self._steps, step))

    def with_adapters(self, *adapters: Any) -> Self:
        """Add Hamilton adapters."""
        return self.with_builder(lambda builder: builder.with_adapters(*adapters))

    def with_materializers(self, *materializers: Any) -> Self:
        """Add materializers; an output may be the id of one."""
        return self.with_builder(lambda builder: builder.with_materializers(*materializers))

    def with_cache(self, **options: Any) -> Self:
        """Let Hamilton cache the results of nodes.

        They are kept where Prefect keeps the results of the flow, so that a run that is retried or
        rescheduled, in another pod too, does not compute them again. The options are Hamilton's;
        with `path` or stores among them they are kept there.
        """

        def add_cache(builder: "Builder") -> None:
            if type(builder).__module__ == "hamilton.async_driver":
                raise ValueError(f"{NOT_ASYNC} cache results: use execute()")
            if options.keys() & {"path", "metadata_store", "result_store"}:
                builder.with_cache(**options)
            else:
                from prefect_hamilton import _cache

                builder.with_cache(**_cache.stores(), **options)

        return self.with_builder(add_cache)

    def execute(
        self,
        outputs: Outputs,
        *,
        inputs: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Run:
        """
        Compute the outputs from the inputs.

        Args:
            outputs: The nodes whose results are wanted: names, or the functions themselves.
            inputs: Values that the nodes need and that no node computes.
            overrides: Results of nodes that are not computed.

        Raises:
            NodeError: A node failed; it is also of the type that the node raised.
            ValueError: Hamilton cannot plan the execution, for example because an input is missing.

        """
        from hamilton import driver

        from prefect_hamilton._hooks import NodeSpans, Observer

        observer, outputs = Observer(), _listed(outputs)
        with self._tracked() as tracked, self._traced(outputs) as span, _named_failures():
            spans = [NodeSpans(span, in_thread=True)] if span else []
            builder = self._builder(driver.Builder(), *tracked.adapters, *spans, observer)
            if self.parallel:
                self._run_in_parallel(builder, observer)
            built: Driver = builder.build()
            self._select_tasks(built)
            started = time.perf_counter()
            results = built.execute(outputs, inputs=inputs, overrides=overrides)
            seconds = time.perf_counter() - started
        self._publish(built, outputs, inputs, overrides, observer, seconds)
        return Run(results, tracked.run_url, seconds, observer.seconds)

    async def aexecute(
        self,
        outputs: Outputs,
        *,
        inputs: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Run:
        """Execute with Hamilton's async driver: nodes may be coroutine functions.

        Raises ValueError for a dataflow with materializers, a cache, or `parallel`, which the
        async driver does not support.
        """
        if self.parallel:
            raise ValueError(f"{NOT_ASYNC} run blocks in parallel: use execute()")

        from hamilton import async_driver

        from prefect_hamilton._hooks import AsyncHooks, NodeSpans, Observer

        observer, outputs = Observer(), _listed(outputs)
        with self._tracked() as tracked, self._traced(outputs) as span, _named_failures():
            spans = [NodeSpans(span, in_thread=False)] if span else []
            hooks = AsyncHooks(*tracked.adapters, *spans, observer)
            built: AsyncDriver = await self._builder(async_driver.Builder(), hooks).build()
            self._select_tasks(built)
            started = time.perf_counter()
            results = await built.execute(outputs, inputs=inputs, overrides=overrides)
            seconds = time.perf_counter() - started
        await asyncio.to_thread(self._publish, built, outputs, inputs, overrides, observer, seconds)
        return Run(results, tracked.run_url, seconds, observer.seconds)

    def driver(self) -> "Driver":
        """Build Hamilton's driver, without the adapters of a run, to inspect the dataflow."""
        from hamilton import driver

        return self._builder(driver.Builder()).build()

    def _builder(self, builder: Any, *adapters: Any) -> Any:
        builder.with_modules(*_modules(self.modules)).with_config(dict(self.config))
        for step in self._steps:
            step(builder)
        return builder.with_adapters(*adapters)

    def _select_tasks(self, built: "Driver") -> None:
        if self.nodes is not None and _run_name() is not None:
            from prefect_hamilton import _nodes

            _nodes.as_tasks(built, self.nodes)

    def _run_in_parallel(self, builder: "Builder", observer: "Observer") -> None:
        from prefect_hamilton._parallel import BlockExecutor

        runner = None if isinstance(self.parallel, bool) else self.parallel
        builder.enable_dynamic_execution(allow_experimental_mode=True)
        builder.with_remote_executor(BlockExecutor(runner, observer))

    def _dag_name(self) -> str:
        return self.name or "+".join(m.__name__.rpartition(".")[2] for m in _modules(self.modules))

    def _traced(self, outputs: list[Any]) -> AbstractContextManager[Any]:
        names = [o if isinstance(o, str) else o.__name__ for o in outputs]
        return traces.dataflow(self._dag_name(), names)

    def _tracked(self) -> Any:
        name = self._dag_name()
        return tracking.track(
            _run_name() or name,
            dag_name=name,
            tags=self.tags,
            enabled=self.track,
            link=self.link,
        )

    def _publish(
        self,
        built: "Driver",
        outputs: list[Any],
        inputs: Mapping[str, Any] | None,
        overrides: Mapping[str, Any] | None,
        observer: "Observer",
        seconds: float,
    ) -> None:
        run_name = _run_name()
        if run_name is None:
            return
        if self.picture:
            graphs.show(run_name, built, outputs, inputs=inputs or {}, overrides=overrides or {})
        if self.timings:
            run_logger().info(_timings(observer.seconds, seconds))


def execute(
    modules: Modules,
    outputs: Outputs,
    *,
    inputs: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    adapters: Sequence[Any] = (),
    **options: Unpack[Options],
) -> Run:
    """Execute a dataflow once: `Dataflow(modules, config, **options).execute(outputs, …)`."""
    dataflow = Dataflow(modules, config or {}, **options).with_adapters(*adapters)
    return dataflow.execute(outputs, inputs=inputs, overrides=overrides)


async def aexecute(
    modules: Modules,
    outputs: Outputs,
    *,
    inputs: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    adapters: Sequence[Any] = (),
    **options: Unpack[Options],
) -> Run:
    """Execute a dataflow with coroutines once; see `Dataflow.aexecute`."""
    dataflow = Dataflow(modules, config or {}, **options).with_adapters(*adapters)
    return await dataflow.aexecute(outputs, inputs=inputs, overrides=overrides)


@contextmanager
def _named_failures() -> Iterator[None]:
    """Raise a NodeError for the exception of a node; others pass through."""
    try:
        yield
    except Exception as error:
        failure = named(error)
        if failure is None:
            raise
        raise failure from error


def _modules(modules: Modules) -> Sequence[ModuleType]:
    return [modules] if isinstance(modules, ModuleType) else modules


def _listed(outputs: Outputs) -> list[Any]:
    return [outputs] if isinstance(outputs, str) else list(outputs)


def _run_name() -> str | None:
    """Return the name of the task that runs, else of the flow; None outside of a run."""
    return task_run.get_task_name() or flow_run.get_flow_name()


def _timings(node_seconds: Mapping[str, float], seconds: float) -> str:
    longest = sorted(node_seconds.items(), key=lambda item: item[1], reverse=True)[:LONGEST]
    shown = ", ".join(f"{name} {taken:.2f} s" for name, taken in longest)
    nodes = f"{len(node_seconds)} node{'' if len(node_seconds) == 1 else 's'}"
    return f"Executed {nodes} in {seconds:.2f} s{'; longest: ' if shown else ''}{shown}"
