"""Measure how quickly metrics are written: `python -m scripts.bench_load --help`.

Writes the same rows into each warehouse as the data pipeline does, new ones and then again, and, to
compare, by a plain COPY of a CSV file into a table without key. Rows a second depend on the machine
and on what else runs on it; the ratio of the two, measured side by side, hardly does.
"""

import resource
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import duckdb
import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import typer
from pyarrow import csv

from flows import metrics_load
from flows.tables import LOADS, METRICS, MONTHLY
from prefect_hamilton import warehouse
from prefect_hamilton.warehouse import Target, Warehouse

METRIC_NAMES = [f"metric_{number:02}" for number in range(20)]


def main(
    rows: Annotated[int, typer.Option(min=100, help="Number of rows to write.")] = 1_000_000,
    batch_size: Annotated[
        int, typer.Option(min=1, max=metrics_load.LARGEST_BATCH, help="Batch size of the pipeline.")
    ] = 500,
    postgres: Annotated[
        str,
        typer.Option(
            envvar="BENCH_POSTGRES",
            help="URL of a PostgreSQL database, with credentials; a schema of a random name is "
            "created in it and dropped. Without it only DuckDB is measured.",
        ),
    ] = "",
) -> None:
    """Print rows per second of DuckDB and PostgreSQL for pipeline loads and plain COPY."""
    schema = f"bench_load_{uuid.uuid4().hex[:8]}"
    frame = _rows(rows)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        csv.write_csv(_table(frame), file, csv.WriteOptions(include_header=False))
        with warehouse.connect(f"duckdb:///{folder}/warehouse.duckdb") as connection:
            target = Target("warehouse", schema, "metrics")
            _measure("DuckDB", connection, target, frame, batch_size)
        with duckdb.connect(f"{folder}/copy.duckdb") as plain:
            plain.execute(f"CREATE TABLE copied ({_columns()})")
            _print(
                "DuckDB", "plain COPY", rows, lambda: plain.execute(f"COPY copied FROM '{file}'")
            )
        if postgres:
            _measure_postgres(postgres, schema, frame, batch_size, file)
    held = frame.memory_usage().sum() / 2**20
    typer.echo(f"At most {_peak():,.0f} MB of memory, {held:,.0f} MB of them the rows")


def _measure_postgres(
    url: str, schema: str, frame: pd.DataFrame, batch_size: int, file: Path
) -> None:
    with psycopg.connect(url, autocommit=True) as plain:
        try:
            with warehouse.connect(url) as connection:
                target = Target(plain.info.dbname, schema, "metrics")
                _measure("PostgreSQL", connection, target, frame, batch_size)
            plain.execute(f"CREATE TABLE {schema}.copied ({_columns()})".encode())

            def copy() -> None:
                statement = f"COPY {schema}.copied FROM STDIN (FORMAT csv)".encode()
                with file.open("rb") as text, plain.cursor().copy(statement) as copied:
                    while piece := text.read(2**20):
                        copied.write(piece)

            _print("PostgreSQL", "plain COPY", len(frame), copy)
        finally:
            plain.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())


def _measure(
    engine: str, connection: Warehouse, target: Target, frame: pd.DataFrame, batch_size: int
) -> None:
    connection.prepare(target, [METRICS, MONTHLY, LOADS])
    months = pd.DataFrame(columns=list(MONTHLY.columns))
    transformed = metrics_load.Transformed(frame, months, frame.head(0), months, None)
    log = dict.fromkeys(LOADS.columns) | {
        "flow_run_id": "bench",
        "metrics": "[]",
        "first_time": frame["time"].min(),
        "last_time": frame["time"].max(),
    }
    none = pd.DataFrame(columns=list(LOADS.columns))

    def load() -> None:
        for _ in metrics_load.write(connection, target, transformed, none, log, batch_size):
            pass

    _print(engine, "new rows", len(frame), load)
    _print(engine, "the same rows again", len(frame), load)


def _print(engine: str, what: str, rows: int, work: Callable[[], object]) -> None:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    typer.echo(
        f"{engine:<10} {what:<20} {seconds:7.1f} s {rows / seconds:12,.0f} rows/s; "
        f"peak RSS so far {_peak():,.0f} MB"
    )


def _peak() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _rows(count: int) -> pd.DataFrame:
    """Return rows as the transform dataflow gives them: hourly values of some metrics."""
    random = np.random.default_rng(1)
    statistics = ["value", "rolling_mean_7d", "rolling_mean_30d", "rolling_std_30d", "z_score"]
    number = np.arange(count)
    hours = number // len(METRIC_NAMES)
    frame = pd.DataFrame(
        {
            "metric": pd.Series(METRIC_NAMES).take(number % len(METRIC_NAMES)).to_numpy(),
            "time": np.datetime64("1950-01-01", "us") + hours * np.timedelta64(1, "h"),
            "unit": "mm",
            "station": "Seattle",
            "is_anomaly": False,
        }
    )
    frame = frame.assign(**{name: random.random(count) for name in statistics})
    return frame.sort_values(list(METRICS.key), ignore_index=True)


def _table(frame: pd.DataFrame) -> pa.Table:
    rows = frame.assign(flow_run_id="copy").reindex(columns=list(METRICS.columns))
    return pa.Table.from_pandas(rows, preserve_index=False)


def _columns() -> str:
    return ", ".join(f'"{name}" {kind}' for name, kind in METRICS.columns.items())


if __name__ == "__main__":
    typer.run(main)
