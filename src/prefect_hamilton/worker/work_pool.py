"""Wait until the Prefect API answers and the bootstrap has created the work pool.

Prefect's worker would look for a missing pool only at each heartbeat, every 30 seconds.
"""

import sys
from urllib.parse import quote

import httpx
from tenacity import RetryError, retry, retry_if_result, stop_after_delay, wait_fixed

from prefect_hamilton.logs import lines
from prefect_hamilton.server.api import client

WAIT_SECONDS = 1800


def wait(api: httpx.Client, pool: str, *, seconds: float = WAIT_SECONDS) -> str:
    """Return "" when the pool exists, or the reason after the given number of seconds.

    Prints the reason to wait each time that it changes.
    """
    said: list[str] = []

    @retry(retry=retry_if_result(bool), stop=stop_after_delay(seconds), wait=wait_fixed(0.3))
    def ask() -> str:
        reason = reason_to_wait(api, pool)
        if reason and said[-1:] != [reason]:
            said.append(reason)
            print(reason, flush=True)
        return reason

    try:
        return ask()
    except RetryError:
        return said[-1]


def reason_to_wait(api: httpx.Client, pool: str) -> str:
    """Send one request. Returns "" if the pool exists."""
    url = str(api.base_url).rstrip("/")
    try:
        response = api.get(f"work_pools/{quote(pool, safe='')}")
    except httpx.TransportError as error:
        return f"Waiting for the Prefect API at {url} ({error})."
    if response.is_success:
        return ""
    if response.status_code == httpx.codes.NOT_FOUND:
        return f"Waiting for work pool {pool}: the bootstrap creates it."
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return f"{url} refuses the credential ({response.status_code}): check the Secret of `auth`."
    return f"Waiting for the Prefect API at {url} (it answers {response.status_code})."


def await_creation(pool: str) -> None:
    """Wait for the work pool; exits with status 1 and the reason after `WAIT_SECONDS`."""
    with lines("prefect_hamilton.worker.work_pool"), client() as api:
        if reason := wait(api, pool):
            sys.exit(f"The work pool {pool} did not exist after {WAIT_SECONDS} s. {reason}")
        print(f"The work pool {pool} exists.", flush=True)
