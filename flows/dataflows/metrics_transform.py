"""Dataflow from accepted records to the rows of the warehouse: one per record and one per month.

Rolling statistics look back over a window of time, so they hold for records at any distance. They
and the months are computed from the accepted records together with the records that the warehouse
holds around them (`context_ranges`), and what they change in rows and months that are not part of
the source comes out as well (`recalculated_rows`, `recalculated_months`). A row's statistics depend
only on the metric's records of the same month and of the 30 days before that month, to the last
bit: the order in which records come makes no difference.
"""

from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
import pandera.pandas as pa
from hamilton.function_modifiers import check_output
from pandas.api.indexers import BaseIndexer

KEY = ["metric", "time"]
MONTH_KEY = ["metric", "month"]

# The longest window. It reaches from the last day of a month into the second month after it, where
# the month between is a February.
LOOK_BACK = np.timedelta64(30, "D")
MONTHS_REACHED = 2

# Number of observations whose windows are computed at the same time.
BLOCK_SIZE = 100_000

FINITE = pa.Check(np.isfinite, name="finite")

METRIC_ROW = pa.DataFrameSchema(
    {
        "metric": pa.Column("str"),
        "time": pa.Column("datetime64[us]"),
        "value": pa.Column("float64", FINITE),
        "unit": pa.Column("str", nullable=True),
        "station": pa.Column("str", nullable=True),
        "rolling_mean_7d": pa.Column("float64", FINITE),
        "rolling_mean_30d": pa.Column("float64", FINITE),
        "rolling_std_30d": pa.Column("float64", [FINITE, pa.Check.ge(0)], nullable=True),
        "z_score": pa.Column("float64", FINITE, nullable=True),
        "is_anomaly": pa.Column("bool"),
    },
    unique=KEY,
    strict=True,
    ordered=True,
)

MONTH_ROW = pa.DataFrameSchema(
    {
        "metric": pa.Column("str"),
        "month": pa.Column("datetime64[us]"),
        "unit": pa.Column("str", nullable=True),
        "aggregation": pa.Column("str", pa.Check.isin(["sum", "mean"])),
        "value": pa.Column("float64", FINITE),
        "minimum": pa.Column("float64", FINITE),
        "maximum": pa.Column("float64", FINITE),
        "observations": pa.Column("int64", pa.Check.ge(1)),
        "anomalies": pa.Column("int64", pa.Check.ge(0)),
        "change": pa.Column("float64", FINITE, nullable=True),
        "change_percent": pa.Column("float64", FINITE, nullable=True),
    },
    unique=MONTH_KEY,
    strict=True,
    ordered=True,
)


# What tells whether a row or month that the warehouse holds has to be written again.
STATISTICS = ["rolling_mean_7d", "rolling_mean_30d", "rolling_std_30d", "z_score", "is_anomaly"]
MONTH_COLUMNS = list(MONTH_ROW.columns)
MONTH_VALUES = [name for name in MONTH_COLUMNS if name not in MONTH_KEY]


def touched_months(accepted_records: pd.DataFrame, unfinished_months: pd.DataFrame) -> pd.DataFrame:
    """Columns metric, month: where there are records, or a load may have stopped half-way."""
    months = pd.DataFrame(
        {
            "metric": accepted_records["metric"],
            "month": _month(_without_zone(accepted_records["time"])),
        }
    )
    return pd.concat([months, unfinished_months[MONTH_KEY]]).drop_duplicates(ignore_index=True)


def affected_months(touched_months: pd.DataFrame) -> pd.DataFrame:
    """Columns metric, month: the touched months, and those that their windows reach into."""
    return _around(touched_months, range(MONTHS_REACHED + 1))


def context_ranges(touched_months: pd.DataFrame) -> pd.DataFrame:
    """Columns metric, first, beyond (both a first of a month): all that has to be known.

    Those are the affected months, the month before them, which they are compared with, and the
    records that the windows of their first days look back to.
    """
    months = _around(touched_months, range(-MONTHS_REACHED, MONTHS_REACHED + 1))
    number = months["month"].to_numpy().astype("datetime64[M]").astype("int64")
    starts = (months["metric"] != months["metric"].shift()) | (np.diff(number, prepend=-1) != 1)
    ranges = months.groupby(starts.cumsum().to_numpy()).agg(
        metric=("metric", "first"), first=("month", "first"), last=("month", "last")
    )
    beyond = _plus_months(ranges["last"], 1)
    return ranges.assign(beyond=beyond)[["metric", "first", "beyond"]].reset_index(drop=True)


