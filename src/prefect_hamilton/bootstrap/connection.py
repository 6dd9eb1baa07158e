"""Connections to a Prefect server and a Hamilton UI that may still be starting."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.settings import get_current_settings
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from prefect_hamilton.bootstrap.errors import BootstrapError

T = TypeVar("T")

PAGE = 200
"""Maximum number of objects in an answer of the server."""


class _NotYetThereError(Exception):
    """The server does not answer yet; a later attempt may succeed."""


@asynccontextmanager
async def connect(timeout: float) -> AsyncIterator[PrefectClient]:
    """Yield a client of a server that answers; its errors become one line each."""
    url = get_current_settings().api.url
    if url is None:
        raise BootstrapError(
            "PREFECT_API_URL is not set: set it to the server's address, which ends in /api."
        )
    await wait(lambda: _probe_prefect(url), timeout)
    try:
        async with get_client() as client:
            yield client
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            raise _unauthorized(url) from error
        raise BootstrapError(f"{url} {_refused(error)}") from error
    except httpx.TransportError as error:
        raise BootstrapError(f"{url} stopped answering ({type(error).__name__}).") from error
    except PrefectException as error:
        raise BootstrapError(f"{url}: {_changed(error)}") from error


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Raise the server's refusal of one object as a BootstrapError that names it.

    A server that requires a password or stops answering refuses every object: `connect` says so.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            raise
        raise BootstrapError(f"{key}: the server {_refused(error)}") from error
    except PrefectException as error:
        raise BootstrapError(f"{key}: {_changed(error)}") from error


async def every(read: Callable[..., Awaitable[list[T]]], **filters: Any) -> AsyncIterator[T]:
    """Yield the objects of all pages that a method of the client answers."""
    offset = 0
    while True:
        page = await read(**filters, limit=PAGE, offset=offset)
        for each in page:
            yield each
        offset += len(page)
        if len(page) < PAGE:
            return


def _refused(error: httpx.HTTPStatusError) -> str:
    request, response = error.request, error.response
    reason = _one_line(response.text)
    return f"refused {request.method} {request.url.path} ({response.status_code}): {reason}"


def _changed(error: PrefectException) -> str:
    what = _one_line(str(error)) or type(error).__name__
    return f"{what} Another bootstrap or user may have changed it meanwhile: try again."


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _unauthorized(url: str) -> BootstrapError:
    return BootstrapError(
        f"{url} requires a password (401): set PREFECT_API_AUTH_STRING to the server's "
        "user:password."
    )


async def _get(url: str, what: str, variable: str, auth: str | None = None) -> httpx.Response:
    """GET with one short try. Raises _NotYetThereError when waiting may help."""
    user, _, password = (auth or "").partition(":")
    try:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
            response = await http.get(url, auth=(user, password) if auth else None)
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise _NotYetThereError(
            f"{what} does not answer at {url} ({reason}): check that it is running and that "
            f"{variable} is right."
        ) from error
    if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise _NotYetThereError(f"{what} answers {response.status_code} at {url}: see its log.")
    return response


async def _probe_prefect(url: str) -> None:
    secret = get_current_settings().api.auth_string
    response = await _get(
        f"{url.rstrip('/')}/admin/version",
        "the Prefect server",
        "PREFECT_API_URL",
        secret.get_secret_value() if secret else None,
    )
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise _unauthorized(url)
    # The server's UI answers 200 to any path.
    if response.status_code != httpx.codes.OK or not response.text.startswith('"'):
        raise BootstrapError(
            f"{url} is not a Prefect API ({response.status_code}): set PREFECT_API_URL to the "
            "address of the API, such as http://127.0.0.1:4200/api."
        )


async def probe_hamilton(url: str) -> None:
    """Return if a Hamilton UI answers at this address, or raise why not."""
    response = await _get(f"{url.rstrip('/')}/api/ping", "the Hamilton UI", "HAMILTON_API_URL")
    if response.status_code != httpx.codes.OK:
        raise BootstrapError(
            f"{url} is not a Hamilton UI ({response.status_code} at /api/ping): set "
            "HAMILTON_API_URL to its address, such as http://127.0.0.1:8241."
        )


async def wait(probe: Callable[[], Awaitable[None]], timeout: float) -> None:
    """Probe until the server answers, or raise BootstrapError after `timeout` seconds."""
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(_NotYetThereError),
            stop=stop_after_delay(timeout),
            wait=wait_fixed(0.3),
            reraise=True,
        ):
            with attempt:
                await probe()
    except _NotYetThereError as error:
        raise BootstrapError(f"After {timeout:g} s {error}") from error
