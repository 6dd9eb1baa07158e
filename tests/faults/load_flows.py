"""The flows of the load: each execution writes a row at its start and one at its end.

They run in flow pods, cloned with the working tree, and need what the image `flows` has.
"""

import os
import select
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import tenacity
from prefect import flow, runtime, task
from prefect.concurrency.sync import concurrency

from prefect_hamilton import dataflow
from tests.library import totals

RECORDER = os.environ.get("FAULTS_RECORDER", "http://recorder.faults:8080/rows")


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(httpx.HTTPError),
    stop=tenacity.stop_after_delay(240),
    wait=tenacity.wait_fixed(1),
    reraise=True,
)
def send(row: dict[str, object]) -> None:
    """Store a row; twice the same one is stored once."""
    httpx.post(RECORDER, json=row, timeout=5).raise_for_status()


@contextmanager
def execution() -> Iterator[None]:
    """Record the start of this execution of the flow's body, and how it ends."""
    about = {
        "execution": str(uuid.uuid4()),
        "run": str(runtime.flow_run.id),
        "attempt": runtime.flow_run.run_count,
        "pod": os.environ.get("HOSTNAME", ""),
    }
    send({**about, "id": str(uuid.uuid4()), "event": "start"})
    outcome = "failed"
    try:
        yield
        outcome = "ok"
    except Exception:
        # Not on SIGTERM: then this execution has no end.
        send({**about, "id": str(uuid.uuid4()), "event": "end", "outcome": outcome})
        raise
    send({**about, "id": str(uuid.uuid4()), "event": "end", "outcome": outcome})


class MeantError(Exception):
    """What the flow's code says is wrong."""


@task
def work(seconds: float = 1) -> None:
    time.sleep(seconds)


@task(retries=2, retry_delay_seconds=1)
def work_that_fails_once() -> None:
    if runtime.task_run.run_count == 1:
        raise MeantError("the first attempt of the task")


@task(tags=["faults"])
def work_by_tag() -> None:
    time.sleep(2)


@flow
def succeeds() -> None:
    with execution():
        work()


@flow(retries=2, retry_delay_seconds=2)
def retries() -> None:
    with execution():
        work_that_fails_once()
        if runtime.flow_run.run_count == 1:
            raise MeantError("the first attempt of the flow")


@flow
def fails() -> None:
    with execution():
        work()
        raise MeantError("always")


@flow
def takes_long() -> None:
    with execution():
        for _ in range(5):
            work(5)


@flow
def has_wrong_clock() -> None:
    """Last as long as `takes_long`, in a pod with another clock."""
    with execution():
        # Not time.sleep, which fails under libfaketime.
        select.select([], [], [], 25)


@flow
def part(number: int) -> int:
    work()
    return number


@flow
def has_parts() -> None:
    with execution():
        assert sum(part(number) for number in range(2)) == 1


@flow
def waits_for_tag() -> None:
    with execution():
        work_by_tag()


@flow
def waits_for_slot() -> None:
    with execution(), concurrency("faults", lease_duration=60):
        work(2)


@flow
def leads() -> None:
    with execution():
        work()


@flow
def follows(cause: str) -> None:
    """Started by the automation, once for each run of `leads` that Completed."""
    with execution():
        work()


@task
def calculate() -> None:
    run = dataflow.execute(totals, ["total"], inputs={"x": 1})
    assert run["total"] == 3


@flow
def tracks() -> None:
    """Execute a dataflow that the Hamilton UI shows, if there is one."""
    with execution():
        for _ in range(3):
            calculate()
            work(5)


@flow
def eats_memory() -> None:
    """Take more memory than the pod may use."""
    with execution():
        eaten = []
        while True:
            eaten.append(os.urandom(1 << 24))


@flow
def each_minute() -> None:
    """Started by its schedule."""
    with execution():
        work()
