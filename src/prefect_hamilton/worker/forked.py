"""What a process does that is forked for a flow run of the local profile."""

import atexit
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from prefect.logging.configuration import setup_logging

from prefect_hamilton import _tls
from prefect_hamilton.flow_pod import _prefect, attempt, engine, outages

GIVEN = (attempt.VARIABLE, "PREFECT__CONTROL_PORT", "PREFECT__CONTROL_TOKEN")
"""What the engine is given when it may run the flow."""


def main(
    config: str,
    folder: str,
    env: dict[str, str],
    shows_output: bool,
    is_ready: "Connection[Any, Any]",
) -> None:
    """Run the flow run of a configuration of Prefect's supervisor, and exit."""
    os.setsid()
    # As in a new interpreter; otherwise that of this process, which a flow does not expect.
    multiprocessing.set_start_method(None, force=True)
    is_ready.close()
    if not config:
        return
    _become(folder, env, shows_output=shows_output)
    _tls.share_context()
    outages.repeat_requests()
    has_begun = threading.Event()
    _prefect.after_begin(has_begun.set)
    threading.Thread(
        target=_end_with_worker, args=[has_begun], name="end-with-worker", daemon=True
    ).start()
    given = {name: env[name] for name in GIVEN if name in env}
    # Its name tells a worker that is started again which flow run this is.
    with Path(config).with_name(env["PREFECT__FLOW_RUN_ID"]).open("w"):
        try:
            # The folder may be the user's: it is not cleared.
            code = engine.run(Path(config), _descriptor(given), clears=False)
        finally:
            # As at the end of an interpreter; multiprocessing leaves out the second.
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
    sys.exit(code)


def _end_with_worker(has_begun: threading.Event) -> None:
    """End this process when the worker has ended, so that no flow run is left unsupervised.

    The engine then sets the run to Crashed, unless it has not begun: such a run keeps its state,
    and is rescheduled by the local profile. A worker that is stopped ends its flow runs itself.
    """
    if (worker := multiprocessing.parent_process()) is not None:
        worker.join()
        if has_begun.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            os.killpg(0, signal.SIGKILL)


def _become(folder: str, env: dict[str, str], *, shows_output: bool) -> None:
    """Make this process what a new one with the folder, environment and output would be."""
    os.chdir(folder)
    has_other_settings = engine.settings_in(env) != engine.settings_in(os.environ)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    if not shows_output:
        with Path(os.devnull).open("wb") as nothing:
            for number in (1, 2):
                os.dup2(nothing.fileno(), number)
    if has_other_settings:
        _prefect.refresh_global_settings_context()
        # Prefect would change only levels, since the process that is forked has set it up.
        setup_logging(incremental=False)


def _descriptor(given: dict[str, str]) -> int:
    """Return a descriptor from which the engine reads that it may run the flow."""
    waiting, go = os.pipe()
    with os.fdopen(go, "w", encoding="utf-8") as words:
        json.dump(given, words)
    return waiting
