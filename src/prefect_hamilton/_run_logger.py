"""The logger of the run that executes."""

import logging
from typing import Any

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger


def run_logger() -> "logging.Logger | logging.LoggerAdapter[Any]":
    """Return the logger of the task or flow run; outside of one, that of this package."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("prefect_hamilton")
