"""Fixtures of the images' tests; Prefect is imported in them, after its home is set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import environments, shared
from tests.services import Service

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from tests.images.pods import Pods


@pytest.fixture(scope="session")
def prefect_client_python() -> Path:
    """A Python with what an image of flow pods has of Prefect."""

    def make(folder: Path) -> None:
        # The second group has tenacity, which is the other import of `flow_pod`.
        environments.make_locked(folder / "venv", "flow-pod", "bootstrap")

    return shared.once("flow-pod", make) / "venv/bin/python"


@pytest.fixture
def client(prefect_api: str) -> Iterator[SyncPrefectClient]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def pods(
    client: SyncPrefectClient, prefect_server: Service, prefect_client_python: Path, tmp_path: Path
) -> Pods:
    from tests.images.pods import Pods

    return Pods(client, prefect_server, prefect_client_python, tmp_path)
