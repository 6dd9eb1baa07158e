"""Check a release from inside: API, work pools with an online worker, alerts, Hamilton UI.

`helm test` runs it. It ends with an error when a check has failed.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from prefect_hamilton.logs import lines
from prefect_hamilton.server.api import client


@dataclass(frozen=True)
class Check:
    """What was checked, whether it passed, and the answer."""

    what: str
    passed: bool
    answer: str

    def line(self) -> str:
        """Return the check as a line of a report."""
        return f"ok      {self.what}" if self.passed else f"FAILED  {self.what}: {self.answer}"


def prefect(pools: list[str]) -> Iterator[Check]:
    """Check that the API at PREFECT_API_URL requires a credential, and that each pool is ready."""
    if os.environ.get("PREFECT_API_AUTH_STRING"):
        with client(with_credential=False) as stranger:
            response, answer = _get(stranger, "admin/version")
        yield Check(
            "the Prefect API refuses requests without a password", _is_refused(response), answer
        )
    with client() as api:
        for pool in pools:
            response, answer = _get(api, f"work_pools/{pool}")
            is_ready = (
                response is not None
                and response.is_success
                and response.json()["status"] == "READY"
            )
            yield Check(f"work pool {pool} is ready", is_ready, answer)


def hamilton(url: str) -> Iterator[Check]:
    """Check that the Hamilton UI answers to HAMILTON_API_KEY and to nothing else."""
    with httpx.Client(base_url=url, headers={"x-api-user": "test"}, timeout=10) as http:
        response, answer = _get(http, "api/v1/projects")
        yield Check("the Hamilton UI refuses requests without a key", _is_refused(response), answer)
        http.headers["x-api-key"] = os.environ["HAMILTON_API_KEY"]
        response, answer = _get(http, "api/v1/projects")
        is_well = response is not None and response.is_success
        yield Check("the Hamilton UI answers", is_well, answer)


def alerts() -> Iterator[Check]:
    """Let the server send a message through each channel of BOOTSTRAP_RELEASE's alerts."""
    # Imports Prefect.
    from prefect_hamilton.bootstrap import alerts_test
    from prefect_hamilton.bootstrap.errors import BootstrapError

    try:
        release = os.environ.get("BOOTSTRAP_RELEASE")
        outcomes = asyncio.run(alerts_test.send(timeout=60, release=release))
    except BootstrapError as error:
        yield Check("the server has alerts", passed=False, answer=str(error))
        return
    for each in outcomes:
        yield Check(
            f"a message arrived through the channel {each.channel}", each.arrived, each.reason
        )


def _get(http: httpx.Client, path: str) -> tuple[httpx.Response | None, str]:
    """Send one request. Returns the response, None if there is none, and a description of it."""
    try:
        response = http.get(path)
    except httpx.TransportError as error:
        return None, str(error)
    return response, f"{response.status_code} {response.text[:200]}"


def _is_refused(response: httpx.Response | None) -> bool:
    return response is not None and response.status_code == httpx.codes.UNAUTHORIZED


def main() -> None:
    """Check the release that the environment describes."""
    parser = argparse.ArgumentParser(
        prog="prefect_hamilton.server.check_release", description=__doc__
    )
    parser.add_argument("pools", nargs="*", metavar="pool", help="name of a work pool")
    parser.add_argument("--alerts", action="store_true", help="send test messages")
    arguments = parser.parse_args()
    checks: list[Check] = []
    if os.environ.get("PREFECT_API_URL"):
        checks += prefect(arguments.pools)
        if arguments.alerts:
            checks += alerts()
    if url := os.environ.get("HAMILTON_API_URL"):
        checks += hamilton(url)
    print("\n".join(check.line() for check in checks))
    if not all(check.passed for check in checks):
        sys.exit(1)


if __name__ == "__main__":
    with lines("prefect_hamilton.server.check_release"):
        main()
