"""A warehouse of each kind, for real."""

from pathlib import Path

import pytest

from tests import services


@pytest.fixture(params=["duckdb", "postgres"])
def any_warehouse(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """An empty warehouse of each kind, in WAREHOUSE_URL; returns the URL."""
    if request.param == "duckdb":
        url = f"duckdb:///{tmp_path}/warehouse.duckdb"
    else:
        url = services.create_database(request.getfixturevalue("postgres"), "warehouse")
    monkeypatch.setenv("WAREHOUSE_URL", url)
    return url


@pytest.fixture
def duckdb_warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty DuckDB warehouse, in WAREHOUSE_URL; returns the URL."""
    url = f"duckdb:///{tmp_path}/warehouse.duckdb"
    monkeypatch.setenv("WAREHOUSE_URL", url)
    return url
