"""Django middleware of the Hamilton UI in a cluster."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, HttpResponseBase

# Django's admin has nobody to log in and nothing to show; the API's description loads its page from
# a third party, and is open to anyone without a key.
CLOSED = ("/admin", "/api/docs", "/api/openapi.json")


def close_unused_pages(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Answer 404 for pages that nobody needs."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if request.path.startswith(CLOSED):
            return HttpResponse("not found", status=404, content_type="text/plain")
        return get_response(request)

    return middleware
