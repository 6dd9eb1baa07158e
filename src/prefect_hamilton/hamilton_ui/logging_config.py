"""What the Hamilton UI logs, in Django's and gunicorn's setting."""

import os
from typing import Any


def logging_config(formatter: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration for `logging`: lines of the formatter, from LOG_LEVEL (WARNING)."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": formatter},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "lines"}},
        "loggers": {
            # A request for another host is answered 400, which needs no traceback, too.
            "django.security.DisallowedHost": {"handlers": [], "propagate": False},
            "prefect_hamilton.hamilton_ui": {"level": "INFO"},
        },
        # INFO is several lines a request.
        "root": {"handlers": ["console"], "level": os.environ.get("LOG_LEVEL", "WARNING")},
    }
