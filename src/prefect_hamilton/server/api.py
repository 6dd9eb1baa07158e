"""A small client that reads the Prefect API; importing Prefect would take a second."""

import os

import httpx


def client(*, with_credential: bool = True) -> httpx.Client:
    """Return a client of the API at PREFECT_API_URL.

    Sends the credential of PREFECT_API_KEY or PREFECT_API_AUTH_STRING.
    """
    headers = {}
    auth = None
    if with_credential and (key := os.environ.get("PREFECT_API_KEY")):
        headers["Authorization"] = f"Bearer {key}"
    elif with_credential and (credential := os.environ.get("PREFECT_API_AUTH_STRING")):
        user, _, password = credential.partition(":")
        auth = httpx.BasicAuth(user, password)
    return httpx.Client(
        base_url=os.environ["PREFECT_API_URL"], headers=headers, auth=auth, timeout=10
    )
