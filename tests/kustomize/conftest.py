"""What all Kustomize tests share."""

import pytest

from tests.kustomize.kustomizations import need_tools


@pytest.fixture(autouse=True, scope="session")
def _tools() -> None:
    need_tools()
