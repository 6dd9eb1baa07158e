"""The warehouse: upserts, locks, and an error that says what to do."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
from prefect.blocks.system import Secret

from flows.tables import LOADS, METRICS, MONTHLY, QUARANTINE
from prefect_hamilton import warehouse
from prefect_hamilton.warehouse import TableConflictError, Target, Warehouse, WarehouseError
from prefect_hamilton.warehouse._duckdb import DuckDBWarehouse
from prefect_hamilton.warehouse._postgres import PostgresWarehouse

TARGET = Target.parse("warehouse.prod.metrics")
ALL_ROWS = 'SELECT * FROM "warehouse"."prod"."metrics" ORDER BY time'


def rows(count: int, value: float = 1.0) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "metric": ["wind"] * count,
            "time": pd.date_range("2024-01-01", periods=count).as_unit("us"),
            "value": value,
            "is_anomaly": False,
            "flow_run_id": "run",
        }
    )
    return frame.reindex(columns=list(METRICS.columns))


def stored(url: str) -> list[tuple[datetime, float]]:
    with warehouse.connect(url) as connection:
        found = connection.read(ALL_ROWS)
    return [
        (time.to_pydatetime(), value)
        for time, value in found[["time", "value"]].itertuples(index=False)
    ]


def test_the_same_key_again_replaces_and_null_stays_null(any_warehouse: str) -> None:
    with warehouse.connect(any_warehouse) as connection:
        for value in (1.0, 2.0):
            connection.prepare(TARGET, [METRICS])
            connection.upsert(TARGET, [(METRICS, rows(3, value))])
        found = connection.read(ALL_ROWS)[["unit", "z_score"]]
    assert stored(any_warehouse) == [(datetime(2024, 1, day), 2.0) for day in (1, 2, 3)]
    assert found.isna().all(axis=None)


def test_a_batch_may_hold_new_rows_and_known_ones_in_any_order(any_warehouse: str) -> None:
    with warehouse.connect(any_warehouse) as connection:
        connection.prepare(TARGET, [METRICS])
        connection.upsert(TARGET, [(METRICS, rows(5).iloc[[3, 1]])])
        for metric in ("calm", "Ärger", "wind"):
            batch = rows(6, 2.0).iloc[::-1].assign(metric=metric)
            connection.upsert(TARGET, [(METRICS, batch)])
        found = connection.read(ALL_ROWS)
    assert found.groupby("metric")["value"].agg(list).to_dict() == {
        metric: [2.0] * 6 for metric in ("calm", "wind", "Ärger")
    }


def test_several_tables_are_written_together_or_not_at_all(any_warehouse: str) -> None:
    broken = pd.DataFrame([dict.fromkeys(LOADS.columns)])  # no key
    with warehouse.connect(any_warehouse) as connection:
        connection.prepare(TARGET, [METRICS, LOADS])
        with pytest.raises(Exception, match=r"(?i)not.null|constraint"):
            connection.upsert(TARGET, [(METRICS, rows(3)), (LOADS, broken)])
        connection.upsert(TARGET, [(METRICS, rows(1))])
    assert len(stored(any_warehouse)) == 1


TEXTS = ["", "a", None, "NULL", "\\N", '"quoted", and\n second line', "\\.", "é ☃ 😀", " t "]


def test_values_are_read_back_unchanged(any_warehouse: str) -> None:
    """Text that is special to COPY, numbers to the last bit, and null, which is none of them."""
    frame = pd.DataFrame(
        {
            "record_id": [str(number) for number in range(len(TEXTS))],
            "raw_value": TEXTS,
            "record_number": [2**62, None, *range(len(TEXTS) - 2)],
            "rejected_at": [datetime(2024, 1, 1, 12, 30, 0, 1), *[None] * (len(TEXTS) - 1)],
        }
    )
    numbers = rows(6).assign(value=[0.1 + 0.2, 5e-324, -1.7976931348623157e308, 1e22, -0.0, None])
    with warehouse.connect(any_warehouse) as connection:
        connection.prepare(TARGET, [METRICS, QUARANTINE])
        kept = frame.astype({"record_number": "Int64"}).reindex(columns=list(QUARANTINE.columns))
        connection.upsert(TARGET, [(METRICS, numbers), (QUARANTINE, kept)])
        quarantine = 'SELECT * FROM "warehouse"."prod"."metrics_quarantine" ORDER BY record_id'
        found = connection.read(quarantine)
        values = connection.read(ALL_ROWS)["value"]
    assert [None if pd.isna(text) else text for text in found["raw_value"]] == TEXTS
    assert found["record_number"][0] == 2**62
    assert found["rejected_at"][0] == pd.Timestamp("2024-01-01T12:30:00.000001")
    assert found["rejected_at"].isna().sum() == len(TEXTS) - 1
    assert values.map(float.hex)[:5].tolist() == numbers["value"].map(float.hex)[:5].tolist()
    assert values.isna().tolist() == 5 * [False] + [True]


def test_columns_have_their_type_whatever_is_in_them(any_warehouse: str) -> None:
    with warehouse.connect(any_warehouse) as connection:
        connection.prepare(TARGET, [METRICS])
        empty = connection.read(ALL_ROWS)
        connection.upsert(TARGET, [(METRICS, rows(2))])
        found = connection.read(ALL_ROWS)
    types = {"metric": "str", "unit": "str", "time": "datetime64[us]", "z_score": "float64"}
    assert found.dtypes[list(types)].astype(str).to_dict() == types
    assert empty.dtypes[list(types)].astype(str).to_dict() == types
    assert found["is_anomaly"].dtype == bool


def test_expressions_have_the_same_types_on_both_engines(any_warehouse: str) -> None:
    query = """
        SELECT sum(number) AS total, avg(number) AS mean, count(*) AS size, 1.5 AS literal,
            max(CAST(number AS SMALLINT)) AS small, max(CAST(number AS REAL)) AS short
        FROM (VALUES ('apple', CAST(3 AS BIGINT)), ('fig', 4), ('apricot', 4)) AS f (name, number)
        WHERE name LIKE 'a%' AND number >= ?
    """
    with warehouse.connect(any_warehouse) as connection:
        found = connection.read(query, [3])
        literal = connection.read("SELECT '50%' AS share, 7 % 2 AS rest").to_dict("records")
    assert literal == [{"share": "50%", "rest": 1}]
    whole = {"size": "int64", "small": "int64"}
    types = dict.fromkeys(("total", "mean", "literal", "short"), "float64") | whole
    assert found.dtypes.astype(str).to_dict() == types
    (row,) = found.to_dict("records")
    assert row == {"total": 7.0, "mean": 3.5, "size": 2, "literal": 1.5, "small": 4, "short": 4.0}


@pytest.mark.parametrize(
    ("target", "because"),
    [
        # The months of warehouse.prod.metrics, a table without a key, a view.
        ("warehouse.prod.metrics_monthly", "exists with other columns"),
        ("warehouse.own.metrics", "exists with other columns"),
        ("warehouse.own.shown", "exists with other columns|Cannot create .* type View"),
    ],
)
def test_a_taken_name_is_refused_in_one_sentence(
    any_warehouse: str, target: str, because: str
) -> None:
    table = Target.parse(target)
    with warehouse.connect(any_warehouse) as connection:
        connection.prepare(TARGET, [METRICS, MONTHLY])
        connection.prepare(Target.parse("warehouse.own.other"), [LOADS])
        execute(connection, "CREATE TABLE own.metrics AS SELECT * FROM prod.metrics")
        execute(connection, "CREATE VIEW own.shown AS SELECT DISTINCT * FROM prod.metrics")
        with pytest.raises(TableConflictError, match=because) as error:
            connection.prepare(table, [METRICS])
        connection.prepare(TARGET, [METRICS, MONTHLY])
    assert str(error.value).startswith((f"{target} exists", f"Cannot create {target}"))
    assert str(error.value).endswith("choose another target table")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("schema", ["pg_x", "pg_catalog"])
def test_a_reserved_schema_is_refused_in_one_sentence(postgres: str, schema: str) -> None:
    with (
        warehouse.connect(f"{postgres}/postgres") as connection,
        pytest.raises(TableConflictError, match=r"Cannot create .* choose another target table"),
    ):
        connection.prepare(Target("postgres", schema, "metrics"), [METRICS])


def execute(connection: Warehouse, statement: str) -> None:
    assert isinstance(connection, DuckDBWarehouse | PostgresWarehouse)
    connection._connection.execute(statement)


def test_threads_that_write_the_same_rows_all_succeed(any_warehouse: str) -> None:
    def write(value: float) -> None:
        with warehouse.connect(any_warehouse) as connection:
            connection.prepare(TARGET, [METRICS])
            connection.upsert(TARGET, [(METRICS, rows(200, value))])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [1.0, 2.0, 3.0, 4.0]))
    found = stored(any_warehouse)
    assert len(found) == 200
    assert len({value for _, value in found}) == 1


HOLDER = """
import sys
from prefect_hamilton import warehouse
with warehouse.connect(sys.argv[1]):
    print("open", flush=True)
    sys.stdin.readline()
