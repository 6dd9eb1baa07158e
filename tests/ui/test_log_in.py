"""Prefect's UI of the local profile asks for the password, in a real browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from scripts import local_profile
from tests import services
from tests.browser import PATIENCE, log_in, shows

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=["one port", "two ports"])
def profile(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[local_profile.Profile]:
    """The profile's Prefect server, and its UI on the same or a separate port."""
    state = tmp_path_factory.mktemp("state")
    port = services.free_port()
    api_port = services.free_port() if request.param == "two ports" else port
    profile = local_profile.Profile(state=state, port=port, api_port=api_port)
    with services.local_prefect(profile):
        yield profile


@pytest.mark.parametrize("path", ["", "/variables"], ids=["v2", "v1"])
def test_the_password_of_make_login_opens_the_ui(
    profile: local_profile.Profile, page: Page, path: str
) -> None:
    log_in(page, profile.ui_url + path, profile.auth_string)
    shows(page, "Variables")
    # The browser stores the password: the next view does not ask for it.
    page.goto(f"{profile.ui_url}/variables")
    shows(page, "Variables")
    assert page.locator("input[type=password]").count() == 0


def test_a_wrong_password_does_not_open_the_ui(profile: local_profile.Profile, page: Page) -> None:
    page.goto(profile.ui_url)
    page.locator("input[type=password]").fill("prefect:guessed")
    page.get_by_role("button", name="Login").click()
    shows(page, "Invalid credentials")
    page.goto(f"{profile.ui_url}/variables")
    expect(page.locator("input[type=password]")).to_be_visible(timeout=PATIENCE)
