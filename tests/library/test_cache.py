"""Hamilton's cache in Prefect's result storage: nodes are computed once, whatever process asks."""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hamilton import ad_hoc_utils
from hamilton.caching import fingerprinting
from prefect import flow

from prefect_hamilton import (
    _cache,  # noqa: F401  # its import replaces Hamilton's versions
    dataflow,
)
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


DAY = "2026-01-05"
ALIKE: list[tuple[Any, Any]] = [
    (pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]})),
    (pd.DataFrame({"a": [1], "b": [1]}), pd.DataFrame({"b": [1], "a": [1]})),
    (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1.0]})),
    (pd.DataFrame({"a": [1, 10]}, index=[DAY] * 2), pd.DataFrame({"a": [9, 10]}, index=[DAY] * 2)),
    (pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [2, 1]}, index=[1, 0])),
    (pd.DataFrame({"a": [[1]]}), pd.DataFrame({"a": [[2]]})),
    (pd.Series([1], name="a"), pd.Series([1], name="b")),
    (np.array([1, 2, 3, 4]), np.array([[1, 2], [3, 4]])),
    (np.array([1], dtype=object), np.array([2], dtype=object)),
    (7, "7"),
    (1, True),
    (7, 7.0),
    ([1, 2], (1, 2)),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (None, "None"),
]
"""Pairs of results that are not the same."""


def made(kind: int, x: int) -> Any:
    return ALIKE[kind][x]


alike = ad_hoc_utils.create_temporary_module(made, module_name="alike")


@flow(result_serializer="json")
def two_of_a_kind(kind: int, x: int) -> list[Any]:
    """The node's result, computed and then cached."""
    cached = dataflow.Dataflow(alike, picture=False).with_cache()
    return [cached.execute("made", inputs={"kind": kind, "x": x})["made"] for _ in range(2)]


@pytest.mark.parametrize("kind", range(len(ALIKE)), ids=lambda kind: repr(ALIKE[kind][0])[:12])
def test_a_result_is_not_taken_for_a_similar_one(
    tmp_path: Path, prefect_api: str, kind: int
) -> None:
    run = two_of_a_kind.with_options(result_storage=tmp_path, persist_result=False)
    for x in (0, 1):
        for found in run(kind, x):
            wanted = ALIKE[kind][x]
            assert type(found) is type(wanted)
            if isinstance(wanted, pd.DataFrame):
                pd.testing.assert_frame_equal(found, wanted)
            elif isinstance(wanted, pd.Series):
                pd.testing.assert_series_equal(found, wanted)
            elif isinstance(wanted, np.ndarray):
                np.testing.assert_array_equal(found, wanted, strict=True)
            else:
                assert repr(found) == repr(wanted)


@pytest.mark.parametrize("kind", range(len(ALIKE)), ids=lambda kind: repr(ALIKE[kind][0])[:12])
def test_equal_results_have_one_version(kind: int) -> None:
    for each in ALIKE[kind]:
        version = fingerprinting.hash_value(each)
        assert version != fingerprinting.UNHASHABLE
        assert fingerprinting.hash_value(copy.deepcopy(each)) == version
