"""Fixtures of all tests."""

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """Run flows with a temporary Prefect server."""
    with prefect_test_harness(server_startup_timeout=120):
        yield
