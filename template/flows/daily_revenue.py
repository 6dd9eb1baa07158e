"""The flow: reads the orders, executes the dataflow in a task, keeps its result as an artifact."""

from pathlib import Path

import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect_hamilton import dataflow

from flows.dataflows import revenue

ORDERS = Path(__file__).parent / "data" / "orders.csv"


@task(retries=2, retry_delay_seconds=5)
def read_orders(source: str) -> pd.DataFrame:
    """Read the orders from a file or an address."""
    return pd.read_csv(source)


@task
def compute_revenue(orders: pd.DataFrame) -> dict[str, float]:
    """Add up the orders; the Hamilton UI shows each node."""
    run = dataflow.execute(revenue, ["revenue_by_day"], inputs={"orders": orders})
    return run["revenue_by_day"].to_dict()


@flow
def daily_revenue(source: str = str(ORDERS)) -> dict[str, float]:
    """Add up what the paid orders of each day come to."""
    by_day = compute_revenue(read_orders(source))
    rows = [{"day": day, "revenue": total} for day, total in by_day.items()]
    create_table_artifact(rows, key="daily-revenue")
    return by_day


if __name__ == "__main__":
    print(daily_revenue())
