"""A flow of two tracked tasks; the tests interfere with it at the points it announces."""

import sys
from collections.abc import Callable

from hamilton import ad_hoc_utils, driver
from prefect import flow, task

from prefect_hamilton import tracking


def _nothing(point: str) -> None:
    pass


at: Callable[[str], None] = _nothing
"""Called with `before`, `built` and `executing` as the first task gets there."""


def doubled(x: int) -> int:
    return x * 2


def checked(doubled: int) -> int:
    at("executing")
    if doubled < 0:
        raise ValueError("negative")
    return doubled


def total(checked: int, x: int) -> int:
    return checked + x


dataflow_module = ad_hoc_utils.create_temporary_module(
    doubled, checked, total, module_name="totals"
)

urls: list[str | None] = []
"""Permalinks of the latest flow run, one per task."""


def _execute(task_name: str, x: int) -> int:
    with tracking.track(task_name) as tracked:
        dataflow = (
            driver.Builder().with_modules(dataflow_module).with_adapters(*tracked.adapters).build()
        )
        at("built")
        try:
            return int(dataflow.execute(["total"], inputs={"x": x})["total"])
        finally:
            urls.append(tracked.run_url)


@task
def first_task(x: int) -> int:
    at("before")
    return _execute("first_task", x)


@task
def second_task(x: int) -> int:
    return _execute("second_task", x)


@flow
def tracked_flow(x: int = 1) -> list[int]:
    urls.clear()
    return [first_task(x), second_task(x)]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _announce_and_wait(wanted: str) -> Callable[[str], None]:
    """Print the point and wait for a line, once: for a test in another process."""
    pending = [wanted]

    def stop(point: str) -> None:
        if point in pending:
            pending.remove(point)
            _say(f"at {point}")
            sys.stdin.readline()

    return stop


if __name__ == "__main__":
    at = _announce_and_wait(sys.argv[1])
    _say(f"result {tracked_flow()}")
