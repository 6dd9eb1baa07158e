"""A warehouse of each kind, for real."""

from pathlib import Path

import psycopg
import pytest


@pytest.fixture(params=["duckdb", "postgres"])
def any_warehouse(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """An empty warehouse of each kind, in WAREHOUSE_URL; returns the URL."""
    if request.param == "duckdb":
        url = f"duckdb:///{tmp_path}/warehouse.duckdb"
    else:
        server = request.getfixturevalue("postgres")
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS warehouse WITH (FORCE)")
            connection.execute("CREATE DATABASE warehouse")
        url = f"{server}/warehouse"
    monkeypatch.setenv("WAREHOUSE_URL", url)
    return url


@pytest.fixture
def duckdb_warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty DuckDB warehouse, in WAREHOUSE_URL; returns the URL."""
    url = f"duckdb:///{tmp_path}/warehouse.duckdb"
    monkeypatch.setenv("WAREHOUSE_URL", url)
    return url