def observations(accepted_records: pd.DataFrame, held_rows: pd.DataFrame) -> pd.DataFrame:
    """Columns metric, time (UTC without zone, as the warehouse keeps it), value, from_source.

    In order, each metric and time once: a record of the source replaces the one that is held.
    """
    columns = [*KEY, "value"]
    accepted = accepted_records.assign(time=_without_zone(accepted_records["time"]))[columns]
    if held_rows.empty:
        return _in_order(accepted.assign(from_source=True))
    both = pd.concat([accepted, held_rows[columns]], ignore_index=True)
    both["from_source"] = np.arange(len(both)) < len(accepted)
    return _in_order(both.drop_duplicates(KEY))


def rolling_mean_7d(observations: pd.DataFrame) -> pd.Series:
    """Mean of the metric's last 7 days, the record itself included."""
    return _rolling(observations, 7, "mean").rename("rolling_mean_7d")


def rolling_mean_30d(observations: pd.DataFrame) -> pd.Series:
    """Mean of the metric's last 30 days, the record itself included."""
    return _rolling(observations, 30, "mean").rename("rolling_mean_30d")


def rolling_std_30d(observations: pd.DataFrame) -> pd.Series:
    """Spread (standard deviation) of the metric's last 30 days, the record itself included."""
    return _rolling(observations, 30, "std").rename("rolling_std_30d")


def z_score(observations: pd.DataFrame) -> pd.Series:
    """Distance from the mean of the 30 days before, in standard deviations of those days.

    The record is not part of what it is measured against. Null with fewer than 7 records before,
    or when those are all alike.
    """
    mean = _rolling(observations, 30, "mean", before=7)
    std = _rolling(observations, 30, "std", before=7)
    # A rolling deviation of equal values is not exactly 0 in floating point.
    spread = std.where(std > 1e-9 * mean.abs().clip(lower=1.0))
    return ((observations["value"] - mean) / spread).rename("z_score")


def is_anomaly(z_score: pd.Series, anomaly_z_threshold: float) -> pd.Series:
    """Whether a record is `anomaly_z_threshold` or more deviations away; null never is."""
    return (z_score.abs() >= anomaly_z_threshold).rename("is_anomaly")


def observed_rows(
    observations: pd.DataFrame,
    rolling_mean_7d: pd.Series,
    rolling_mean_30d: pd.Series,
    rolling_std_30d: pd.Series,
    z_score: pd.Series,
    is_anomaly: pd.Series,
    metric_dimension: pd.DataFrame,
) -> pd.DataFrame:
    """Each observation with its statistics, unit and station, and whether it is from_source."""
    dimension = metric_dimension.set_index("metric")
    return observations.assign(
        unit=_looked_up(observations["metric"], dimension["unit"]),
        station=_looked_up(observations["metric"], dimension["station"]),
        rolling_mean_7d=rolling_mean_7d,
        rolling_mean_30d=rolling_mean_30d,
        rolling_std_30d=rolling_std_30d,
        z_score=z_score,
        is_anomaly=is_anomaly,
    )


@check_output(schema=METRIC_ROW, importance="fail")
def metric_rows(observed_rows: pd.DataFrame) -> pd.DataFrame:
    """One row per record of the source (key: metric, time), with its statistics."""
    rows = observed_rows[list(METRIC_ROW.columns)]
    from_source = observed_rows["from_source"]
    return rows if from_source.all() else rows[from_source]  # all of them share their memory


@check_output(schema=METRIC_ROW, importance="fail")
def recalculated_rows(
    observed_rows: pd.DataFrame, affected_months: pd.DataFrame, held_rows: pd.DataFrame
) -> pd.DataFrame:
    """Rows that the warehouse holds and whose statistics are other ones now."""
    held = observed_rows[~observed_rows["from_source"]]
    reached = _in_months(held["metric"], _month(held["time"]), affected_months)
    return _other_than(held.loc[reached, list(METRIC_ROW.columns)], held_rows, KEY, STATISTICS)


def monthly(observations: pd.DataFrame, is_anomaly: pd.Series) -> pd.DataFrame:
    """One row per metric and calendar month with observations, in order.

    Columns metric, month, sum, mean, minimum, maximum, observations, anomalies, from_source.
    """
    months = observations.assign(month=_month(observations["time"]), anomaly=is_anomaly)
    return months.groupby(MONTH_KEY, as_index=False).agg(
        sum=("value", "sum"),
        mean=("value", "mean"),
        minimum=("value", "min"),
        maximum=("value", "max"),
        observations=("value", "count"),
        anomalies=("anomaly", "sum"),
        from_source=("from_source", "any"),
    )


