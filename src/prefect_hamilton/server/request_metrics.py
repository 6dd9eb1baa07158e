"""Durations and results of API requests, among the metrics that Prefect serves at /api/metrics.

Libraries for it look each route up a second time, which costs a twentieth of a request.
"""

import time
from typing import Any

from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefect_hamilton import _request_labels

DURATION = Histogram(
    "prefect_server_request_duration_seconds",
    "Time from an API request to the end of its answer, by route, method and class of status.",
    _request_labels.LABELS,
    buckets=_request_labels.BUCKETS,
)


class RequestMetrics:
    """ASGI middleware that observes each HTTP request; outside all others, so that none is missed.

    The label `route` is the template of a path, such as `/flow_runs/{id:uuid}`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, and observe it if it is not of a WebSocket."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # of a request without an answer

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        try:
            await self._app(scope, receive, note)
        finally:
            route: Any = scope.get("route")  # set by the router
            path = getattr(route, "path", None)
            labels = _request_labels.values(path, scope["method"], status)
            DURATION.labels(*labels).observe(time.perf_counter() - began)
