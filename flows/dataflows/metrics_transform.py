"""Dataflow from accepted records to the rows of the warehouse: one a record and one a month.

Rolling statistics look back over a window of time, so they hold for records at any distance.
"""

from typing import Any

import pandas as pd
import pandera.pandas as pa
from hamilton.function_modifiers import check_output

KEY = ["metric", "time"]
MONTH_KEY = ["metric", "month"]

METRIC_ROW = pa.DataFrameSchema(
    {
        "metric": pa.Column("str"),
        "time": pa.Column("datetime64[us]"),
        "value": pa.Column("float64"),
        "unit": pa.Column("str", nullable=True),
        "station": pa.Column("str", nullable=True),
        "rolling_mean_7d": pa.Column("float64"),
        "rolling_mean_30d": pa.Column("float64"),
        "rolling_std_30d": pa.Column("float64", pa.Check.ge(0), nullable=True),
        "z_score": pa.Column("float64", nullable=True),
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
        "value": pa.Column("float64"),
        "minimum": pa.Column("float64"),
        "maximum": pa.Column("float64"),
        "observations": pa.Column("int64", pa.Check.ge(1)),
        "anomalies": pa.Column("int64", pa.Check.ge(0)),
        "change": pa.Column("float64", nullable=True),
        "change_percent": pa.Column("float64", nullable=True),
    },
    unique=MONTH_KEY,
    strict=True,
    ordered=True,
)


def observations(accepted_records: pd.DataFrame) -> pd.DataFrame:
    """Columns metric, time (UTC without zone, as the warehouse keeps it) and value, in order."""
    utc = accepted_records["time"].dt.tz_convert("UTC").dt.tz_localize(None)
    return (
        accepted_records.assign(time=utc)[["metric", "time", "value"]]
        .sort_values(KEY)
        .reset_index(drop=True)
    )


def rolling_mean_7d(observations: pd.DataFrame) -> pd.Series:
    """Mean of the metric's last 7 days, the record itself included."""
    return _rolling(observations, "7D")["mean"].rename("rolling_mean_7d")


def rolling_mean_30d(observations: pd.DataFrame) -> pd.Series:
    """Mean of the metric's last 30 days, the record itself included."""
    return _rolling(observations, "30D")["mean"].rename("rolling_mean_30d")


def rolling_std_30d(observations: pd.DataFrame) -> pd.Series:
    """Spread (standard deviation) of the metric's last 30 days, the record itself included."""
    return _rolling(observations, "30D")["std"].rename("rolling_std_30d")


def z_score(observations: pd.DataFrame) -> pd.Series:
    """Distance from the mean of the 30 days before, in standard deviations of those days.

    The record is not part of what it is measured against. Null with fewer than 7 records before,
    or when those are all alike.
    """
    before = _rolling(observations, "30D", closed="left", min_periods=7)
    # A rolling deviation of equal values is not exactly 0 in floating point.
    spread = before["std"].where(before["std"] > 1e-9 * before["mean"].abs().clip(lower=1.0))
    return ((observations["value"] - before["mean"]) / spread).rename("z_score")


def is_anomaly(z_score: pd.Series, anomaly_z_threshold: float) -> pd.Series:
    """Whether a record is `anomaly_z_threshold` or more deviations away; null never is."""
    return (z_score.abs() >= anomaly_z_threshold).rename("is_anomaly")


@check_output(schema=METRIC_ROW, importance="fail")
def metric_rows(
    observations: pd.DataFrame,
    rolling_mean_7d: pd.Series,
    rolling_mean_30d: pd.Series,
    rolling_std_30d: pd.Series,
    z_score: pd.Series,
    is_anomaly: pd.Series,
    metric_dimension: pd.DataFrame,
) -> pd.DataFrame:
    """One row a record (key: metric, time), with its statistics, unit and station."""
    rows = observations.merge(
        metric_dimension[["metric", "unit", "station"]], on="metric", how="left", validate="m:1"
    ).assign(
        rolling_mean_7d=rolling_mean_7d,
        rolling_mean_30d=rolling_mean_30d,
        rolling_std_30d=rolling_std_30d,
        z_score=z_score,
        is_anomaly=is_anomaly,
    )
    return rows[list(METRIC_ROW.columns)].astype({"unit": "str", "station": "str"})


def monthly(observations: pd.DataFrame, is_anomaly: pd.Series) -> pd.DataFrame:
    """Each metric resampled to calendar months (index: metric, first day), empty months included.

    Columns sum, mean, minimum, maximum, observations, anomalies.
    """
    resampled = (
        observations.assign(anomaly=is_anomaly)
        .set_index("time")
        .groupby("metric")
        .resample("MS")
        .agg(
            sum=("value", "sum"),
            mean=("value", "mean"),
            minimum=("value", "min"),
            maximum=("value", "max"),
            observations=("value", "count"),
            anomalies=("anomaly", "sum"),
        )
    )
    return resampled.rename_axis(index=MONTH_KEY)


def monthly_described(monthly: pd.DataFrame, metric_dimension: pd.DataFrame) -> pd.DataFrame:
    """Months joined to the dimension; `value` is their sum or mean, as the metric demands.

    A metric the dimension does not know is averaged, on a ratio scale.
    """
    described = monthly.reset_index().merge(
        metric_dimension[["metric", "unit", "aggregation", "scale"]],
        on="metric",
        how="left",
        validate="m:1",
    )
    aggregation = described["aggregation"].fillna("mean")
    empty = described["observations"] == 0
    value = described["sum"].where(aggregation == "sum", described["mean"]).mask(empty)
    return described.assign(
        aggregation=aggregation, scale=described["scale"].fillna("ratio"), value=value
    )


def month_on_month(monthly_described: pd.DataFrame) -> pd.Series:
    """Change of a month's value from the calendar month before; null when that one is empty."""
    return monthly_described.groupby("metric")["value"].diff().rename("change")


def month_on_month_percent(monthly_described: pd.DataFrame, month_on_month: pd.Series) -> pd.Series:
    """Change in percent, where percent mean something: ratio scale, from a value above 0."""
    previous = monthly_described["value"] - month_on_month
    meaningful = (monthly_described["scale"] == "ratio") & (previous > 1e-12)
    return (100 * month_on_month / previous.where(meaningful)).rename("change_percent")


@check_output(schema=MONTH_ROW, importance="fail")
def month_rows(
    monthly_described: pd.DataFrame,
    month_on_month: pd.Series,
    month_on_month_percent: pd.Series,
) -> pd.DataFrame:
    """One row a metric and month that has records (key: metric, month)."""
    rows = monthly_described.assign(change=month_on_month, change_percent=month_on_month_percent)
    rows = rows[rows["observations"] > 0].reset_index(drop=True)
    rows = rows.assign(month=rows["month"].dt.as_unit("us"))
    types = {"unit": "str", "observations": "int64", "anomalies": "int64"}
    return rows[list(MONTH_ROW.columns)].astype(types)


def _rolling(observations: pd.DataFrame, window: str, **options: Any) -> pd.DataFrame:
    """Columns mean and std over windows of time of each metric, in the observations' order."""
    windows = observations.groupby("metric").rolling(window, on="time", **options)["value"]
    # The observations are sorted by metric and time, and so is what comes out of the windows.
    return windows.agg(["mean", "std"]).set_axis(observations.index)
