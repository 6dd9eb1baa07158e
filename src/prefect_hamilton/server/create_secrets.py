"""Create missing Secrets with random values. Existing Secrets are not changed.

Each variable WANTED_SECRET_… holds one as YAML: `name` and `data`, texts in which each $name
becomes a random text, the same within one Secret; or `name`, `namespace` and `copy`, keys of the
Secret of that name in this pod's namespace.
"""

import asyncio
import base64
import os
import secrets
import sys
from collections import defaultdict
from pathlib import Path
from string import Template
from typing import Any

import yaml
from kubernetes_asyncio import client, config
from kubernetes_asyncio.client.exceptions import ApiException

from prefect_hamilton.logs import lines

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PREFIX = "WANTED_SECRET_"


async def main() -> None:
    """Create the Secrets in the order of their variables, so that none is copied too early."""
    wanted = [yaml.safe_load(os.environ[n]) for n in sorted(os.environ) if n.startswith(PREFIX)]
    config.load_incluster_config()  # type: ignore[no-untyped-call]
    async with client.ApiClient() as api:
        core = client.CoreV1Api(api)
        for secret in wanted:
            await create(core, secret)


async def create(core: client.CoreV1Api, secret: dict[str, Any]) -> None:
    """Create one Secret unless its name exists."""
    own = (SERVICE_ACCOUNT / "namespace").read_text().strip()
    name, namespace = secret["name"], secret.get("namespace", own)
    body = client.V1Secret(metadata=client.V1ObjectMeta(name=name))
    if "copy" in secret:
        source = await core.read_namespaced_secret(name, own)
        body.data = {key: source.data[key] for key in secret["copy"]}
    else:
        body.data = {key: encode(value) for key, value in generate(secret["data"]).items()}
    try:
        await core.create_namespaced_secret(namespace, body)
    except ApiException as error:
        if error.status != 409:
            sys.exit(f"Secret {namespace}/{name} cannot be created: {error.status} {error.reason}")
        print(f"unchanged  {namespace}/{name}", flush=True)
    else:
        print(f"created    {namespace}/{name}", flush=True)


def generate(data: dict[str, str]) -> dict[str, str]:
    """Replace each $name by a random text, safe in URLs as well."""
    values: defaultdict[str, str] = defaultdict(lambda: secrets.token_hex(24))
    return {key: Template(text).substitute(values) for key, text in data.items()}


def encode(text: str) -> str:
    """Return the text as a Secret's data holds it."""
    return base64.b64encode(text.encode()).decode()


if __name__ == "__main__":
    with lines("prefect_hamilton.server.create_secrets"):
        asyncio.run(main())
