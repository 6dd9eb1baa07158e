"""Gunicorn's configuration; WEB_CONCURRENCY sets the number of processes (2 unless set)."""

import os

from prefect_hamilton.hamilton_ui.settings import LOGGING

bind = f"0.0.0.0:{os.environ.get('PORT', '8241')}"  # a pod's own address
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = 8
preload_app = True
worker_tmp_dir = "/dev/shm"  # noqa: S108  # the heartbeat file must not wait for a disk
graceful_timeout = 20
control_socket_disable = True
logconfig_dict = LOGGING | {
    "loggers": LOGGING["loggers"]
    | {
        # Each of the probes' requests would be a line.
        "gunicorn.access": {"level": "WARNING", "propagate": True},
        "gunicorn.error": {"level": "INFO", "propagate": True},
    }
}
