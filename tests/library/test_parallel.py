"""`parallel=`: blocks between Parallelizable and Collect in Prefect's task runners, all real."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from prefect import flow, task
from prefect.context import root_settings_context
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from prefect_dask import DaskTaskRunner

from prefect_hamilton import dataflow
from prefect_hamilton.dataflow import NodeError
from tests import services
from tests.conftest import HamiltonUi
from tests.library import squares, together
from tests.library.test_tracking import hamilton_run, node_states

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("prefect_api")]

NODES = {"number", "square", "labelled", "total"}


@flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
def adding(runner: str = "the flow's", **inputs: int) -> dataflow.Run:
    parallel: Any = True
    if runner == "processes":
        parallel = ProcessPoolTaskRunner(max_workers=2)
    elif runner.startswith("tcp:"):
        parallel = DaskTaskRunner(address=runner)
    inputs = {"count": 6} | inputs
    return dataflow.execute(squares, "total", inputs=inputs, parallel=parallel, picture=False)


@pytest.fixture(autouse=True)
def api_of_threads_and_processes(prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    # Threads have the settings of the process, and would start a server of their own without.
    monkeypatch.setattr("prefect.context.GLOBAL_SETTINGS_CONTEXT", root_settings_context())


@pytest.fixture(scope="module")
def dask(prefect_server: services.Service) -> Iterator[str]:
    """A Dask cluster: a scheduler and two workers, each a process; yields its address."""
    address = f"tcp://127.0.0.1:{services.free_port()}"
    env = os.environ | {
        "PYTHONPATH": str(services.ROOT),
        "PREFECT_API_URL": f"{prefect_server.url}/api",
    }
    here = ["--host", "127.0.0.1", "--no-dashboard"]
    worker = ["dask_worker", address, "--nworkers", "1", "--nthreads", "1", *here]
    commands = [["dask_scheduler", "--port", address.rpartition(":")[2], *here], worker, worker]
    with ExitStack() as running:
        for command in commands:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{command[0]}", *command[1:]], env=env
            )
            running.callback(process.wait)
            running.callback(process.terminate)
        from distributed import Client

        with Client(address, timeout=120) as client:
            client.wait_for_workers(2, timeout=120)
        yield address


def test_the_flows_own_task_runner_runs_the_blocks_in_threads(
    hamilton_ui: HamiltonUi, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in hamilton_ui.env.items():
        monkeypatch.setenv(name, value)
    run = adding()
    assert run["total"] == (55, {os.getpid()})
    assert set(run.node_seconds) == NODES
    assert set(node_states(hamilton_run(hamilton_ui, run.url)).values()) == {"SUCCESS"}


def test_a_pool_of_processes_runs_the_blocks() -> None:
    run = adding("processes")
    sum_, processes = run["total"]
    assert sum_ == 55
    assert os.getpid() not in processes
    assert set(run.node_seconds) == NODES


def test_an_existing_dask_cluster_runs_the_parallel_blocks(dask: str) -> None:
    run = adding(dask)
    sum_, processes = run["total"]
    assert sum_ == 55
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert set(run.node_seconds) == NODES


def test_a_node_that_fails_in_another_process_is_named() -> None:
    with pytest.raises(ArithmeticError, match=r"2 is forbidden \(node square\)") as caught:
        adding("processes", forbidden=2)
    assert isinstance(caught.value, NodeError)


def test_as_many_blocks_run_at_once_as_the_pool_has_threads() -> None:
    """Each waits for all others."""
    count = 200
    together.barrier = threading.Barrier(count)

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=count))
    def meeting() -> Any:
        run = dataflow.execute(
            together, "total", inputs={"count": count}, parallel=True, picture=False
        )
        return run["total"]

    assert meeting() == count


def test_a_dataflow_with_a_task_runner_is_executed_twice_at_once() -> None:
    shared = dataflow.Dataflow(
        together, parallel=ThreadPoolTaskRunner(max_workers=2), picture=False
    )
    # Both executions are between the start and the end of their runners.
    together.barrier = threading.Barrier(2)

    @task
    def executed() -> Any:
        return shared.execute("total", inputs={"count": 1})["total"]

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
    def twice() -> list[Any]:
        return [future.result() for future in [executed.submit() for _ in range(2)]]

    assert twice() == [1, 1]


def test_without_a_flow_a_task_runner_must_be_given() -> None:
    with pytest.raises(RuntimeError, match="execute the dataflow in a flow, or pass a task runner"):
        dataflow.execute(squares, "total", inputs={"count": 2}, parallel=True)
