"""Gunicorn's configuration of the Hamilton UI; GUNICORN_CMD_ARGS overrides it.

PORT is the port on every address, as a pod needs it (8241), WEB_CONCURRENCY the number of processes
(2).
"""

import os
import socket
import tempfile
from pathlib import Path

from django.conf import settings

wsgi_app = "server.wsgi:application"
# The address of a pod may be of IPv4, of IPv6, or of both.
host = "[::]" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104
bind = f"{host}:{os.environ.get('PORT', '8241')}"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = 8
preload_app = True
# The heartbeat file must not wait for a disk; macOS has no such folder.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
graceful_timeout = 20
control_socket_disable = True
logconfig_dict = settings.LOGGING | {
    "loggers": settings.LOGGING["loggers"]
    | {
        # Each of the probes' requests would be a line.
        "gunicorn.access": {"level": "WARNING", "propagate": True},
        "gunicorn.error": {"level": "INFO", "propagate": True},
    }
}

if settings.METRICS_PORT:
    # prometheus_client reads it when it is imported: with the application, before the fork.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = f"{tempfile.gettempdir()}/hamilton-ui-metrics"

    def when_ready(_: object) -> None:
        """Serve metrics from the first process, which handles no requests."""
        from prefect_hamilton.hamilton_ui import metrics

        metrics.serve(settings.METRICS_PORT)
