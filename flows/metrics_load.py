"""How metrics get into the warehouse: what is read for it first, and the transactions.

The statistics of a record and the months depend on the records around it, so a load reads those
first. One load of a target at a time does so (`exclusively`), from its first read to its last
write. So a load that is still `loading` then was killed: it does not continue, and the next load
of the target calculates its months again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flows.tables import LOADS, METRICS, MONTHLY
from prefect_hamilton.warehouse import TableSpec, Target, Wanted, Warehouse

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

# A load writes whole batches together rather than in more transactions than these, for each costs
# a few hundredths of a second; but never more rows together than the largest batch.
TRANSACTIONS = 100
LARGEST_BATCH = 100_000


@dataclass(frozen=True)
class Held:
    """What the warehouse holds around the records to be loaded.

    `rows` and `months` are those of `metrics_transform.context_ranges`, without the rows that the
    records replace; `unfinished` are the load log's rows of loads that were stopped half-way, and
    `unfinished_months` (columns metric, month) what they may have changed. `rows_read` counts the
    replaced rows as well.
    """

    rows: "pd.DataFrame"
    months: "pd.DataFrame"
    unfinished: "pd.DataFrame"
    unfinished_months: "pd.DataFrame"
    rows_read: int


@dataclass(frozen=True)
class Transformed:
    """Outcome of the transform dataflow; `run_url` is its run in the Hamilton UI, if tracked.

    `metrics` and `months` are those of the source; the others follow from them.
    """

    metrics: "pd.DataFrame"
    months: "pd.DataFrame"
    recalculated: "pd.DataFrame"
    recalculated_months: "pd.DataFrame"
    run_url: str | None

    def tables(self) -> "list[tuple[TableSpec, pd.DataFrame, str | None]]":
        """Return what is to be written, in this order, and where the load log counts it."""
        return [
            (METRICS, self.metrics, "rows_written"),
            (METRICS, self.recalculated, None),
            (MONTHLY, self.months, "months_written"),
            (MONTHLY, self.recalculated_months, None),
        ]


def utc_now() -> datetime:
    """Return the time as the warehouse keeps it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def exclusively(connection: Warehouse, target: Target) -> AbstractContextManager[object]:
    """Keep other loads of the target waiting until the block ends."""
    return connection.exclusively(f"load {target.shown(METRICS)}")


def read_held(connection: Warehouse, target: Target, accepted: "pd.DataFrame") -> Held:
    """Read what the transform dataflow needs to know beside the accepted records."""
    from flows.dataflows import metrics_transform

    # The table's name is checked by Target.parse.
    loading = f"SELECT * FROM {target.name(LOADS)} WHERE status = 'loading'"  # noqa: S608
    unfinished = connection.read(loading)
    months = _months_of(unfinished)
    touched = metrics_transform.touched_months(accepted, months)
    ranges = metrics_transform.context_ranges(touched)
    columns = [*metrics_transform.KEY, "value", *metrics_transform.STATISTICS]
    kept = _Replaced(accepted)
    rows = _read_ranges(connection, target, METRICS, columns, ranges, kept.are_not)
    return Held(
        rows=rows,
        months=_read_ranges(connection, target, MONTHLY, metrics_transform.MONTH_COLUMNS, ranges),
        unfinished=unfinished,
        unfinished_months=months,
        rows_read=kept.looked_at,
    )


class _Replaced:
    """Tells which held rows the accepted records replace: those of the same metric and time.

    A reload of a source holds all of its rows already, so this must not take more memory.
    """

    def __init__(self, accepted: "pd.DataFrame") -> None:
        import numpy as np
        import pandas as pd

        self.looked_at = 0
        code, names = accepted["metric"].factorize()
        self._metrics = pd.Index(names)
        time = accepted["time"].dt.tz_convert(None).to_numpy()
        self._times = np.unique(time)
        # Metric and time as one number.
        self._keys = np.sort(code * len(self._times) + self._times.searchsorted(time))

    def are_not(self, rows: "pd.DataFrame") -> "np.ndarray":
        import pandas as pd

        self.looked_at += len(rows)
        code = self._metrics.get_indexer(pd.Index(rows["metric"]))
        time = rows["time"].to_numpy()
        position = self._times.searchsorted(time).clip(max=len(self._times) - 1)
        key = code * len(self._times) + position
        found = self._keys.searchsorted(key).clip(max=len(self._keys) - 1)
        known = (code >= 0) & (self._times[position] == time)
        replaced: np.ndarray = known & (self._keys[found] == key)
        return ~replaced


