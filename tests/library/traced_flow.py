"""A program with a flow, a task and a dataflow, whose spans and log a test looks at."""

import asyncio
import logging
import os
import signal
import sys
import time

from hamilton import ad_hoc_utils
from hamilton.htypes import Collect, Parallelizable
from prefect import State, flow, get_run_logger, task
from prefect.runtime import flow_run as run_time
from prefect.states import Failed

from prefect_hamilton import dataflow
from prefect_hamilton.dataflow import Dataflow
from prefect_hamilton.metrics import measure


def amount(factor: int) -> int:
    get_run_logger().info("in the node")
    return 2 * factor


def share(amount: int) -> float:
    return 1 / amount


@task(task_run_name="compute")
def compute(factor: int) -> float:
    run = dataflow.execute(
        sys.modules[__name__], ["share"], inputs={"factor": factor}, name="shares", picture=False
    )
    return float(run["share"])


@flow(flow_run_name="traced")
def traced(factor: int = 1, end: str = "") -> float:
    result = compute(factor)
    if end == "sigterm" and os.environ.get("IS_FIRST"):
        os.kill(os.getppid(), signal.SIGTERM)
        signal.pause()
    return result


def part(number: int) -> Parallelizable[int]:
    yield from range(number)


def square(part: int) -> int:
    return part * part


def total(square: Collect[int]) -> int:
    return sum(square)


async def slow(number: int) -> int:
    await asyncio.sleep(0)
    return number


blocks = ad_hoc_utils.create_temporary_module(part, square, total, module_name="blocks")
coroutines = ad_hoc_utils.create_temporary_module(slow, module_name="coroutines")


@flow(flow_run_name="other")
def other() -> None:
    inputs = {"number": 1}
    Dataflow(blocks, parallel=True, picture=False).execute("total", inputs=inputs)
    asyncio.run(dataflow.aexecute(coroutines, "slow", inputs=inputs, picture=False))


@task(task_run_name="load")
def load() -> None:
    with measure("load") as metrics:
        metrics.rows_read, metrics.rows_rejected, metrics.rows_written = 10, 3, 7


@flow(flow_run_name="returned")
def returned() -> State[None]:
    return Failed(message="Not today")


@task(task_run_name="attempt", timeout_seconds=0.1)
def too_slow() -> None:
    time.sleep(0.3)


@task
def follows(_: None) -> None:
    pass


@task(task_run_name="last")
def last() -> None:
    logging.getLogger("mine").warning("in the last task")


@flow(flow_run_name="retried", retries=1)
def retried() -> None:
    last()
    if run_time.run_count == 1:
        raise ValueError("The first attempt fails.")


@flow(flow_run_name="late")
def late() -> None:
    """One task times out, another one cannot run, and a third one runs after them."""
    states = [too_slow(return_state=True)]
    states.append(follows(states[0], return_state=True))
    last()


def connection(url: str) -> int:
    raise ConnectionError(f"Cannot connect to {url}")


@task(task_run_name="connects")
def connects() -> None:
    url = f"postgresql://etl:{os.environ['DATABASE_PASSWORD']}@db/w"
    nodes = ad_hoc_utils.create_temporary_module(connection, module_name="connections")
    dataflow.execute(nodes, "connection", inputs={"url": url}, picture=False)


@flow(flow_run_name="secret")
def secret() -> None:
    connects()


@flow(flow_run_name="measured")
def measured() -> None:
    load()


if __name__ == "__main__":
    flows = (other, measured, returned, retried, late, secret)
    others = {each.__name__: each for each in flows}
    if named := others.get(sys.argv[1]):
        state = named(return_state=True)
    else:
        state = traced(int(sys.argv[1]), return_state=True)
    names = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto")
    loaded = sorted(name for name in sys.modules if name.startswith(names))
    sys.stdout.write(f"\n{state.type.value} {' '.join(loaded)}\n")
