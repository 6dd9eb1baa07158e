"""The flow that `scripts.bench_pickup` runs: all its time is Prefect's."""

from prefect import flow, task


@task
def nothing() -> None:
    """Do nothing."""


@flow(name="no-op")
def no_op() -> None:
    """Run one task that does nothing."""
    nothing()
