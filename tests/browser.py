"""A real browser for tests of UIs: Chromium, driven by Playwright."""

import re
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

PATIENCE = 30_000
"""How long a page may take to show something, in milliseconds."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for a module's tests; none, and they are skipped.

    Not longer: while it is there an event loop runs in this thread, and `asyncio.run` fails.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on PATH")
    with sync_playwright() as playwright:
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        quiet += ["--disable-component-update", "--disable-sync", "--no-first-run"]
        running = playwright.chromium.launch(executable_path=program, args=quiet)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page in a new browser context."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


@pytest.fixture
def requested(page: Page) -> set[str]:
    """Hosts to which the page has sent requests so far, including requests that were blocked.

    What its policy refuses is among them: a browser reports that as a violation instead.
    """
    hosts: set[str] = set()

    def note(address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("data", "blob"):
            hosts.add(parts.netloc or address)

    def request(request: Request) -> None:
        note(request.url)

    page.context.on("request", request)
    page.context.expose_function("noteRefused", note)
    page.add_init_script(
        "addEventListener('securitypolicyviolation', event => noteRefused(event.blockedURI))"
    )
    return hosts


def opens(page: Page, address: str, *texts: str | re.Pattern[str]) -> None:
    """The address shows each of these texts; opened again once.

    The Prefect UI leaves a part of the page empty if the server was too busy to respond (503).
    """
    page.goto(address)
    try:
        shows(page, *texts)
    except AssertionError:
        page.reload()
        shows(page, *texts)


def shows(page: Page, *texts: str | re.Pattern[str]) -> None:
    """The page shows each of these texts."""
    for text in texts:
        expect(page.locator("body")).to_contain_text(text, timeout=PATIENCE)


def log_in(page: Page, address: str, auth_string: str) -> None:
    """Log in to Prefect's UI as a person does, by typing into its one field."""
    page.goto(address)
    field = page.locator("input[type=password]")
    try:
        expect(field).to_be_visible(timeout=PATIENCE)
    except AssertionError:  # as in `opens`
        page.reload()
    field.fill(auth_string)
    page.get_by_role("button", name="Login").click()
    expect(field).to_have_count(0, timeout=PATIENCE)
