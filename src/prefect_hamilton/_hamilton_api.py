"""The Hamilton UI's HTTP API: requests, and errors of one sentence with the way out."""

from json import dumps
from types import TracebackType
from typing import Any, Self

import httpx
import tenacity

from prefect_hamilton.masking import mask


class HamiltonError(Exception):
    """The Hamilton UI cannot be used; the message is the cause and the way out, in one line."""


class NoAnswerError(HamiltonError):
    """The server did not answer in time."""


class ServerError(HamiltonError):
    """The server answered 5xx, for example because another client created the same object."""


class RefusedError(HamiltonError):
    """The server answered 403 or 404."""


retry_server_errors = tenacity.retry(
    retry=tenacity.retry_if_exception_type(ServerError),
    stop=tenacity.stop_after_attempt(4),
    wait=tenacity.wait_random_exponential(multiplier=0.1, max=1),
    reraise=True,
)
"""Decorator: calls a function again, up to three times, if the server answers 5xx."""


class HamiltonApi:
    """
    A client of the API, open within `with`.

    Args:
        url: The server's address, without `/api`.
        user: The user on whose behalf requests are made.
        key: The server's shared key, if it has one.
        timeout: Seconds for one request.

    Raises:
        HamiltonError: The address is not an http(s) URL.

    """

    def __init__(self, url: str, user: str, key: str | None, timeout: httpx.Timeout) -> None:
        check_url("HAMILTON_API_URL", url)
        self.shown = mask(url.rstrip("/"))
        self._url = f"{url.rstrip('/')}/api/v1"
        self._headers = {"x-api-user": user, "content-type": "application/json"}
        if key:
            self._headers["x-api-key"] = key
        self._timeout = timeout

    def __enter__(self) -> Self:
        """Open the client."""
        # Not earlier, because it loads certificates, for which a flow should not wait.
        self._http = httpx.Client(
            base_url=self._url, headers=self._headers, timeout=self._timeout
        ).__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self._http.__exit__(kind, error, traceback)

    def request(
        self,
        method: str,
        path: str,
        *,
        user: str | None = None,
        params: dict[str, Any] | None = None,
        json: Any = None,
    ) -> Any:
        """Return what the server answers as JSON, None for an empty answer.

        `user` makes this request on behalf of another user. Raises HamiltonError.
        """
        headers = {"x-api-user": user} if user else {}
        # ASCII, for text may hold half of a surrogate pair.
        content = None if json is None else dumps(json, allow_nan=False)
        try:
            response = self._http.request(
                method, path, headers=headers, params=params, content=content
            )
        except httpx.TimeoutException as error:
            raise self.no_answer() from error
        except httpx.HTTPError as error:
            raise HamiltonError(
                f"the Hamilton UI at {self.shown} cannot be reached ({error}): start it or correct "
                "HAMILTON_API_URL"
            ) from error
        answer = f"answered {response.status_code} to {method} {path}"
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise HamiltonError(
                f"the Hamilton UI at {self.shown} refuses the API key: set HAMILTON_API_KEY to the "
                "server's"
            )
        if response.is_server_error:
            raise ServerError(f"the Hamilton UI at {self.shown} {answer}: see its log")
        foreign = f"{self.shown} is not a Hamilton UI (it {answer}): correct HAMILTON_API_URL"
        if response.status_code in (httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND):
            raise RefusedError(foreign)
        if response.is_success and not response.content:
            return None
        is_json = response.headers.get("content-type", "").startswith("application/json")
        if not response.is_success or not is_json:
            raise HamiltonError(foreign)
        return response.json()

    def no_answer(self) -> NoAnswerError:
        """Return the error for a missing answer."""
        return NoAnswerError(
            f"the Hamilton UI at {self.shown} does not answer: check that it is running"
        )


def check_url(variable: str, url: str) -> httpx.URL:
    """Return the URL that an environment variable holds; raises HamiltonError if it is not one."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise HamiltonError(f"{variable} must be an http(s) URL, not {mask(url)!r}")
    return parsed
