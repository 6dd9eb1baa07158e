"""Flow `ui-walkthrough-retries`: what Prefect's UI shows of tasks that fail and are retried.

python flows/retries_demo.py --help
"""

import sys
from collections.abc import Sequence
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import task_run
from prefect.states import Failed

from prefect_hamilton import command_line


class DemonstrationError(Exception):
    """A failure on purpose."""


@task(name="flaky_transform", retries=2, retry_delay_seconds=1, cache_policy=NO_CACHE)
def flaky_transform(should_fail: bool) -> str:
    """Fail at the first attempt and succeed at the second, or fail at every one."""
    attempt: int = task_run.run_count
    if should_fail or attempt == 1:
        raise DemonstrationError(f"flaky_transform fails on purpose (attempt {attempt})")
    get_run_logger().info("flaky_transform succeeded at attempt %s", attempt)
    return f"succeeded at attempt {attempt}"


@task(name="optional_failure", retries=1, retry_delay_seconds=1, cache_policy=NO_CACHE)
def optional_failure(should_fail: bool) -> str:
    """Succeed at once, or fail at every attempt."""
    attempt: int = task_run.run_count
    if should_fail:
        raise DemonstrationError(f"optional_failure fails on purpose (attempt {attempt})")
    return f"succeeded at attempt {attempt}"


@flow(name="ui-walkthrough-retries")
def ui_walkthrough_retries(should_fail: bool = False) -> dict[str, str] | State[Any]:
    """
    Show how Prefect retries tasks.

    By default, the run succeeds after a retry. With `should_fail`, both tasks exhaust their retries
    and the run fails.

    Args:
        should_fail: Let both tasks fail at every attempt.

    """
    states = {
        # The second task runs even if the first fails, so that a run shows both.
        "flaky_transform": flaky_transform(should_fail, return_state=True),
        "optional_failure": optional_failure(should_fail, return_state=True),
    }
    failed = [name for name, state in states.items() if not state.is_completed()]
    if failed:
        return Failed(message=f"Retries exhausted: {', '.join(failed)}")
    return {name: state.result() for name, state in states.items()}


def _in_short(outcome: dict[str, str]) -> str:
    return ", ".join(f"{name} {what}" for name, what in outcome.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow once from the command line; returns the exit code."""
    return command_line.run(ui_walkthrough_retries, _in_short, arguments)


if __name__ == "__main__":
    sys.exit(main())
