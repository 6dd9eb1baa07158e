"""Loads of metrics on each warehouse: in any order, killed or not, the tables are the same."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier

import numpy as np
import pandas as pd
import pytest
from hamilton import driver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows import metrics_load
from flows.data_pipeline import DIMENSION_FILE
from flows.dataflows import metrics_transform
from flows.metrics_load import Held, Transformed
from flows.tables import LOADS, METRICS, MONTHLY
from prefect_hamilton import warehouse
from prefect_hamilton.warehouse import TableSpec, Target, Warehouse
from tests import forks

SPECS = [METRICS, MONTHLY, LOADS]


def transform(accepted: pd.DataFrame, held: Held) -> Transformed:
    dataflow = driver.Builder().with_modules(metrics_transform).build()
    inputs = {
        "accepted_records": accepted,
        "held_rows": held.rows,
        "held_months": held.months,
        "unfinished_months": held.unfinished_months,
        "metric_dimension": pd.read_csv(DIMENSION_FILE),
        "anomaly_z_threshold": 3.0,
    }
    outputs = ["metric_rows", "month_rows", "recalculated_rows", "recalculated_months"]
    result = dataflow.execute(outputs, inputs=inputs)
    return Transformed(
        *(result[output] for output in outputs[:2]), result[outputs[2]], result[outputs[3]], None
    )


@dataclass(frozen=True)
class Loader:
    """Loads records into a target as the pipeline does."""

    connection: Warehouse
    target: Target

    def load(
        self,
        records: pd.DataFrame,
        batch_size: int = 500,
        stop_after: int | None = None,
        run_id: str | None = None,
    ) -> Transformed:
        """Load, or stop after some transactions as a kill would."""
        accepted = records.assign(time=records["time"].dt.tz_localize("UTC"))
        with metrics_load.exclusively(self.connection, self.target):
            self.connection.prepare(self.target, SPECS)
            held = metrics_load.read_held(self.connection, self.target, accepted)
            transformed = transform(accepted, held)
            log = {
                "flow_run_id": run_id or str(uuid.uuid4()),
                "status": "loading",
                "metrics": pd.Series(accepted["metric"].unique()).to_json(orient="values"),
                "first_time": records["time"].min(),
                "last_time": records["time"].max(),
            }
            transactions = metrics_load.write(
                self.connection,
                self.target,
                transformed,
                held.unfinished,
                dict.fromkeys(LOADS.columns) | log,
                batch_size,
            )
            for number, _ in enumerate(transactions, start=1):
                if number == stop_after:
                    break
        return transformed

    def read(self, spec: TableSpec) -> pd.DataFrame:
        found = self.connection.read(f"SELECT * FROM {self.target.name(spec)}")  # noqa: S608
        return found.sort_values(list(spec.key), ignore_index=True)

    def assert_tables_follow_from_the_observations(self) -> None:
        """Each row and month is, to the last bit, what one load of all observations gives."""
        rows, months = self.read(METRICS), self.read(MONTHLY)
        observed = rows[["metric", "time", "value"]]
        nothing = Held(rows.head(0), months.head(0), pd.DataFrame(), months.head(0), 0)
        once = transform(observed.assign(time=observed["time"].dt.tz_localize("UTC")), nothing)
        for found, expected in ((rows, once.metrics), (months, once.months)):
            pd.testing.assert_frame_equal(
                found.drop(columns="flow_run_id"), expected.reset_index(drop=True), check_exact=True
            )


@pytest.fixture
def opened(any_warehouse: str) -> Iterator[Warehouse]:
    with warehouse.connect(any_warehouse) as connection:
        yield connection


@pytest.fixture
def loader(opened: Warehouse) -> Loader:
    return Loader(opened, Target.parse("warehouse.prod.metrics"))


def records(values: dict[str, float], metric: str = "wind") -> pd.DataFrame:
    """Records of a metric: day to value."""
    time = pd.to_datetime(list(values)).as_unit("us")
    return pd.DataFrame({"time": time, "metric": metric, "value": list(values.values())})


def days(first: str, count: int, value: float = 3.0, metric: str = "wind") -> pd.DataFrame:
    times = pd.date_range(first, periods=count).strftime("%Y-%m-%d")
    return records(dict.fromkeys(times, value), metric)


@st.composite
def sources(draw: st.DrawFn) -> list[pd.DataFrame]:
    """Parts of a series in any order, which may overlap with other values for the same time."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 150))
    hours = draw(st.sampled_from([5, 24, 31, 24 * 9]))
    first = draw(st.sampled_from(["2023-12-20", "2024-01-29T13:00", "2023-01-30T23:59:59.999999"]))
    times = pd.Series(pd.date_range(first, periods=count, freq=f"{hours}h").as_unit("us"))
    whole = pd.concat(
        [
            pd.DataFrame({"time": times, "metric": metric, "value": random.normal(5, 1, count)})
            for metric in draw(
                st.sampled_from([["wind"], ["précipitation", "Wind", "precipitation"]])
            )
        ],
        ignore_index=True,
    )
    outlier = random.random(len(whole)) < 0.05
    whole["value"] = whole["value"].where(~outlier, 1e9 * whole["value"])
    parts = draw(st.integers(1, 4))
    if draw(st.booleans()):  # by time, as increments and backfills come
        part = np.sort(random.integers(0, parts, len(whole)))[whole["time"].rank().astype(int) - 1]
    else:
        part = random.integers(0, parts, len(whole))
    split = [whole[part == number] for number in random.permutation(parts)]
    again = whole.sample(frac=draw(st.sampled_from([0.0, 0.02, 0.3])), random_state=7)
    split.append(again.assign(value=random.normal(5, 1, len(again))))
    return [source for source in split if len(source)]


