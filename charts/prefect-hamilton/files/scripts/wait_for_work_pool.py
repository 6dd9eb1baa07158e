"""Wait until the Prefect API answers and has the work pool that the bootstrap creates.

Usage: wait_for_work_pool.py POOL
"""

import os
import sys
from urllib.parse import quote

import httpx
from tenacity import RetryError, retry, retry_if_result, stop_after_delay, wait_fixed

WAIT_SECONDS = 1800


def main(pool: str) -> None:
    """Say what is waited for each time it changes."""
    url = os.environ["PREFECT_API_URL"]
    said: list[str] = []

    def say(reason: str) -> None:
        if reason and said[-1:] != [reason]:
            said.append(reason)
            print(reason, flush=True)

    @retry(retry=retry_if_result(bool), stop=stop_after_delay(WAIT_SECONDS), wait=wait_fixed(1))
    def wait() -> str:
        reason = reason_to_wait(url, pool)
        say(reason)
        return reason

    try:
        wait()
    except RetryError:
        sys.exit(f"Given up after {WAIT_SECONDS} s.")
    print(f"Work pool {pool} is there.")


def reason_to_wait(url: str, pool: str) -> str:
    """Ask once; empty when the pool is there."""
    headers = {}
    auth = None
    if key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    elif credential := os.environ.get("PREFECT_API_AUTH_STRING"):
        auth = httpx.BasicAuth(*credential.split(":", 1))
    try:
        response = httpx.get(
            f"{url}/work_pools/{quote(pool, safe='')}", headers=headers, auth=auth, timeout=5
        )
    except httpx.TransportError as error:
        return f"Waiting for the Prefect API at {url} ({error})."
    if response.is_success:
        return ""
    if response.status_code == httpx.codes.NOT_FOUND:
        return f"Waiting for work pool {pool}: the bootstrap creates it."
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return f"{url} refuses the credential ({response.status_code}): check the Secret of `auth`."
    return f"Waiting for the Prefect API at {url} (it answers {response.status_code})."


if __name__ == "__main__":
    main(sys.argv[1])
