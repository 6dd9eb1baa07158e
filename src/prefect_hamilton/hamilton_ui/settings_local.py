"""Django settings of the Hamilton UI on a laptop: those of the package for SQLite, made safe.

HAMILTON_BASE_DIR is the folder of the data, DJANGO_SECRET_KEY the secret key. Only with
HAMILTON_PERMISSIVE_MODE_GLOBAL_KEY does the API ask for a key.
"""

import os

from server.settings_mini import *  # noqa: F403  # Django reads settings as names of this module
from server.settings_mini import DB_DIR, MIDDLEWARE

from prefect_hamilton.hamilton_ui.logging_config import logging_config

DEBUG = False
SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
HAMILTON_PERMISSIVE_MODE_GLOBAL_KEY = os.environ.get("HAMILTON_PERMISSIVE_MODE_GLOBAL_KEY") or None

# The folder whose `build/` is served as the UI.
BASE_DIR = DB_DIR / "page"
MIDDLEWARE = [
    "prefect_hamilton.hamilton_ui.ui_files.content_security_policy",
    *MIDDLEWARE,
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DB_DIR / "db.sqlite3",
        # Several flows write at once: wait for each other instead of failing.
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }
}

METRICS_PORT = 0  # none: what counts runs is written for PostgreSQL

LOGGING = logging_config({"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"})
