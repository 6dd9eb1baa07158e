"""Durations and results of requests, of all processes of the Hamilton UI.

django-prometheus would add twenty metrics, has no status in that of the durations, and takes every
method that a client invents as a label.
"""

import time
from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase
from prometheus_client import Histogram

from prefect_hamilton import _request_labels

DURATION = Histogram(
    "hamilton_ui_request_duration_seconds",
    "Time that the Hamilton UI took for a request, by route, method and class of status.",
    _request_labels.LABELS,
    buckets=_request_labels.BUCKETS,
)


def observe_requests(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Django middleware that observes each request.

    The label `route` is the template of a path, such as `/api/v1/dag_runs/<dag_run_ids>`.
    """

    def middleware(request: HttpRequest) -> HttpResponseBase:
        began = time.perf_counter()
        response = get_response(request)  # of an exception too: Django makes it a response
        match = request.resolver_match
        route = f"/{match.route}" if match else None
        labels = _request_labels.values(route, request.method, response.status_code)
        DURATION.labels(*labels).observe(time.perf_counter() - began)
        return response

    return middleware
