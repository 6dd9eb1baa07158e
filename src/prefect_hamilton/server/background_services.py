"""Run the background services: `prefect server services start` with this package's rules."""

import os
import runpy
import sys

from prefect_hamilton import _metrics_port
from prefect_hamilton.server import (
    notifications,
    outages,
    policy,
    proactive_triggers,
    redelivery,
    repeated_actions,
)

METRICS_PORT = "PREFECT_HAMILTON_SERVICES_METRICS_PORT"
"""Variable with the port of /metrics. Without it, none is served."""


def main() -> None:
    """Run until a signal. Everything else comes from Prefect's settings."""
    policy.apply_rules()
    notifications.correct()
    outages.wait()
    proactive_triggers.replace_windows()
    redelivery.keep_messages()
    redelivery.shorten()
    repeated_actions.recognize()
    if os.environ.get(METRICS_PORT):
        from prefect_hamilton.server import service_metrics

        service_metrics.record()
    sys.argv = ["prefect", "server", "services", "start"]
    with _metrics_port.served(METRICS_PORT):
        runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