def monthly_described(monthly: pd.DataFrame, metric_dimension: pd.DataFrame) -> pd.DataFrame:
    """Months joined to the dimension; `value` is their sum or mean, as the metric demands.

    A metric the dimension does not know is averaged, on a ratio scale.
    """
    described = monthly.merge(
        metric_dimension[["metric", "unit", "aggregation", "scale"]],
        on="metric",
        how="left",
        validate="m:1",
    )
    aggregation = described["aggregation"].fillna("mean")
    value = described["sum"].where(aggregation == "sum", described["mean"])
    return described.assign(
        aggregation=aggregation, scale=described["scale"].fillna("ratio"), value=value
    )


def month_on_month(monthly_described: pd.DataFrame) -> pd.Series:
    """Change of a month's value from the calendar month before; null when that one is empty."""
    by_metric = monthly_described.groupby("metric")
    follows = _plus_months(by_metric["month"].shift(), 1) == monthly_described["month"]
    change: pd.Series = by_metric["value"].diff().where(follows).rename("change")
    return change


def month_on_month_percent(monthly_described: pd.DataFrame, month_on_month: pd.Series) -> pd.Series:
    """Change in percent, where percent mean something: ratio scale, from a value above 0."""
    previous = monthly_described["value"] - month_on_month
    meaningful = (monthly_described["scale"] == "ratio") & (previous > 1e-12)
    return (100 * month_on_month / previous.where(meaningful)).rename("change_percent")


def described_months(
    monthly_described: pd.DataFrame,
    month_on_month: pd.Series,
    month_on_month_percent: pd.Series,
) -> pd.DataFrame:
    """Each month with its changes, and whether a record of it is from_source."""
    types = {"unit": "str", "observations": "int64", "anomalies": "int64"}
    return monthly_described.assign(
        change=month_on_month, change_percent=month_on_month_percent
    ).astype(types)


@check_output(schema=MONTH_ROW, importance="fail")
def month_rows(described_months: pd.DataFrame) -> pd.DataFrame:
    """One row per metric and month with records of the source (key: metric, month)."""
    return described_months.loc[described_months["from_source"], MONTH_COLUMNS]


@check_output(schema=MONTH_ROW, importance="fail")
def recalculated_months(
    described_months: pd.DataFrame, affected_months: pd.DataFrame, held_months: pd.DataFrame
) -> pd.DataFrame:
    """Months without a record of the source that are other ones now, or not held."""
    held = described_months[~described_months["from_source"]]
    reached = _in_months(held["metric"], held["month"], affected_months)
    months = held.loc[reached, MONTH_COLUMNS]
    return _other_than(months, held_months, MONTH_KEY, MONTH_VALUES)


def _without_zone(time: pd.Series) -> pd.Series:
    utc: pd.Series = time.dt.tz_convert("UTC").dt.tz_localize(None)
    return utc


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by metric and time; without a copy if they are so already."""
    code, names = rows["metric"].factorize()
    steps = np.diff(code)
    times = np.diff(rows["time"].to_numpy()).astype("int64")
    if (
        pd.Index(names).is_monotonic_increasing
        and (steps >= 0).all()
        and (times[steps == 0] >= 0).all()
    ):
        return rows.reset_index(drop=True)
    return rows.sort_values(KEY, ignore_index=True)


def _looked_up(metric: pd.Series, values: pd.Series) -> pd.Series:
    """Return what a value by metric is for each; it is looked up once per metric."""
    code, names = metric.factorize()
    found: pd.Series = pd.Series(names).map(values).astype("str").take(code)
    return found.set_axis(metric.index)


def _month(time: pd.Series) -> pd.Series:
    """Return the first of each time's month."""
    return _plus_months(time, 0)


def _plus_months(time: pd.Series, months: int) -> pd.Series:
    moved = time.to_numpy().astype("datetime64[M]") + months
    return pd.Series(moved.astype("datetime64[us]"), index=time.index)


def _around(months: pd.DataFrame, distances: range) -> pd.DataFrame:
    """Return the months at these distances from some month, in order, each once."""
    moved = [
        months.assign(month=_plus_months(months["month"], months_on)) for months_on in distances
    ]
    return pd.concat(moved).drop_duplicates().sort_values(MONTH_KEY, ignore_index=True)


def _in_months(metric: pd.Series, month: pd.Series, months: pd.DataFrame) -> "np.ndarray":
    wanted = pd.MultiIndex.from_frame(months[MONTH_KEY])
    return pd.MultiIndex.from_arrays([metric, month]).isin(wanted)


