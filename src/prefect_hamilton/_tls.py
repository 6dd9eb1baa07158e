"""One TLS context for all clients of Prefect in a process.

Each client of Prefect creates its own, though the API may be at http://, and a flow run has about
fifteen of them. A context reads the certificates of all authorities: 17 ms of CPU with OpenSSL 3.0,
3 ms with 3.5.
"""

import ssl
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import certifi
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
from prefect.settings import get_current_settings


def share_context() -> None:
    """Give the clients of this process, and of what it forks, the same context."""
    _settings()  # now: a flow pod may have time before its flow run
    for client in (PrefectClient, SyncPrefectClient):
        setattr(client, "__init__", _sharing(client.__init__))  # noqa: B010  # mypy: a mistake


def _sharing(create: Callable[..., None]) -> Callable[..., None]:
    @wraps(create)
    def create_with_context(
        self: Any, *args: Any, httpx_settings: dict[str, Any] | None = None, **options: Any
    ) -> None:
        create(self, *args, httpx_settings=_settings() | (httpx_settings or {}), **options)

    return create_with_context


def _settings() -> dict[str, Any]:
    """Return the context for HTTPX, as Prefect's settings want it."""
    tls = get_current_settings().api
    if tls.tls_insecure_skip_verify:
        return {}  # Prefect creates it
    return {"verify": _context(tls.ssl_cert_file or certifi.where())}


@cache
def _context(authorities: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authorities)
