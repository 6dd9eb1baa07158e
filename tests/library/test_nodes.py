"""`nodes="tasks"`: the nodes of a dataflow as task runs in Prefect's timeline."""

import asyncio
import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import tenacity
from hamilton import ad_hoc_utils
from hamilton.function_modifiers import tag
from prefect import State, flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun
from prefect.events.worker import EventsWorker

from prefect_hamilton import dataflow
from prefect_hamilton.dataflow import Dataflow
from tests import services
from tests.library import totals

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_api")]

attempts: list[int] = []


@tag(prefect_retries="2", prefect_retry_delay_seconds="0", prefect_tags="flaky, slow")
def unsteady(x: int) -> int:
    attempts.append(x)
    if len(attempts) < 3:
        raise ConnectionError("not yet")
    return x


@tag(prefect_timeout_seconds="0.2", team="blue")
def endless(unsteady: int) -> int:
    for _ in range(100):
        time.sleep(0.1)
    return unsteady


def plain(unsteady: int) -> int:
    return unsteady + 1


@tag(team="blue")
def last(plain: int, x: int) -> int:
    return plain + x


tagged = ad_hoc_utils.create_temporary_module(
    unsteady, endless, plain, last, module_name="tagged_nodes"
)


@tag(prefect_retries="often")
def wrong(x: int) -> int:
    return x


async def fetched(x: int) -> int:
    await asyncio.sleep(0)
    return x


@task(task_run_name="compute")
def compute(modules: Any, output: str, **options: Any) -> Any:
    options = {"picture": False, "nodes": "tasks"} | options
    return dataflow.execute(modules, output, inputs={"x": 1}, **options)[output]


@flow
def computing(modules: Any, output: str, **options: Any) -> Any:
    return compute(modules, output, **options)


def task_runs(state: State[Any], *expected: str) -> dict[str, TaskRun]:
    """The flow run's task runs by name, once the expected ones have ended: events bring them."""
    run_id = state.state_details.flow_run_id
    assert isinstance(run_id, UUID)
    of_flow_run = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))

    @tenacity.retry(
        retry=tenacity.retry_if_result(lambda runs: not {*expected} <= runs.keys()),
        stop=tenacity.stop_after_delay(60),
        wait=tenacity.wait_fixed(0.2),
    )
    def ended() -> dict[str, TaskRun]:
        with get_client(sync_client=True) as client:
            found = client.read_task_runs(flow_run_filter=of_flow_run)
        return {run.name: run for run in found if run.state and run.state.is_final()}

    return ended()


@pytest.fixture(scope="module")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[services.Service]:
    """A Prefect server with its background services, which record task runs."""
    home = tmp_path_factory.mktemp("prefect-with-services")
    with services.prefect_server(home, background_services=True) as service:
        # This process may have a connection to another server, which it would go on using.
        EventsWorker.drain_all()
        yield service
        EventsWorker.drain_all()


@pytest.fixture(autouse=True)
def no_attempts() -> None:
    attempts.clear()


def test_each_node_is_a_task_run_after_those_it_needs() -> None:
    state = computing(totals, "total", return_state=True)
    assert state.result() == 3
    runs = task_runs(state, "compute", "doubled", "checked", "total")
    assert len(runs) == 4
    assert all(run.state_name == "Completed" for run in runs.values())
    needed = {
        name: {item.id for items in run.task_inputs.values() for item in items}
        for name, run in runs.items()
    }
    assert needed["checked"] >= {runs["doubled"].id}
    assert needed["total"] >= {runs["checked"].id}


def test_tags_of_a_node_set_retries_and_tags_of_its_task() -> None:
    state = computing(tagged, "last", return_state=True)
    assert state.result() == 3
    run = task_runs(state, "unsteady")["unsteady"]
    assert run.run_count == 3
    assert set(run.tags) >= {"flaky", "slow"}


def test_a_node_that_exceeds_its_timeout_tag_fails() -> None:
    attempts.extend([0, 0])
    state = computing(tagged, "endless", return_state=True)
    assert state.is_failed()
    assert "(node endless)" in str(state.message)
    assert isinstance(state.result(raise_on_failure=False), TimeoutError)
    assert task_runs(state, "endless")["endless"].state_name == "TimedOut"


def test_only_nodes_with_the_given_tag_are_task_runs() -> None:
    attempts.extend([0, 0])
    state = computing(tagged, "last", nodes={"team": "blue"}, return_state=True)
    assert set(task_runs(state, "compute", "last")) == {"compute", "last"}
    attempts.extend([0, 0])
    state = computing(tagged, "last", nodes=None, return_state=True)
    assert set(task_runs(state, "compute")) == {"compute"}


def test_nodes_between_two_tasks_may_have_any_number_of_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand million, of which each would have been followed."""
    lines = ["from hamilton.function_modifiers import tag"]
    lines += ['@tag(team="blue")', "def first(x: int) -> int:", "    return x"]
    before = "first: int"
    for layer in range(30):
        for side in ("left", "right"):
            lines += [f"def {side}_{layer}({before}) -> int:", "    return 1"]
        before = f"left_{layer}: int, right_{layer}: int"
    lines += ['@tag(team="blue")', f"def last({before}) -> int:", "    return 2"]
    (tmp_path / "many_paths.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("many_paths")

    state = computing(module, "last", nodes={"team": "blue"}, return_state=True)

    runs = task_runs(state, "compute", "first", "last")
    related = [item.id for items in runs["last"].task_inputs.values() for item in items]
    assert sorted(related) == sorted([runs["compute"].id, runs["first"].id])


def test_an_invalid_tag_is_reported() -> None:
    module = ad_hoc_utils.create_temporary_module(wrong, module_name="wrong_tag")
    with pytest.raises(
        ValueError, match="tag prefect_retries of the node wrong must be a number, not 'often'"
    ):
        computing(module, "wrong")


def test_coroutines_are_task_runs_too() -> None:
    module = ad_hoc_utils.create_temporary_module(fetched, module_name="fetching")

    @flow
    async def fetching() -> Any:
        run = await Dataflow(module, nodes="tasks").aexecute("fetched", inputs={"x": 1})
        return run["fetched"]

    state: Any = asyncio.run(fetching(return_state=True))  # type: ignore[arg-type]
    assert state.result() == 1
    assert set(task_runs(state, "fetched")) == {"fetched"}


def test_a_cached_node_has_no_task_run(tmp_path: Path) -> None:
    @task(task_run_name="cached")
    def cached() -> Any:
        described = Dataflow(totals, nodes="tasks", picture=False).with_cache(path=tmp_path)
        return described.execute("total", inputs={"x": 1})["total"]

    @flow
    def caching() -> Any:
        return cached()

    first, second = caching(return_state=True), caching(return_state=True)
    assert (first.result(), second.result()) == (3, 3)
    names = ("cached", "doubled", "checked", "total")
    assert set(task_runs(first, *names)) == set(names)
    assert set(task_runs(second, "cached")) == {"cached"}


def test_without_a_run_nodes_are_functions() -> None:
    run = dataflow.execute(totals, "total", inputs={"x": 1}, nodes="tasks")
    assert run["total"] == 3
