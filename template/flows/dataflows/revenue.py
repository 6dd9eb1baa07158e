"""The dataflow: each function is a node, and its parameters name the nodes that it needs."""

import pandas as pd
from hamilton.function_modifiers import check_output


def paid_orders(orders: pd.DataFrame) -> pd.DataFrame:
    """The orders that count."""
    return orders[orders["status"] == "paid"]


# The check: an amount below zero, or none at all, fails the run before anything is added up.
@check_output(range=(0, 1_000_000), allow_nans=False, importance="fail")
def amount(paid_orders: pd.DataFrame) -> pd.Series:
    """What each of them comes to."""
    return paid_orders["quantity"] * paid_orders["price"]


def revenue_by_day(paid_orders: pd.DataFrame, amount: pd.Series) -> pd.Series:
    """What each day comes to."""
    return amount.groupby(paid_orders["day"]).sum()
