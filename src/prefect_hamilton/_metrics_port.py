"""Serves metrics to Prometheus on a port that the environment names."""

import contextlib
import os
from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from prefect_hamilton._addresses import EVERY_ADDRESS


@contextlib.contextmanager
def served(variable: str, registry: CollectorRegistry = REGISTRY) -> Iterator[None]:
    """Serve /metrics until the end on the port in a variable; without it, serve nothing."""
    port = int(os.environ.get(variable) or 0)
    if not port:
        yield
        return
    server, thread = start_http_server(port, EVERY_ADDRESS, registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
