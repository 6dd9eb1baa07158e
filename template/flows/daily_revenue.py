"""A flow that reads orders, executes a dataflow in a task, and saves the result as an artifact."""

from pathlib import Path

import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect_hamilton import dataflow

from flows.dataflows import revenue

ORDERS = Path(__file__).parent / "data" / "orders.csv"


@task(retries=2, retry_delay_seconds=5)
def read_orders(source: str) -> pd.DataFrame:
    """Read the orders from a file or a URL."""
    return pd.read_csv(source)


@task
def compute_revenue(orders: pd.DataFrame) -> dict[str, float]:
    """Execute the dataflow; the Hamilton UI shows each node."""
    run = dataflow.execute(revenue, ["revenue_by_day"], inputs={"orders": orders})
    return run["revenue_by_day"].to_dict()


@flow
def daily_revenue(source: str = str(ORDERS)) -> dict[str, float]:
    """Compute the daily revenue of paid orders."""
    by_day = compute_revenue(read_orders(source))
    rows = [{"day": day, "revenue": total} for day, total in by_day.items()]
    create_table_artifact(rows, key="daily-revenue")
    return by_day


if __name__ == "__main__":
    print(daily_revenue())
