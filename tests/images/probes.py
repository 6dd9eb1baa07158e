"""Flows that end, or are ended, in different ways."""

import ctypes
import os
import select
import threading
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import FlowRun
from prefect.flows import Flow
from prefect.states import State


def note(hook: str, flow_run: FlowRun) -> None:
    """Leave a trace of a hook where the test looks for it."""
    Path(os.environ["PROBE_NOTES"], f"{hook}-{flow_run.id}").touch()


def on_crashed(flow: Flow[..., None], flow_run: FlowRun, state: State[None]) -> None:
    note("crashed", flow_run)


def on_cancellation(flow: Flow[..., None], flow_run: FlowRun, state: State[None]) -> None:
    note("cancelled", flow_run)


@task
def double(number: int) -> int:
    return 2 * number


@flow(on_crashed=[on_crashed], on_cancellation=[on_cancellation])
def probe(end: str = "return") -> None:
    # Also shows that the file's own folder can be imported from, as in a clone.
    import beside

    get_run_logger().info("pid %s, %s, twice 21 is %s", os.getpid(), beside.WORD, double(21))
    get_run_logger().info("about to %s", end)
    if end == "raise":
        raise ValueError("as asked")
    if end == "exit":
        os._exit(7)
    if end == "segfault":
        ctypes.string_at(0)
    while end == "wait":
        # Not time.sleep, which fails under libfaketime.
        select.select([], [], [], 0.1)


@flow
def part() -> None:
    pass


@flow
def calls_a_subflow() -> None:
    part()
    # Each has been started by a flow run, and sleeps.
    threads = [each for each in threading.enumerate() if each.name.endswith("(run)")]
    get_run_logger().info("%d threads of heartbeats", len(threads))


@flow
async def asynchronous() -> None:
    get_run_logger().info("in an event loop")


@flow
def importing() -> None:
    # What a pull step has installed.
    import library

    get_run_logger().info("found the %s", library.VERSION)
