"""Create missing Secrets with random values. Existing Secrets are not changed.

Each variable WANTED_SECRET_… holds one as YAML: `name` and `data`, texts in which each $name
becomes a random text, the same within one Secret; or `name`, `namespace` and `copy`, keys of the
Secret of that name in this pod's namespace.
"""

import base64
import os
import secrets
import ssl
import sys
from collections import defaultdict
from pathlib import Path
from string import Template
from typing import Any

import httpx
import yaml

from prefect_hamilton.logs import lines

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PREFIX = "WANTED_SECRET_"


def main() -> None:
    """Create the Secrets in the order of their variables, so that none is copied too early."""
    wanted = [yaml.safe_load(os.environ[n]) for n in sorted(os.environ) if n.startswith(PREFIX)]
    with connect() as api:
        for secret in wanted:
            create(api, secret)


def connect() -> httpx.Client:
    """Return a client of this cluster's API.

    All other pods wait for this program, and a Kubernetes client is slow to import.
    """
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    token = (SERVICE_ACCOUNT / "token").read_text().strip()
    return httpx.Client(
        base_url=f"https://{f'[{host}]' if ':' in host else host}:{port}/api/v1/namespaces",
        headers={"Authorization": f"Bearer {token}"},
        verify=ssl.create_default_context(cafile=str(SERVICE_ACCOUNT / "ca.crt")),
        trust_env=False,  # no proxy
        timeout=30,
    )


def create(api: httpx.Client, secret: dict[str, Any]) -> None:
    """Create one Secret unless its name exists."""
    own = (SERVICE_ACCOUNT / "namespace").read_text().strip()
    name, namespace = secret["name"], secret.get("namespace", own)
    if "copy" in secret:
        source = api.get(f"/{own}/secrets/{name}").raise_for_status().json()["data"]
        data = {key: source[key] for key in secret["copy"]}
    else:
        data = {key: encode(value) for key, value in generate(secret["data"]).items()}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}
    answer = api.post(f"/{namespace}/secrets", json=body)
    if answer.status_code == httpx.codes.CONFLICT:
        print(f"unchanged  {namespace}/{name}", flush=True)
    elif answer.is_success:
        print(f"created    {namespace}/{name}", flush=True)
    else:
        reason = f"{answer.status_code} {answer.reason_phrase}"
        sys.exit(f"Secret {namespace}/{name} cannot be created: {reason}")


def generate(data: dict[str, str]) -> dict[str, str]:
    """Replace each $name by a random text, safe in URLs as well."""
    values: defaultdict[str, str] = defaultdict(lambda: secrets.token_hex(24))
    return {key: Template(text).substitute(values) for key, text in data.items()}


def encode(text: str) -> str:
    """Return the text as a Secret's data holds it."""
    return base64.b64encode(text.encode()).decode()


if __name__ == "__main__":
    with lines("prefect_hamilton.server.create_secrets"):
        main()