def _other_than(
    rows: pd.DataFrame, held: pd.DataFrame, key: list[str], columns: list[str]
) -> pd.DataFrame:
    """Return the rows that differ from the held one of the same key, or have none."""
    before = rows[key].merge(held[[*key, *columns]], on=key, how="left", validate="1:1")
    now, before = rows[columns].reset_index(drop=True), before[columns]
    same = (now == before) | (now.isna() & before.isna())
    return rows[~same.all(axis="columns").to_numpy()]


class _Bounds(BaseIndexer):
    """Windows from position `first` up to position `beyond`, both given."""

    first: np.ndarray
    beyond: np.ndarray

    def get_window_bounds(
        self,
        num_values: int = 0,
        min_periods: int | None = None,
        center: bool | None = None,
        closed: str | None = None,
        step: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.first, self.beyond


def _rolling(
    observations: pd.DataFrame, days: int, statistic: Literal["mean", "std"], before: int = 0
) -> pd.Series:
    """Return a statistic over each observation's last days, itself included.

    With `before` the observation itself is left out, and that many must be before it.

    Pandas computes a window from the one before it, which leaves traces of the values that have
    left. So each month is computed afresh, with the days before it that its windows look back to:
    then a value never depends on where the observations begin. Some months at a time, for the
    positions take several times the memory of the values.
    """
    value = observations["value"].to_numpy()
    first, starts, leads = _windows(observations, days, of_itself=not before)
    ends = np.append(starts, len(value))[1:]
    rolled = np.empty(len(value))
    for block in _blocks(ends - leads):
        taken, windows, position = _laid_out(first, starts[block], ends[block], leads[block])
        beyond = np.arange(len(taken)) + (0 if before else 1)
        rolling = pd.Series(value[taken]).rolling(
            _Bounds(first=windows, beyond=beyond), min_periods=before or 1
        )
        found = rolling.mean() if statistic == "mean" else rolling.std()
        rolled[starts[block][0] : ends[block][-1]] = found.to_numpy()[position]
    return pd.Series(rolled, index=observations.index)


def _windows(
    observations: pd.DataFrame, days: int, *, of_itself: bool
) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """Return positions: where windows start, where months do, and what their windows look back to.

    The first is one for each observation, the others are one for each month.
    """
    time = observations["time"].to_numpy().astype("datetime64[us]", copy=False)
    metric = observations["metric"].factorize()[0]
    new_metric = np.diff(metric, prepend=-1) != 0
    month = time.astype("datetime64[M]")
    new_month = np.diff(month, prepend=month[:1] - 1).astype("bool")
    metric_starts, month_starts = np.flatnonzero(new_metric), np.flatnonzero(new_metric | new_month)
    month = month[month_starts]
    # The window is open at this end, unless the observation itself is left out.
    side: Literal["left", "right"] = "right" if of_itself else "left"
    first = np.empty(len(time), dtype="int64")
    leads = np.empty(len(month), dtype="int64")
    for start, end in pairwise([*metric_starts, len(time)]):
        part = time[start:end]
        first[start:end] = start + part.searchsorted(part - np.timedelta64(days, "D"), side)
        months = slice(*month_starts.searchsorted((start, end)))
        leads[months] = start + part.searchsorted(month[months] - LOOK_BACK)
    return first, month_starts, leads


def _blocks(sizes: "np.ndarray") -> list[slice]:
    """Return runs of consecutive months that have about BLOCK_SIZE observations together."""
    number = np.cumsum(sizes) // BLOCK_SIZE
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return [slice(start, end) for start, end in pairwise([*starts, len(sizes)])]


def _laid_out(
    first: "np.ndarray", starts: "np.ndarray", ends: "np.ndarray", leads: "np.ndarray"
) -> "tuple[np.ndarray, np.ndarray, np.ndarray]":
    """Lay out months one after the other, each with its lead.

    Returns the positions of the observations that are taken, where the window of each of those
    starts in that longer row, and where in it the months' own observations are.
    """
    sizes = ends - leads
    offsets = np.cumsum(sizes) - sizes
    taken = np.arange(sizes.sum()) + np.repeat(leads - offsets, sizes)
    shift = np.repeat(offsets - leads, ends - starts)
    own = slice(starts[0], ends[-1])
    position = np.arange(own.start, own.stop) + shift
    windows = np.repeat(offsets, sizes)
    windows[position] = first[own] + shift
    return taken, windows, position
