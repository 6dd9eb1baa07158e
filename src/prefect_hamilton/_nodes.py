"""Nodes of a dataflow as Prefect task runs. A node with a cached result has no task run."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from prefect import Task
from prefect.cache_policies import NO_CACHE

if TYPE_CHECKING:
    from hamilton.driver import Driver
    from hamilton.node import Node
    from prefect.client.schemas.objects import State

Selection = Literal["tasks"] | Mapping[str, Any]
"""All nodes, or those that have these Hamilton tags."""

_NUMBERS: dict[str, Callable[[str], float]] = {
    "retries": int,
    "retry_delay_seconds": float,
    "timeout_seconds": float,
}


def as_tasks(driver: "Driver", selection: Selection) -> None:
    """
    Let the selected nodes of a driver run as Prefect tasks of their names.

    The tags `prefect_retries`, `prefect_retry_delay_seconds`, `prefect_timeout_seconds` and
    `prefect_tags` (a list, or names separated by commas) of a node are options of its task. Raises
    ValueError for an invalid option.
    """
    nodes = driver.graph.nodes.values()
    selected = {node.name for node in nodes if _is_selected(node, selection)}
    states: dict[str, State[Any]] = {}
    for node in nodes:
        if node.name in selected:
            upstream = tuple(_nearest(node, selected))
            # Hamilton itself replaces the function of a node in this way, in `base_execute_task`.
            node._callable = _node_task(node, upstream, states)


def _is_selected(node: "Node", selection: Selection) -> bool:
    if node.user_defined:
        return False
    return selection == "tasks" or all(
        node.tags.get(name) == value for name, value in selection.items()
    )


def _nearest(node: "Node", selected: set[str]) -> Iterator[str]:
    """Yield the names of the tasks whose results reach the node without another task between."""
    seen: set[str] = set()
    remaining = list(node.dependencies)
    while remaining:
        dependency = remaining.pop()
        if dependency.name in seen:
            continue  # The number of paths to it may be huge.
        seen.add(dependency.name)
        if dependency.name in selected:
            yield dependency.name
        else:
            remaining += dependency.dependencies


def _node_task(
    node: "Node", upstream: tuple[str, ...], states: "dict[str, State[Any]]"
) -> Callable[..., Any]:
    """Return a function that runs the node's function as a task after those `upstream`."""
    function, name, options = node.callable, node.name, _options(node)

    def task(compute: Callable[[], Any]) -> tuple[Task[..., Any], dict[str, Any]]:
        made: Task[..., Any] = Task(
            compute,
            name=name,
            task_run_name=name,
            # Results stay in memory: Hamilton's cache is the one to keep those of nodes.
            cache_policy=NO_CACHE,
            persist_result=False,
            **options,
        )
        after = [states[other] for other in upstream if other in states]
        return made, {"wait_for": after, "return_state": True}

    def note(state: "State[Any]") -> "State[Any]":
        # Without its result, which Hamilton may drop before the end; Prefect wants some data.
        states[name] = state.model_copy(update={"data": True})
        return state

    # The arguments are in the closure: as parameters Prefect would look through all of them.
    if inspect.iscoroutinefunction(function):

        async def run_coroutine(**arguments: Any) -> Any:
            async def compute() -> Any:
                return await function(**arguments)

            made, how = task(compute)
            return await note(await made(**how)).aresult()

        return run_coroutine

    def run(**arguments: Any) -> Any:
        def compute() -> Any:
            result = function(**arguments)
            return list(result) if inspect.isgenerator(result) else result

        made, how = task(compute)
        return note(made(**how)).result()

    return run


def _options(node: "Node") -> dict[str, Any]:
    options: dict[str, Any] = {}
    for option, number in _NUMBERS.items():
        tag = f"prefect_{option}"
        if tag in node.tags:
            try:
                options[option] = number(node.tags[tag])
            except ValueError:
                raise ValueError(
                    f"The tag {tag} of the node {node.name} must be a number, "
                    f"not {node.tags[tag]!r}"
                ) from None
    tags = node.tags.get("prefect_tags", [])
    names = tags.split(",") if isinstance(tags, str) else tags
    return options | {"tags": [name.strip() for name in names]}
