"""Django settings of the Hamilton UI in a cluster: those of the package, made fit for production.

The package's own settings read DB_HOST, DB_PORT, DB_NAME, DB_USER, DB_PASSWORD, DJANGO_SECRET_KEY,
HAMILTON_ALLOWED_HOSTS, HAMILTON_PERMISSIVE_MODE_GLOBAL_KEY and HAMILTON_BLOB_STORE with what it
needs. Added here:

- HAMILTON_UI_HTTPS: `true` if browsers reach this through HTTPS that ends at a proxy, which sets
  X-Forwarded-Proto; cookies are then for HTTPS only.
- HAMILTON_UI_METRICS_PORT: the port of Prometheus metrics; without it, there are none.
- LOG_LEVEL: WARNING unless set. Logs are one JSON object per line.
"""

import os
from pathlib import Path

from server.settings import *  # noqa: F403  # Django reads settings as names of this module
from server.settings import (
    ALLOWED_HOSTS,
    BASE_DIR,
    DATABASES,
    HAMILTON_PERMISSIVE_MODE_GLOBAL_KEY,
    MIDDLEWARE,
)

from prefect_hamilton.hamilton_ui.logging_config import logging_config

# An empty key would lock all users out; the chart sets an empty string for no key.
HAMILTON_PERMISSIVE_MODE_GLOBAL_KEY = HAMILTON_PERMISSIVE_MODE_GLOBAL_KEY or None
ALLOWED_HOSTS = [host.strip() for host in ALLOWED_HOSTS if host.strip()]

MIDDLEWARE = [
    MIDDLEWARE[0],  # /api/ping, for any Host
    "prefect_hamilton.hamilton_ui.ui_files.content_security_policy",
    "prefect_hamilton.hamilton_ui.middleware.close_unused_pages",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    *[m for m in MIDDLEWARE[1:] if m != "django.middleware.security.SecurityMiddleware"],
]

# The UI's files are named after their content, so a browser may cache them for ever.
WHITENOISE_ROOT = BASE_DIR / "build"
WHITENOISE_IMMUTABLE_FILE_TEST = r"^/assets/"
STATICFILES_DIRS: list[Path] = []
STATIC_ROOT = None

HTTPS = os.environ.get("HAMILTON_UI_HTTPS", "").lower() == "true"
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SESSION_COOKIE_SECURE = HTTPS
CSRF_COOKIE_SECURE = HTTPS

METRICS_PORT = int(os.environ.get("HAMILTON_UI_METRICS_PORT") or 0)
if METRICS_PORT:
    # Around all but the answer to probes, which would be most of the requests.
    MIDDLEWARE.insert(1, "prefect_hamilton.hamilton_ui.request_metrics.observe_requests")
    # The same database, for which a scrape waits for 2 seconds only.
    options = DATABASES["default"].get("OPTIONS", {})
    DATABASES["metrics"] = DATABASES["default"] | {
        "OPTIONS": options | {"connect_timeout": 2, "tcp_user_timeout": 2000}
    }

LOGGING = logging_config({"()": "prefect_hamilton.logs.JsonFormatter"})
