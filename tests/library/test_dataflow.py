"""`dataflow.execute`: results of a dataflow in a task, and what the UIs show of it."""

import asyncio
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hamilton import ad_hoc_utils
from hamilton.base import PandasDataFrameResult
from hamilton.io.materialization import to
from hamilton.lifecycle import NodeExecutionHook
from prefect import State, flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact

from prefect_hamilton import dataflow, graphs
from prefect_hamilton.dataflow import Dataflow, NodeError
from tests.conftest import HamiltonUi
from tests.library import totals
from tests.library.test_tracking import get, hamilton_run, node_states
from tests.library.totals import NoMoneyError, total


def read(address: str) -> str:
    raise ConnectionRefusedError(111, f"nobody listens\nat {address}")


reading = ad_hoc_utils.create_temporary_module(read, module_name="reading")


async def slow_double(x: int) -> int:
    await asyncio.sleep(0)
    return x * 2


async def slow_check(slow_double: int) -> int:
    if slow_double < 0:
        raise NoMoneyError("this", -slow_double)
    return slow_double


def plus(slow_check: int, x: int) -> int:
    return slow_check + x


coroutines = ad_hoc_utils.create_temporary_module(
    slow_double, slow_check, plus, module_name="coroutines"
)


def artifacts(state: State[Any]) -> dict[str | None, Artifact]:
    flow_run_id = state.state_details.flow_run_id
    assert flow_run_id is not None
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
        )
    return {artifact.key: artifact for artifact in found}


# Results


def test_a_run_holds_the_results_of_the_outputs_and_the_nodes_times() -> None:
    run = dataflow.execute(totals, ["doubled", total], inputs={"x": 2})
    assert run.results == {"doubled": 4, "total": 6}
    assert run["total"] == 6
    assert run.url is None
    assert list(run.node_seconds) == ["doubled", "checked", "total"]
    assert sum(run.node_seconds.values()) <= run.seconds


def test_config_and_overrides_are_passed_to_hamilton() -> None:
    assert dataflow.execute(totals, "total", inputs={"x": 2}, config={"discount": 1})["total"] == 5
    run = dataflow.execute(totals, "total", inputs={"x": 2}, overrides={"checked": 10})
    assert run["total"] == 12
    assert list(run.node_seconds) == ["total"]


def test_with_methods_do_not_change_the_original_dataflow() -> None:
    seen: list[str] = []

    class Watch(NodeExecutionHook):  # type: ignore[misc]
        def run_before_node_execution(self, *, node_name: str, **_: Any) -> None:
            seen.append(node_name)

        def run_after_node_execution(self, **_: Any) -> None:
            pass

    plain = Dataflow(totals)
    watched = plain.with_adapters(Watch())
    assert [watched.execute("total", inputs={"x": x})["total"] for x in (1, 2)] == [3, 6]
    assert seen == ["doubled", "checked", "total"] * 2
    assert plain.execute("total", inputs={"x": 1})["total"] == 3
    assert len(seen) == 6


def test_hamiltons_materializers_result_builders_and_cache_go_through(tmp_path: Path) -> None:
    saved = Dataflow([totals]).with_materializers(
        to.pickle(id="saved", dependencies=["total"], path=tmp_path / "total.pickle")
    )
    saved.execute("saved", inputs={"x": 2})
    assert pickle.loads((tmp_path / "total.pickle").read_bytes()) == 6  # noqa: S301

    frame = dataflow.execute(totals, "total", inputs={"x": 2}, adapters=[PandasDataFrameResult()])
    assert frame.results.to_dict("list") == {"total": [6]}

    cached = Dataflow(totals).with_cache(path=tmp_path / "cache")
    runs = [cached.execute("total", inputs={"x": 2}) for _ in range(2)]
    assert [run["total"] for run in runs] == [6, 6]
    assert [bool(run.node_seconds) for run in runs] == [True, True]

    overriding = Dataflow([totals, totals]).with_builder(lambda b: b.allow_module_overrides())
    assert overriding.driver().graph.nodes["total"].name == "total"


