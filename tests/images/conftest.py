from pathlib import Path

import pytest

from tests import environments


@pytest.fixture(scope="session")
def prefect_client_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with what an image of flow pods has of Prefect."""
    folder = tmp_path_factory.mktemp("flow-pod") / "venv"
    # The second group has tenacity, which is the other import of `flow_pod`.
    return environments.make_locked(folder, "flow-pod", "bootstrap")
