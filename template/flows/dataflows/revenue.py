"""A dataflow: each function is a node, and its parameters name the nodes that it needs."""

import pandas as pd
from hamilton.function_modifiers import check_output


def paid_orders(orders: pd.DataFrame) -> pd.DataFrame:
    """The orders with status paid."""
    return orders[orders["status"] == "paid"]


# A data quality check: a negative or missing amount fails the run.
@check_output(range=(0, 1_000_000), allow_nans=False, importance="fail")
def amount(paid_orders: pd.DataFrame) -> pd.Series:
    """The amount of each order: quantity times price."""
    return paid_orders["quantity"] * paid_orders["price"]


def revenue_by_day(paid_orders: pd.DataFrame, amount: pd.Series) -> pd.Series:
    """The sum of the amounts per day."""
    return amount.groupby(paid_orders["day"]).sum()
