"""Django middleware of the Hamilton UI in a cluster."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, HttpResponseBase

# Django's admin has no users and no content. The API documentation loads files from a third party,
# and requires no key.
CLOSED = ("/admin", "/api/docs", "/api/openapi.json")


def close_unused_pages(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Answer 404 for unused pages."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if request.path.startswith(CLOSED):
            return HttpResponse("not found", status=404, content_type="text/plain")
        return get_response(request)

    return middleware