def _read_ranges(
    connection: Warehouse,
    target: Target,
    spec: TableSpec,
    columns: Iterable[str],
    ranges: "pd.DataFrame",
    wanted: Wanted | None = None,
) -> "pd.DataFrame":
    """Return the rows of metrics from `first` to before `beyond`."""
    metric, time = (f'held."{name}"' for name in spec.key)
    query = f"""
        SELECT {", ".join(f'held."{name}"' for name in columns)}
        FROM (
            SELECT unnest(CAST(? AS TEXT[])) AS metric, unnest(CAST(? AS TIMESTAMP[])) AS "first",
                unnest(CAST(? AS TIMESTAMP[])) AS beyond
        ) AS wanted
        JOIN {target.name(spec)} AS held
            ON {metric} = wanted.metric
            AND {time} >= wanted."first" AND {time} < wanted.beyond
    """  # noqa: S608
    bounds = [ranges[name].dt.to_pydatetime().tolist() for name in ("first", "beyond")]
    return connection.read(query, [ranges["metric"].tolist(), *bounds], wanted)


def _months_of(loads: "pd.DataFrame") -> "pd.DataFrame":
    """Return the metrics and months within the extent of loads."""
    import pandas as pd

    def months_of(load: dict[str, Any]) -> pd.DataFrame:
        months = pd.period_range(load["first_time"], load["last_time"], freq="M")
        return pd.MultiIndex.from_product(
            [json.loads(load["metrics"]), months.to_timestamp().as_unit("us")],
            names=["metric", "month"],
        ).to_frame(index=False)

    months = [months_of(load) for load in _records(loads)]
    none = pd.DataFrame({"metric": pd.Series(dtype="str"), "month": pd.Series(dtype="M8[us]")})
    return pd.concat(months, ignore_index=True) if months else none


def rows_per_transaction(rows: int, batch_size: int) -> int:
    """Return how many of a load's rows are written in one transaction: whole batches."""
    batches = -(-rows // batch_size)
    together = min(-(-batches // TRANSACTIONS), LARGEST_BATCH // batch_size)
    return batch_size * max(together, 1)


def write(
    connection: Warehouse,
    target: Target,
    transformed: Transformed,
    unfinished: "pd.DataFrame",
    log: Mapping[str, Any],
    batch_size: int,
) -> Iterator[tuple[int, int]]:
    """Upsert everything, each transaction together with the load log; yields rows done and all.

    Whatever stops it, running it again leaves every row there once: rows by their key, the log by
    the flow run's id. With the last rows the run's log becomes complete, and that of the unfinished
    loads of other runs interrupted.
    """
    import pandas as pd

    run_id = log["flow_run_id"]
    all_rows = sum(len(rows) for _, rows, _ in transformed.tables())
    size = rows_per_transaction(all_rows, batch_size)
    mine = unfinished["flow_run_id"] == run_id
    loading = _with_extent_of(log, unfinished[mine])
    interrupted = _records(unfinished[~mine].assign(status="interrupted"))
    written = {"rows_written": 0, "months_written": 0}
    done = 0
    for spec, rows, counted in transformed.tables():
        for start in range(0, len(rows), size):
            part = rows.iloc[start : start + size].assign(flow_run_id=run_id)
            done += len(part)
            if counted:
                written[counted] += len(part)
            if done < all_rows:
                logs = [loading | written]
            else:
                complete = {"status": "complete", "finished_at": utc_now()}
                logs = [*interrupted, dict(log) | written | complete]
            connection.upsert(target, [(spec, part), (LOADS, pd.DataFrame(logs))])
            yield done, all_rows


def _with_extent_of(log: Mapping[str, Any], earlier: "pd.DataFrame") -> dict[str, Any]:
    """Return the log of a run that goes on, with all that its earlier attempts may have changed.

    The source may give other records now.
    """
    extents = [log, *_records(earlier)]
    metrics = {name for extent in extents for name in json.loads(extent["metrics"])}
    return dict(log) | {
        "metrics": json.dumps(sorted(metrics)),
        "first_time": min(extent["first_time"] for extent in extents),
        "last_time": max(extent["last_time"] for extent in extents),
    }


def _records(rows: "pd.DataFrame") -> list[dict[str, Any]]:
    return [dict(zip(rows.columns, row, strict=True)) for row in rows.itertuples(index=False)]