def test_the_driver_can_be_inspected_without_a_run() -> None:
    assert {variable.name for variable in Dataflow(totals).driver().list_available_variables()} == {
        "checked",
        "discount",
        "doubled",
        "total",
        "x",
    }


def test_coroutines_run_in_hamiltons_async_driver() -> None:
    run = asyncio.run(dataflow.aexecute(coroutines, ["plus"], inputs={"x": 2}))
    assert run["plus"] == 6
    assert set(run.node_seconds) == {"slow_double", "slow_check", "plus"}


@pytest.mark.parametrize(
    ("described", "what"),
    [
        (Dataflow(coroutines, parallel=True), "run blocks in parallel"),
        (Dataflow(coroutines).with_cache(), "cache results"),
    ],
    ids=["parallel", "cache"],
)
def test_what_the_async_driver_cannot_is_refused(described: Dataflow, what: str) -> None:
    with pytest.raises(ValueError, match=f"async driver does not {what}: use execute"):
        asyncio.run(described.aexecute("plus", inputs={"x": 2}))


def test_outputs_may_be_an_iterator() -> None:
    run = dataflow.execute(totals, (name for name in ("total", "doubled")), inputs={"x": 2})
    assert set(run.results) == {"total", "doubled"}


# Failures


def test_a_failure_names_the_node_and_keeps_the_exception_type() -> None:
    with pytest.raises(NoMoneyError) as caught:
        dataflow.execute(totals, "total", inputs={"x": -2})
    error = caught.value
    assert str(error) == "4 € are missing for this (node checked)"
    assert isinstance(error, NodeError)
    assert (error.node, error.missing) == ("checked", 4)
    assert type(error.__cause__) is NoMoneyError


def test_an_operating_system_error_keeps_its_number_and_hides_the_password() -> None:
    with pytest.raises(ConnectionError) as caught:
        dataflow.execute(reading, "read", inputs={"address": "postgresql://me:hunter2@db/x"})
    assert str(caught.value) == ("[Errno 111] nobody listens at postgresql://***@db/x (node read)")
    assert caught.value.errno == 111
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert (str(copy), copy.errno) == (str(caught.value), 111)


def test_a_failure_of_a_coroutine_names_the_node() -> None:
    with pytest.raises(NoMoneyError, match=r"missing for this \(node slow_check\)"):
        asyncio.run(dataflow.aexecute(coroutines, "plus", inputs={"x": -1}))


def test_a_planning_error_is_hamiltons_own() -> None:
    with pytest.raises(ValueError, match="Required input x not provided") as caught:
        dataflow.execute(totals, "total")
    assert not isinstance(caught.value, NodeError)


def test_hamilton_logs_no_input_of_a_node_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConnectionError):
        dataflow.execute(reading, "read", inputs={"address": "hunter2"}, track=False)
    assert "hunter2" not in caplog.text


# What the UIs show of a run


@task
def compute_total(x: int, **options: Any) -> dataflow.Run:
    return dataflow.execute(totals, "total", inputs={"x": x}, **options)


@flow
def shop(x: int = 2, **options: Any) -> dataflow.Run:
    return compute_total(x, **options)


@flow(name="Shop without tasks")
def shop_without_tasks() -> dataflow.Run:
    return dataflow.execute(totals, "total", inputs={"x": 2})


@flow
async def async_shop() -> dataflow.Run:
    @task
    async def compute() -> dataflow.Run:
        dataflow.execute(totals, "total", inputs={"x": 2}, name="from a coroutine")
        return await dataflow.aexecute(coroutines, "plus", inputs={"x": 2})

    return await compute()


@pytest.fixture
def ui(hamilton_ui: HamiltonUi, monkeypatch: pytest.MonkeyPatch) -> HamiltonUi:
    for name, value in hamilton_ui.env.items():
        monkeypatch.setenv(name, value)
    return hamilton_ui


