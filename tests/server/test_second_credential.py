"""While a credential is being replaced, the API accepts two; the rest of the server knows one."""

from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest
from prefect.events import Event, Resource
from prefect.events.clients import PrefectEventsClient, PrefectEventSubscriber
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from prefect_hamilton.server.second_credential import VARIABLE
from tests import services

pytestmark = pytest.mark.services

# ASCII: Prefect compares no other text.
FIRST, SECOND = "admin:first:1", "admin:second:2"
HELLO = "test.hello"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def api_url(home: Path) -> Iterator[str]:
    with services.prefect_server(
        home,
        program=services.OWN_SERVER,
        PREFECT_SERVER_API_AUTH_STRING=FIRST,
        PREFECT_SERVER_LOGGING_LEVEL="DEBUG",
        **{VARIABLE: SECOND},
    ) as server:
        yield f"{server.url}/api"


@pytest.mark.parametrize(
    ("credential", "status"),
    [(FIRST, 200), (SECOND, 200), ("admin:third", 401), ("admin:", 401), (None, 401)],
)
def test_a_request_needs_one_of_both_credentials(
    api_url: str, credential: str | None, status: int
) -> None:
    user, _, password = (credential or "").partition(":")
    auth = httpx.BasicAuth(user.encode(), password.encode()) if credential else None
    answer = httpx.post(f"{api_url}/flows/filter", json={}, auth=auth)
    assert answer.status_code == status


@pytest.mark.parametrize("header", ["Basic", "Basic ?", "Basic /w==", f"Bearer {SECOND!a}", ""])
def test_a_malformed_header_is_unauthorized(api_url: str, header: str) -> None:
    headers = {"Authorization": header}
    assert httpx.post(f"{api_url}/flows/filter", json={}, headers=headers).status_code == 401


@pytest.mark.parametrize("credential", [FIRST, SECOND])
def test_events_are_sent_and_received_with_either_credential(api_url: str, credential: str) -> None:
    event = Event(event=HELLO, resource=Resource({"prefect.resource.id": f"test.{credential[-1]}"}))

    async def send_and_receive() -> None:
        wanted = EventFilter(event=EventNameFilter(name=[HELLO]))
        async with PrefectEventSubscriber(filter=wanted) as events, PrefectEventsClient() as client:
            await client.emit(event)
            with anyio.fail_after(60):
                async for received in events:
                    if received.id == event.id:
                        return

    with temporary_settings({PREFECT_API_URL: api_url, PREFECT_API_AUTH_STRING: credential}):
        anyio.run(send_and_receive)


def test_a_subscriber_with_another_credential_is_rejected(api_url: str) -> None:
    async def subscribe() -> None:
        async with PrefectEventSubscriber(reconnection_attempts=0):
            pass

    settings = {PREFECT_API_URL: api_url, PREFECT_API_AUTH_STRING: "admin:third"}
    with temporary_settings(settings), pytest.raises(Exception, match="authenticate"):
        anyio.run(subscribe)


def test_no_credential_is_in_the_log_of_the_server(api_url: str, home: Path) -> None:
    for password in (b"second:2", b"third"):
        auth = httpx.BasicAuth(b"admin", password)
        httpx.post(f"{api_url}/flows/filter", json={}, auth=auth)
    written = (home / "server.log").read_text()
    assert "401" in written
    assert "second:2" not in written and "first:1" not in written
