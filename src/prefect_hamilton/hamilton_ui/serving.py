"""Serves the Hamilton UI with gunicorn, in a cluster and on a laptop."""

import sys

from gunicorn.app import wsgiapp

CONFIG = "python:prefect_hamilton.hamilton_ui.gunicorn_config"


def serve() -> None:
    """Serve with the settings of DJANGO_SETTINGS_MODULE until SIGTERM or SIGINT, then exit."""
    sys.argv = ["gunicorn", "--config", CONFIG]
    wsgiapp.run()
