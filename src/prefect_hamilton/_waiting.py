"""How long this process waits for an OpenTelemetry collector that does not answer.

Metrics wait when a task ends, and traces when the process does. Both mostly go to one collector,
for which the process waits SECONDS in all.
"""

import os
from urllib.parse import urlsplit

SECONDS = 3.0

_waited: dict[str, float] = {}


def collector(variables: tuple[str, ...]) -> str:
    """Return host and port of the endpoint in the first of these variables that is set."""
    endpoints = (os.environ.get(name) for name in variables)
    return urlsplit(next(filter(None, endpoints), "")).netloc.rpartition("@")[2]


def note(collector: str, seconds: float) -> None:
    """Note that this number of seconds was waited in vain."""
    _waited[collector] = _waited.get(collector, 0.0) + seconds


def left(collector: str) -> float:
    """Return for how many seconds this process may still wait."""
    return max(SECONDS - _waited.get(collector, 0.0), 0.0)
