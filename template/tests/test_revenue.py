"""Tests of the dataflow without Prefect."""

import pandas as pd
import pytest
from prefect_hamilton import dataflow

from flows.dataflows import revenue


def computed(orders: list[tuple[str, int, float, str]], output: str) -> pd.Series:
    """Return the result of a node for these orders."""
    table = pd.DataFrame(orders, columns=["day", "quantity", "price", "status"])
    return dataflow.execute(revenue, output, inputs={"orders": table})[output]


def test_paid_orders_are_added_up_by_day() -> None:
    orders = [
        ("mon", 2, 1.5, "paid"),
        ("mon", 1, 1.0, "paid"),
        ("mon", 9, 9.0, "cancelled"),
        ("tue", 1, 2.0, "paid"),
    ]
    assert computed(orders, "revenue_by_day").to_dict() == {"mon": 4.0, "tue": 2.0}


def test_an_amount_below_zero_is_refused() -> None:
    with pytest.raises(dataflow.NodeError, match="amount"):
        computed([("mon", -1, 1.5, "paid")], "revenue_by_day")
