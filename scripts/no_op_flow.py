"""The flow that the benchmarks run: all its time is Prefect's."""

import time

from prefect import flow, task


@task
def nothing() -> None:
    """Do nothing."""


@flow(name="no-op")
def no_op(seconds: float = 0) -> None:
    """Run one task that does nothing, after a number of seconds."""
    time.sleep(seconds)
    nothing()
