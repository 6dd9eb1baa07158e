"""A standby pod: it has imported everything, and waits for the flow run that it will execute.

A worker sends an assignment: a line of JSON on standard input, which arrives at once, and
an annotation of the pod, which Kubernetes writes to a file some time later. The annotation counts
as well, because the worker may have died before it could write the line.

The worker uses the constants of this module, too.
"""

import importlib
import json
import logging
import os
import re
import select
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from prefect_hamilton import extensions, traces

SECONDS = "PREFECT_HAMILTON_STANDBY_SECONDS"
"""Variable that makes a pod a standby: the number of seconds after which an idle one ends."""

PRELOAD = "PREFECT_HAMILTON_STANDBY_PRELOAD"
"""Variable with the modules to import besides Prefect, separated by commas."""

FILE = "PREFECT_HAMILTON_STANDBY_FILE"
"""Variable with the path of the file that has the annotation."""

ANNOTATION = "prefect-hamilton/flow-run"
"""Annotation of the pod with the assignment; empty while the pod is idle."""

ENVIRONMENT = "environment"
"""Key of the assignment: what the flow run adds to the environment."""

INTERVAL_SECONDS = 0.25
"""How often an idle pod looks for the file and for SIGTERM."""

logger = logging.getLogger("prefect.flow_pod")

IMPORTED_LATE = (
    "anyio._backends._asyncio",
    "encodings.idna",
    "prefect.concurrency.services",
    "prefect.task_engine",
    "prefect.utilities.visualization",
    "pydantic.v1",
)
"""What Prefect imports only in a flow run, and which reads nothing of its environment."""

_REFERENCE = re.compile(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")


def preload(names: str) -> None:
    """Import modules, so that the process that is forked for the flow has them."""
    modules = [name.strip() for name in names.split(",") if name.strip()]
    if modules:
        # Before one of them imports Hamilton, which would load every extension.
        extensions.load_lazily()
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    # Threads do not outlive the fork; the process of the flow starts the traces.
    with traces.postponed():
        for name in modules:
            try:
                importlib.import_module(name)
            except Exception as error:
                logger.warning("Cannot preload %s: %r. Correct flows.standby.preload.", name, error)


def become_flow_run() -> None:
    """Wait for an assignment, and give this process the environment of its flow run.

    Exits with 0 if SIGTERM comes first, or the time is over. SIGTERM must be blocked.
    """
    logger.info("Standby pod is idle: everything is imported.")
    file, seconds = Path(os.environ.pop(FILE)), float(os.environ.pop(SECONDS))
    assignment = _assignment(file, time.monotonic() + seconds)
    if assignment is None:
        sys.exit(0)
    # As in a pod that was created for the flow run: its standard input is empty.
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for name, value in assignment.items():
        os.environ[name] = expanded(value, os.environ)
    # The worker waits for this line.
    logger.info("Standby pod begins flow run '%s'.", os.environ.get("PREFECT__FLOW_RUN_ID"))


def _assignment(file: Path, until: float) -> dict[str, str] | None:
    """Return the environment of the flow run; None if the pod must end without one."""
    received, is_open = b"", True
    while True:
        is_over = signal.SIGTERM in signal.sigpending() or time.monotonic() >= until
        inputs = [0] if is_open else []
        # What has arrived already still counts.
        readable, _, _ = select.select(inputs, [], [], 0 if is_over else INTERVAL_SECONDS)
        if readable:
            data = os.read(0, 1 << 16)
            is_open = bool(data)
            received += data
        *lines, received = received.split(b"\n")
        for text in (*lines, _content(file)):
            if (assignment := parsed(text)) is not None:
                return assignment
        if is_over and not readable:
            return None


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def parsed(text: bytes) -> dict[str, str] | None:
    """Return the environment that an assignment names; None if the text is none."""
    try:
        environment = json.loads(text)[ENVIRONMENT]
        return {str(name): str(value) for name, value in environment.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def expanded(value: str, environment: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by the variable's value, as Kubernetes does when it starts a container."""

    def replace(found: re.Match[str]) -> str:
        name = found[1]
        return "$" if name is None else environment.get(name, found[0])

    return _REFERENCE.sub(replace, value)
