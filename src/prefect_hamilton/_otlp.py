"""What OpenTelemetry's exporters log: one reason for a warning, and never a credential."""

import logging
from functools import cache

from prefect_hamilton.masking import MASK, mask

HEADERS = "opentelemetry.util.re"
"""Logger of what is wrong in OTEL_EXPORTER_OTLP_HEADERS; it would log the value."""


class Reason:
    """Keeps what an exporter logs for a warning; `text` is why the last request failed."""

    def __init__(self, module: str) -> None:
        self.text = "no answer"
        logging.getLogger(module).addFilter(self._keep)
        logging.getLogger(HEADERS).addFilter(_hide)

    def _keep(self, record: logging.LogRecord) -> bool:
        # The first message of a request gives the cause, the last one only that it was given up.
        if record.levelno == logging.WARNING or self.text == "no answer":
            self.text = mask(record.getMessage())
        return False


@cache
def reason(module: str) -> Reason:
    """Return the one of a module, whose logger would ask only the first of several filters."""
    return Reason(module)


def _hide(record: logging.LogRecord) -> bool:
    record.args = (MASK,)
    return True
