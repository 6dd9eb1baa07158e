"""The clients of Prefect in a process share a TLS context."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
from prefect.settings import (
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_TLS_INSECURE_SKIP_VERIFY,
    temporary_settings,
)

from prefect_hamilton import _tls

URL = "https://prefect.example.org/api"


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ssl.SSLContext]]:
    """The contexts that are created while clients share them."""
    contexts: list[ssl.SSLContext] = []
    create = ssl.create_default_context

    def noting(*args: Any, **options: Any) -> ssl.SSLContext:
        contexts.append(create(*args, **options))
        return contexts[-1]

    for client in (PrefectClient, SyncPrefectClient):
        monkeypatch.setattr(client, "__init__", client.__init__)  # put back afterwards
    monkeypatch.setattr(ssl, "create_default_context", noting)
    _tls._context.cache_clear()
    _tls.share_context()
    yield contexts
    _tls._context.cache_clear()


def test_clients_share_one_context_that_was_there_before_them(
    created: list[ssl.SSLContext],
) -> None:
    (context,) = created
    for _ in range(2):
        PrefectClient(URL)
        SyncPrefectClient(URL)
    assert created == [context]
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_another_certificate_file_has_another_context(
    created: list[ssl.SSLContext], tmp_path: Path
) -> None:
    file = tmp_path / "authority.pem"
    file.write_text(Path(certifi.where()).read_text())
    with temporary_settings({PREFECT_API_SSL_CERT_FILE: str(file)}):
        PrefectClient(URL)
        PrefectClient(URL)
    assert len(created) == 2


def test_a_client_that_verifies_nothing_does_not_share_its_context(
    created: list[ssl.SSLContext],
) -> None:
    with temporary_settings({PREFECT_API_TLS_INSECURE_SKIP_VERIFY: True}):
        PrefectClient(URL)
    shared, own = created
    assert own.verify_mode is ssl.CERT_NONE
    assert shared.verify_mode is ssl.CERT_REQUIRED


def test_a_context_that_is_given_is_used(created: list[ssl.SSLContext]) -> None:
    own = ssl.create_default_context()
    client: Any = PrefectClient(URL, httpx_settings={"verify": own})
    assert client._client._transport._pool._ssl_context is own
    assert created[1:] == [own]