"""


def test_a_load_waits_for_a_file_held_by_another_process(tmp_path: Path) -> None:
    url = f"duckdb:///{tmp_path}/warehouse.duckdb"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin and holder.stdout
    assert holder.stdout.readline() == b"open\n"
    with pytest.raises(WarehouseError) as refused, warehouse.connect(url, lock_timeout=1):
        pass
    assert str(refused.value) == (
        f"{tmp_path}/warehouse.duckdb has been in use by another process for 1 s "
        f"(process {holder.pid}): close it there and run again"
    )
    messages: list[str] = []

    def release(message: str) -> None:
        messages.append(message)
        assert holder.stdin
        holder.stdin.close()

    with warehouse.connect(url, on_wait=release) as connection:
        connection.prepare(TARGET, [METRICS])
    assert holder.wait(timeout=30) == 0
    assert messages == [
        f"Waiting for {tmp_path}/warehouse.duckdb, in use by another process (process {holder.pid})"
    ]


@pytest.mark.parametrize(
    "name",
    ["metrics", "prod.metrics", "a.b.c.d", "A.b.c", "a.b.c;", 'a.b."c"', "", "a.b." + 49 * "c"],
)
def test_a_target_table_has_three_plain_names(name: str) -> None:
    with pytest.raises(WarehouseError, match=r"is not catalog\.schema\.table"):
        Target.parse(name)


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("duckdb:////data/lake.duckdb", r"DuckDB file lake\.duckdb: write lake\.prod\.metrics"),
        ("postgresql://u:s3cret@db/other", r"PostgreSQL database other: write other\.prod"),
        ("mysql://u:s3cret@db/warehouse", "neither duckdb:.* nor postgresql:"),
        ("s3cret", "neither duckdb:.* nor postgresql:"),
    ],
)
def test_a_wrong_warehouse_is_reported_without_its_password(url: str, cause: str) -> None:
    with pytest.raises(WarehouseError, match=cause) as error:
        warehouse.check(url, TARGET)
    assert "s3cret" not in str(error.value)


def test_an_unreachable_server_is_one_line_without_the_password() -> None:
    with (
        pytest.raises(WarehouseError, match=r"to postgresql://127\.0\.0\.1:1/w") as error,
        warehouse.connect("postgresql://u:s3cret@127.0.0.1:1/w"),
    ):
        pass
    assert "s3cret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_the_address_of_the_warehouse(
    prefect_api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WAREHOUSE_URL", raising=False)
    monkeypatch.setenv("PREFECT_HAMILTON_STATE", str(tmp_path))
    assert warehouse.warehouse_url() == f"duckdb:///{tmp_path}/warehouse.duckdb"
    Secret(value="postgresql://block/warehouse").save(warehouse.URL_BLOCK)
    try:
        assert warehouse.warehouse_url() == "postgresql://block/warehouse"
        monkeypatch.setenv("WAREHOUSE_URL", "postgresql://variable/warehouse")
        assert warehouse.warehouse_url() == "postgresql://variable/warehouse"
    finally:
        Secret.delete(warehouse.URL_BLOCK)
