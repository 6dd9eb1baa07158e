"""A program with a flow, a task and a dataflow, whose spans and log a test looks at."""

import os
import signal
import sys

from prefect import flow, get_run_logger, task

from prefect_hamilton import dataflow


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


if __name__ == "__main__":
    state = traced(int(sys.argv[1]), return_state=True)
    names = ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto")
    loaded = sorted(name for name in sys.modules if name.startswith(names))
    sys.stdout.write(f"\n{state.type.value} {' '.join(loaded)}\n")
