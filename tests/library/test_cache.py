"""Hamilton's cache in Prefect's result storage: nodes are computed once, whatever process asks."""

import os
from pathlib import Path

import pytest

from prefect_hamilton import dataflow
from tests import forks
from tests.library import cached_flow, totals

pytestmark = pytest.mark.services


def run(storage: Path, api: str, **env: str) -> list[str]:
    """Run the flow in a separate process; returns its output."""
    environment = os.environ | {"PREFECT_API_URL": api} | env
    done = forks.run("tests.library.cached_flow", storage, env=environment)
    assert done.returncode == (9 if "DIE" in env else 0), done.stderr
    return done.stdout.splitlines()


def test_a_retried_run_continues_from_the_cache_of_a_killed_process(
    tmp_path: Path, prefect_api: str
) -> None:
    assert run(tmp_path, prefect_api, DIE="1") == ["computed costly", "computed fatal"]
    assert run(tmp_path, prefect_api) == ["computed fatal", "result 5"]
    assert run(tmp_path, prefect_api) == ["result 5"]


def test_a_storage_that_cannot_be_written_causes_warnings(
    tmp_path: Path, prefect_api: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    flow = cached_flow.cached_flow.with_options(result_storage=tmp_path / "file")
    assert flow() == 5
    assert "A result is not cached: " in caplog.text


def test_a_named_cache_folder_is_used(tmp_path: Path) -> None:
    described = dataflow.Dataflow(totals).with_cache(path=tmp_path / "cache")
    assert described.execute("total", inputs={"x": 2})["total"] == 6
    assert list((tmp_path / "cache").iterdir())