any_order = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def new_loader(opened: Warehouse) -> Loader:
    return Loader(opened, Target("warehouse", f"s{uuid.uuid4().hex}", "metrics"))


@any_order
@given(parts=sources())
def test_partial_loads_in_any_order_equal_one_full_load(
    opened: Warehouse, parts: list[pd.DataFrame]
) -> None:
    loader = new_loader(opened)
    for part in parts:
        loader.load(part)
    latest = pd.concat(parts).drop_duplicates(["metric", "time"], keep="last")
    expected = latest.sort_values(["metric", "time"], ignore_index=True)[
        ["metric", "time", "value"]
    ]
    found = loader.read(METRICS)[["metric", "time", "value"]]
    pd.testing.assert_frame_equal(found, expected.astype({"metric": "str"}), check_exact=True)
    loader.assert_tables_follow_from_the_observations()


@any_order
@given(parts=sources(), data=st.data())
def test_the_next_load_repairs_killed_loads(
    opened: Warehouse, parts: list[pd.DataFrame], data: st.DataObject
) -> None:
    loader = new_loader(opened)
    size = data.draw(st.integers(1, 40))
    for part in parts:
        stop_after = data.draw(st.integers(1, len(part) // size + 2))
        loader.load(part, size, stop_after, run_id=data.draw(st.sampled_from("ab")))
    loader.load(days("2020-01-01", 1, metric="wind"), run_id="last")
    loader.assert_tables_follow_from_the_observations()
    loads = loader.read(LOADS).set_index("flow_run_id")["status"]
    assert loads["last"] == "complete"
    assert set(loads) <= {"complete", "interrupted"}


def test_a_correction_of_one_day_rewrites_only_its_own_rows(loader: Loader) -> None:
    loader.load(days("2024-01-01", 120), run_id="whole")
    changed = loader.load(records({"2024-02-10": 5.0}), run_id="correction")
    months = loader.read(MONTHLY).set_index("month")
    february = months.loc["2024-02-01"]
    assert (february["observations"], february["value"]) == (29, (28 * 3 + 5) / 29)
    assert months.loc["2024-03-01", "change"] == 3 - february["value"]
    rows = loader.read(METRICS).set_index("time")
    assert rows.loc["2024-02-10", "rolling_mean_30d"] == pytest.approx((29 * 3 + 5) / 30)
    written = rows.index[rows["flow_run_id"] == "correction"]
    assert written.min() == pd.Timestamp("2024-02-10")
    assert written.max() < pd.Timestamp("2024-04-01")
    assert len(changed.recalculated) == len(written) - 1


def test_the_same_source_again_recalculates_nothing_around_it(loader: Loader) -> None:
    source = pd.concat([days("2024-01-01", 40), days("2024-03-20", 40, 1.7)])
    loader.load(source)
    loader.load(days("2024-02-20", 10))
    again = loader.load(source)
    assert again.recalculated.empty
    assert again.recalculated_months.empty


def test_distant_records_do_not_load_the_rows_between_them(loader: Loader) -> None:
    loader.load(days("2010-01-01", 5000))
    two = records({"2010-02-01": 1.0, "2023-02-01": 1.0})
    accepted = two.assign(time=two["time"].dt.tz_localize("UTC"))
    held = metrics_load.read_held(loader.connection, loader.target, accepted)
    read = held.months["month"].sort_values().dt.strftime("%Y-%m")
    around = ["2010-01", "2010-02", "2010-03", "2010-04"]  # December 2009 is not held
    assert list(read) == [*around, "2022-12", "2023-01", "2023-02", "2023-03", "2023-04"]


def test_stored_rows_that_the_source_replaces_are_not_kept(loader: Loader) -> None:
    held = pd.concat([days("2024-01-01", 40), days("2024-01-01", 40, metric="Wind")])
    loader.load(held)
    accepted = pd.concat([days("2024-01-05", 10), days("2024-01-01", 3, metric="unknown")])
    accepted = accepted.assign(time=accepted["time"].dt.tz_localize("UTC"))
    found = metrics_load.read_held(loader.connection, loader.target, accepted)
    assert found.rows_read == 40
    assert set(found.rows["metric"]) == {"wind"}
    kept = found.rows["time"].sort_values().dt.strftime("%Y-%m-%d")
    expected = days("2024-01-01", 4)["time"].tolist() + days("2024-01-15", 26)["time"].tolist()
    assert list(kept) == [f"{day:%Y-%m-%d}" for day in expected]


def load_in_process(url: str, source: pd.DataFrame, run_id: str, start: Barrier) -> None:
    start.wait(timeout=60)
    with warehouse.connect(url) as connection:
        loader = Loader(connection, Target.parse("warehouse.prod.metrics"))
        loader.load(source, batch_size=20, run_id=run_id)


def test_two_simultaneous_loads_of_one_table_keep_all_rows(
    any_warehouse: str,
) -> None:
    start = forks.context.Barrier(2)
    sources = {"a": days("2024-01-01", 300, 3.0), "b": days("2024-06-01", 300, 5.0)}
    processes = [
        forks.context.Process(target=load_in_process, args=(any_warehouse, source, run_id, start))
        for run_id, source in sources.items()
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    with warehouse.connect(any_warehouse) as connection:
        loader = Loader(connection, Target.parse("warehouse.prod.metrics"))
        rows = loader.read(METRICS)
        assert list(rows["time"]) == list(days("2024-01-01", 452)["time"])
        assert set(rows["value"]) == {3.0, 5.0}
        assert set(rows["value"][152:300]) in ({3.0}, {5.0})  # of the last load
        loader.assert_tables_follow_from_the_observations()
        assert list(loader.read(LOADS)["status"]) == ["complete", "complete"]


@pytest.mark.parametrize(
    ("rows", "batch_size", "expected"),
    [
        (10, 500, 500),
        (50_000, 500, 500),
        (50_001, 500, 1_000),
        (5_844, 1, 59),
        (1_000_000, 500, 10_000),
        (1_000_000, 7, 10_003),
        (100_000_000, 30_000, 90_000),
        (1_000_000, 100_000, 100_000),
    ],
)
def test_a_transaction_holds_whole_batches(rows: int, batch_size: int, expected: int) -> None:
    assert metrics_load.rows_per_transaction(rows, batch_size) == expected
