"""Wait until the Prefect API answers and the bootstrap has created the work pool.

The worker's init container runs it. It ends with an error after `WAIT_SECONDS`.
"""

import argparse
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

    @retry(retry=retry_if_result(bool), stop=stop_after_delay(seconds), wait=wait_fixed(1))
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


def main() -> None:
    """Wait for the given work pool."""
    parser = argparse.ArgumentParser(
        prog="prefect_hamilton.server.wait_for_work_pool", description=__doc__
    )
    parser.add_argument("pool", help="name of the work pool")
    pool = parser.parse_args().pool
    with client() as api:
        if reason := wait(api, pool):
            sys.exit(f"The work pool {pool} did not exist after {WAIT_SECONDS} s. {reason}")
    print(f"The work pool {pool} exists.")


if __name__ == "__main__":
    with lines("prefect_hamilton.server.wait_for_work_pool"):
        main()
