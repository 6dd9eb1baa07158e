"""The Hamilton UI without its calls to third parties.

The UI in the package loads Google Analytics, a feedback widget and Google's fonts, and has no
setting for them. `prepare` removes them; `content_security_policy` makes browsers block requests to
other servers.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from django.http import HttpRequest, HttpResponseBase

POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "style-src 'self' 'unsafe-inline'",  # the UI's components have inline styles
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)

# The UI's own script and style sheets have relative addresses; its script is the only module.
THIRD_PARTY = re.compile(
    r"""<script(?![^>]*\btype="module")[^>]*>.*?</script>\s*
      | <link\b[^>]*\bhref="https?://[^>]*>\s*
      | <!--\ Google\ tag.*?-->\s*""",
    re.DOTALL | re.VERBOSE,
)

# The UI's font comes from a third party; without one, a browser uses Times.
FONT = "<style>html { font-family: Inter, system-ui, sans-serif }</style>\n  </head>"


def clean(html: str) -> str:
    """Return the page without scripts and links of third parties."""
    return THIRD_PARTY.sub("", html).replace("</head>", FONT, 1)


def prepare(build: Path, folder: Path) -> Path:
    """Make `folder`/build: the cleaned page, and links to the other files of `build`.

    Returns `folder`. What is there from an earlier start, or version, is replaced.
    """
    target = folder / "build"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in build.iterdir():
        if file.name != "index.html":
            (target / file.name).symlink_to(file)
    (target / "index.html").write_text(clean((build / "index.html").read_text()))
    return folder


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Django middleware that sends the policy with every answer."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        response["Content-Security-Policy"] = POLICY
        response["Referrer-Policy"] = "same-origin"
        return response

    return middleware
