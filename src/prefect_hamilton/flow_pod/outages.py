"""Requests are repeated for a limited time while the Prefect API does not answer.

Prefect's client repeats a request five times, within a minute, and neither after a 500 nor before
it has reached the API once. A restart of a server or of its database may last longer.
"""

import os
import ssl
import sys
from collections.abc import Iterator
from typing import cast

import httpx
from prefect.logging import get_logger
from tenacity import (
    Future,
    RetryCallState,
    retry,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from prefect_hamilton import logs
from prefect_hamilton.flow_pod import _prefect

VARIABLE = "PREFECT_HAMILTON_API_OUTAGE_SECONDS"
DEFAULT_SECONDS = 600.0

GIT_VARIABLE = "PREFECT_HAMILTON_GIT_OUTAGE_SECONDS"
GIT_DEFAULT_SECONDS = 120.0
"""Shorter: a wrong address looks the same as a Git server that is down."""

TRANSIENT = {408, 429, 500, 502, 503, 504}

FOREIGN_SETTINGS = {
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504",
    "PREFECT_CLIENT_MAX_RETRIES": "8",
}
"""The nearest that Prefect's own settings come to it, for an interpreter without this package.

Eight repeats take about nine minutes. It still gives up at once where it never reached the API.
"""

logger = get_logger("flow_pod")


def seconds() -> float:
    """Return for how long a request is repeated; exit 2 if the variable has no number."""
    return _seconds(VARIABLE, DEFAULT_SECONDS)


def git_seconds() -> float:
    """Return for how long `git clone` is repeated; exit 2 if the variable has no number."""
    return _seconds(GIT_VARIABLE, GIT_DEFAULT_SECONDS)


def _seconds(variable: str, default: float) -> float:
    value = os.environ.get(variable) or str(default)
    try:
        return float(value)
    except ValueError:
        with logs.lines("prefect.flow_pod"):
            sys.stderr.write(
                f"flow_pod: {value!r} is not a number of seconds; correct {variable}\n"
            )
            sys.exit(2)


def repeat_requests() -> None:
    """Make Prefect's clients in this process repeat requests that fail because of an outage.

    The same request is sent again, so that the server recognizes a state that it has already set.
    """
    repeated = retry(
        retry=retry_if_exception(is_outage),
        stop=stop_after_delay(seconds()),
        wait=wait_random_exponential(max=10),
        before_sleep=_log,
        retry_error_callback=_give_up,
    )
    for client in (_prefect.PrefectHttpxAsyncClient, _prefect.PrefectHttpxSyncClient):
        setattr(client, "send", repeated(client.send))  # noqa: B010  # mypy takes it for a mistake


def is_outage(error: BaseException) -> bool:
    """Whether the API did not answer, or is unavailable, so that a repeated request may succeed."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in TRANSIENT
    # A wrong address or certificate stays wrong.
    return (
        isinstance(error, httpx.TransportError)
        and not isinstance(error, httpx.UnsupportedProtocol)
        and not any(isinstance(each, ssl.SSLCertVerificationError) for each in _chain(error))
    )


def explain(error: BaseException) -> str | None:
    """Return the sentence of the outage behind an error; None if there is none."""
    notes = (note for each in _chain(error) for note in getattr(each, "__notes__", ()))
    return next((note for note in notes if note.startswith(_NOTE)), None)


def log_failure(what: str, error: BaseException) -> None:
    """Log why something failed: what the API refused in one line, all else with its traceback."""
    refused = (each for each in _chain(error) if isinstance(each, httpx.HTTPStatusError))
    if refusal := next(refused, None):
        logger.error("%s: %s", what, str(refusal).split("\n")[0])
    else:
        logger.error("%s: %s", what, error, exc_info=error)


_NOTE = "The Prefect API has not answered for"


def _give_up(attempts: RetryCallState) -> None:
    error = _error(attempts)
    error.add_note(
        f"{_NOTE} {seconds():g} s ({_words(attempts)}); {VARIABLE} sets how long to wait."
    )
    raise error


def _log(attempts: RetryCallState) -> None:
    logger.warning(
        "The Prefect API does not answer (%s). Retrying for %g s in total.",
        _words(attempts),
        seconds(),
    )


def _words(attempts: RetryCallState) -> str:
    error, request = _error(attempts), attempts.args[1]
    said = type(error).__name__
    if isinstance(error, httpx.HTTPStatusError):
        said = f"{error.response.status_code} {error.response.reason_phrase}"
    return f"{request.method} {request.url.path}: {said}"


def _error(attempts: RetryCallState) -> BaseException:
    """Return what failed: only then is there anything to repeat or to give up."""
    return cast(BaseException, cast(Future, attempts.outcome).exception())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
