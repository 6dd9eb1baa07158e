"""Flows that the cluster's tests run in pods, cloned with the working tree."""

import os
import time
from pathlib import Path

from prefect import flow, get_run_logger, task

from prefect_hamilton.metrics import report_quality_breach


@task
def wait_for_word() -> None:
    """Wait until the test has made the file /tmp/go in the pod."""
    while not Path("/tmp/go").exists():
        time.sleep(0.1)


@flow
def waits() -> None:
    """Run until SIGTERM."""
    wait_for_word()


@flow
def eats_memory() -> None:
    """Take more memory than the pod may use."""
    get_run_logger().info("Eating")
    eaten = []
    while True:
        eaten.append(os.urandom(1 << 24))


@flow
def tells(variable: str) -> None:
    """Log an environment variable of the pod."""
    get_run_logger().info("%s is %s", variable, os.environ.get(variable))


@flow
def shows(variables: list[str], files: list[str]) -> None:
    """Log environment variables and the content of files of the pod."""
    for name in variables:
        get_run_logger().info("%s is %s", name, os.environ.get(name))
    for file in files:
        get_run_logger().info("%s has %s", file, Path(file).read_text(encoding="utf-8"))


@flow
def breaches() -> None:
    """Report that the quality of data is too low."""
    report_quality_breach("7 of 10 rows are rejected.")
