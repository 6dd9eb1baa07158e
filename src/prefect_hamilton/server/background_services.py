"""Run the background services: `prefect server services start` with this package's rules."""

import runpy
import sys

from prefect_hamilton.server import notifications, proactive_triggers


def main() -> None:
    """Run until a signal. Everything comes from Prefect's settings."""
    notifications.report_failures()
    proactive_triggers.replace_windows()
    sys.argv = ["prefect", "server", "services", "start"]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