@pytest.mark.services
@pytest.mark.usefixtures("prefect_api")
class TestInRuns:
    def test_a_task_shows_picture_link_and_times_under_its_own_name(
        self, ui: HamiltonUi, caplog: pytest.LogCaptureFixture
    ) -> None:
        state = shop(return_state=True)
        run = state.result()
        assert run["total"] == 6
        found = artifacts(state)
        assert set(found) == {"hamilton-dag-compute-total", "hamilton-run-compute-total"}
        assert "data:image/png;base64," in str(found["hamilton-dag-compute-total"].data)
        assert run.url in str(found["hamilton-run-compute-total"].data)
        assert all(artifact.task_run_id for artifact in found.values())
        in_ui = hamilton_run(ui, run.url)
        assert in_ui["tags"]["prefect_task"] == "compute_total"
        assert in_ui["tags"]["dataflow"] == "totals"
        (version,) = get(ui, f"/dag_templates/{in_ui['dag_template']}")
        assert version["name"] == "prefect_compute_total"
        assert "Executed 3 nodes in 0." in caplog.text

    def test_the_name_and_tags_are_tags_in_the_hamilton_ui(self, ui: HamiltonUi) -> None:
        run = shop(name="sums", tags={"team": "blue"})
        tags = hamilton_run(ui, run.url)["tags"]
        assert (tags["dataflow"], tags["team"]) == ("sums", "blue")

    def test_picture_link_and_times_can_be_turned_off(
        self, ui: HamiltonUi, caplog: pytest.LogCaptureFixture
    ) -> None:
        state = shop(track=False, picture=False, timings=False, return_state=True)
        assert state.result().url is None
        assert artifacts(state) == {}
        assert "Executed" not in caplog.text
        state = shop(link=False, picture=False, return_state=True)
        assert state.result().url is not None
        assert artifacts(state) == {}

    def test_without_a_task_the_flow_gives_the_name(self) -> None:
        state = shop_without_tasks(return_state=True)
        assert state.result()["total"] == 6
        assert set(artifacts(state)) == {"hamilton-dag-shop-without-tasks"}

    def test_async_tasks_publish_the_same_artifacts(
        self, ui: HamiltonUi, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            state: Any = asyncio.run(async_shop(return_state=True))  # type: ignore[arg-type]
        # Prefect's events have a connection of their own, which can be late or closed here.
        records = [r for r in caplog.records if not r.name.startswith("prefect._internal")]
        assert records == []
        run = state.result()
        assert set(artifacts(state)) == {"hamilton-dag-compute", "hamilton-run-compute"}
        in_ui = hamilton_run(ui, run.url)
        assert in_ui["run_status"] == "SUCCESS"
        assert node_states(in_ui) == dict.fromkeys(["slow_double", "slow_check", "plus"], "SUCCESS")

    def test_the_state_of_a_failed_task_names_the_node(self, ui: HamiltonUi) -> None:
        state = shop(x=-1, return_state=True)
        assert state.is_failed()
        assert str(state.message).endswith("NoMoneyError: 2 € are missing for this (node checked)")
        assert isinstance(state.result(raise_on_failure=False), NoMoneyError)

    def test_a_picture_that_cannot_be_drawn_causes_a_warning(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(graphs, "_DRAW", "raise SystemExit('no layout')")
        assert shop()["total"] == 6
        assert "continues without a picture of the dataflow" in caplog.text


# Importing


def test_importing_the_public_modules_loads_no_heavy_package() -> None:
    heavy = "hamilton", "hamilton_sdk", "pandas", "numpy", "matplotlib", "sklearn", "pygraphviz"
    program = (
        "import sys, prefect; before = set(sys.modules)\n"
        "import prefect_hamilton\n"
        "from prefect_hamilton import artifacts, dataflow, graphs, metrics, tracking\n"
        f"print([name for name in {heavy!r} if name in set(sys.modules) - before])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
