"""Tests of the flow with a temporary Prefect server."""

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from flows.daily_revenue import daily_revenue

pytestmark = pytest.mark.usefixtures("prefect")


def test_the_orders_in_this_repository() -> None:
    expected = {"2026-01-05": 16.7, "2026-01-06": 22.8, "2026-01-07": 4.5}
    assert daily_revenue() == pytest.approx(expected)


def test_the_result_is_an_artifact() -> None:
    daily_revenue()
    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts()}
    assert "daily-revenue" in keys


def test_a_missing_price_fails_the_run(tmp_path: Path) -> None:
    source = tmp_path / "orders.csv"
    source.write_text("day,product,quantity,price,status\n2026-01-05,tea,1,,paid\n")
    state = daily_revenue(str(source), return_state=True)
    assert state.is_failed()
