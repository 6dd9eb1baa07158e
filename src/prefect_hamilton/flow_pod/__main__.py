"""Execute the flow run that PREFECT__FLOW_RUN_ID, or the only argument, names.

With PREFECT_HAMILTON_STANDBY_SECONDS, wait for a flow run first.
"""

import gc
import os
import signal
import sys
from uuid import UUID

from prefect_hamilton import logs
from prefect_hamilton.flow_pod import JSON_FORMATTER


def flow_run_id() -> UUID:
    """Return the flow run to execute; exit 2 with an explanation if there is none."""
    value = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PREFECT__FLOW_RUN_ID", "")
    try:
        return UUID(value)
    except ValueError:
        with logs.lines("prefect.flow_pod"):
            sys.stderr.write(
                f"flow_pod: {value!r} is not the id of a flow run; set PREFECT__FLOW_RUN_ID\n"
            )
            sys.exit(2)


if __name__ == "__main__":
    # A pod may receive SIGTERM while Prefect is still being imported. The signal is then held back
    # until it can be handled, so that the run is rescheduled.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    if os.environ.get("PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER") == "json":
        os.environ.setdefault(JSON_FORMATTER, "prefect_hamilton.logs.JsonFormatter")

    # The objects of Prefect's modules are permanent: garbage collection would only take time, and
    # copy the memory that the fork shares.
    gc.disable()
    # Imported first, because it ends the pod if the image has an unsupported version of Prefect.
    from prefect_hamilton.flow_pod import _prefect  # noqa: F401, I001
    from prefect_hamilton import _tls
    from prefect_hamilton.flow_pod import launcher, outages, standby

    _tls.share_context()
    is_standby = bool(os.environ.get(standby.SECONDS))
    if is_standby:
        standby.preload(os.environ.pop(standby.PRELOAD, ""))
    gc.freeze()
    gc.enable()
    outages.git_seconds()  # An invalid number ends the pod before it takes the flow run up.
    outages.repeat_requests()
    if is_standby:
        standby.become_flow_run()
    sys.exit(launcher.execute(flow_run_id()))
