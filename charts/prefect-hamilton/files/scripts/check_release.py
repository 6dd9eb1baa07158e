"""Check a release from inside: API, work pools with a worker that is online, Hamilton UI."""

import os
import sys

import httpx

failures: list[str] = []


def check(what: str, *, passed: bool, reason: str) -> None:
    """Say it, and remember a failure."""
    print(f"ok      {what}" if passed else f"FAILED  {what}: {reason}", flush=True)
    if not passed:
        failures.append(what)


def get(url: str, **options: object) -> tuple[httpx.Response | None, str]:
    """Ask once; the answer, or why there is none."""
    try:
        response = httpx.get(url, timeout=10, **options)
    except httpx.TransportError as error:
        return None, str(error)
    return response, f"{response.status_code} {response.text[:200]}"


def prefect(url: str, pools: list[str]) -> None:
    """Check that the API wants the credential, and that each pool is ready."""
    headers = {}
    if key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    auth = None
    if credential := os.environ.get("PREFECT_API_AUTH_STRING"):
        auth = httpx.BasicAuth(*credential.split(":", 1))
        response, reason = get(f"{url}/admin/version")
        refused = response is not None and response.status_code == httpx.codes.UNAUTHORIZED
        check("the Prefect API refuses who has no password", passed=refused, reason=reason)
    for pool in pools:
        response, reason = get(f"{url}/work_pools/{pool}", headers=headers, auth=auth)
        found = response is not None and response.is_success
        ready = found and response.json()["status"] == "READY"
        check(f"work pool {pool} is ready", passed=ready, reason=reason)


def hamilton(url: str) -> None:
    """Check that the Hamilton UI wants its key."""
    response, reason = get(f"{url}/api/v1/projects", headers={"x-api-user": "test"})
    refused = response is not None and response.status_code == httpx.codes.UNAUTHORIZED
    check("the Hamilton UI refuses who has no key", passed=refused, reason=reason)
    headers = {"x-api-user": "test", "x-api-key": os.environ["HAMILTON_API_KEY"]}
    response, reason = get(f"{url}/api/v1/projects", headers=headers)
    check("the Hamilton UI answers", passed=bool(response and response.is_success), reason=reason)


if __name__ == "__main__":
    if api_url := os.environ.get("PREFECT_API_URL"):
        prefect(api_url, sys.argv[1:])
    if hamilton_url := os.environ.get("HAMILTON_API_URL"):
        hamilton(hamilton_url)
    sys.exit(1 if failures else 0)
