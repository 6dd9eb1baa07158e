"""The logger of the run that executes, and what Prefect's loggers of runs may log."""

import logging
import traceback
from typing import Any

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

from prefect_hamilton.masking import mask

RUNS = ("flow_runs", "task_runs")
"""Loggers of Prefect, which log the exception that ends a run with its causes."""


def run_logger() -> "logging.Logger | logging.LoggerAdapter[Any]":
    """Return the logger of the task or flow run; outside of one, that of this package."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("prefect_hamilton")


def mask_tracebacks() -> None:
    """Mask the tracebacks of runs, in the log of this process and of the API."""
    for name in RUNS:
        get_logger(name).addFilter(_masked)


def _masked(record: logging.LogRecord) -> bool:
    if record.exc_info and record.exc_info[1] and not record.exc_text:
        text = "".join(traceback.format_exception(record.exc_info[1]))
        record.exc_text = mask(text.rstrip("\n"))  # every formatter uses it
    return True
