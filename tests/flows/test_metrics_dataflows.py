"""The dataflows of the data pipeline: which records are rejected and why, and what becomes of
the others."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from hamilton import driver
from hamilton.data_quality.base import DataValidationError
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.dataflows import metrics_quality, metrics_transform

AS_OF = pd.Timestamp("2024-06-01", tz="UTC")
DIMENSION = pd.read_csv(Path(metrics_quality.__file__).parents[1] / "data" / "metric_dimension.csv")
# Halves of surrogate pairs, which `extract` hands on, fit in this kind of text only.
ANY_TEXT = pd.StringDtype("python", na_value=np.nan)
GOOD = [(f"2024-01-{day:02}", "wind", "3.5") for day in range(1, 31)]


def check(
    records: list[tuple[Any, Any, Any]], text: Any = "str", **overrides: Any
) -> dict[str, Any]:
    columns = ["time", "metric", "value"]
    raw = pd.DataFrame(records, columns=columns, dtype="object").astype(text)
    dataflow = driver.Builder().with_modules(metrics_quality).build()
    inputs = {"raw_records": raw, "metric_dimension": DIMENSION, "as_of": AS_OF}
    outputs = ["accepted_records", "rejected_records", "time_gaps", "quality_report"]
    return dict(dataflow.execute(outputs, inputs=inputs, overrides=overrides))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ((None, "wind", "1"), "time is missing"),
        (("31/12/2023", "wind", "1"), "time is not an ISO 8601 date or time"),
        (("now", "wind", "1"), "time is not an ISO 8601 date or time"),
        (("today", "wind", "1"), "time is not an ISO 8601 date or time"),
        (("1850-01-01", "wind", "1"), "time is before 1900"),
        (("0001-01-01", "wind", "1"), "time is before 1900"),
        (("9999-12-31", "wind", "1"), "time is in the future"),
        (("2024-06-03", "wind", "1"), "time is in the future"),
        (("2024-02-01", None, "1"), "metric is missing"),
        (("2024-02-01", "  ", "1"), "metric is missing"),
        (("2024-02-01", "w" * 256, "1"), "metric is longer than 255 characters"),
        (("2024-02-01", "wind", None), "value is missing"),
        (("2024-02-01", "wind", "True"), "value is not a number"),
        (("2024-02-01", "wind", "inf"), "value is infinite"),
        (("2024-02-01", "sales", "-1e151"), "value is too large to calculate with"),
        (("2024-02-01", "wind", "-0.1"), "value is below the metric's minimum"),
        (("2024-02-01", "wind", "121"), "value is above the metric's maximum"),
        (("2024-01-07", "wind", "3.5"), "duplicate of an earlier record"),
        (("2024-01-07T00:00:00Z", " wind", "9"), "duplicate of an earlier record"),
    ],
)
def test_a_bad_record_is_rejected_unchanged_with_its_reason(
    record: tuple[Any, Any, Any], reason: str
) -> None:
    result = check([*GOOD, record])
    assert len(result["accepted_records"]) == len(GOOD)
    (rejected,) = result["rejected_records"].to_dict("records")
    assert rejected["reasons"] == reason
    assert rejected["record_number"] == len(GOOD) + 1
    raw = (rejected["raw_time"], rejected["raw_metric"], rejected["raw_value"])
    assert tuple(None if pd.isna(text) else text for text in raw) == record
    assert result["quality_report"]["reasons"] == {reason: 1}


def test_a_time_in_nanoseconds_does_not_invalidate_other_times() -> None:
    precise = ("2024-02-01T00:00:00.123456789+01:00", "wind", "1")
    result = check([*GOOD, precise, ("9999-12-31", "wind", "1")])
    assert result["quality_report"]["reasons"] == {"time is in the future": 1}
    latest = result["accepted_records"]["time"].max()
    assert latest == pd.Timestamp("2024-01-31T23:00:00.123456Z")


def test_a_time_without_an_offset_counts_as_utc() -> None:
    accepted = check([("2024-01-01T05:00", "wind", "1")])["accepted_records"]
    assert list(accepted["time"]) == [pd.Timestamp("2024-01-01T05:00Z")]


@pytest.mark.parametrize(
    ("metric", "written", "text"),
    [
        ("wi\0nd", "wi\\u0000nd", "str"),
        ("wi\0nd", "wi\\u0000nd", ANY_TEXT),
        ("\ud800", "\\ud800", ANY_TEXT),
    ],
)
def test_text_that_databases_cannot_store_is_rejected_and_escaped(
    metric: str, written: str, text: Any
) -> None:
    result = check([*GOOD, ("2024-02-01", metric, f"1{metric}")], text)
    (rejected,) = result["rejected_records"].to_dict("records")
    assert (rejected["raw_metric"], rejected["raw_value"]) == (written, f"1{written}")
    reason = "metric contains a NUL or half of a surrogate pair; value is not a number"
    assert rejected["reasons"] == reason
    literally = check([*GOOD, ("2024-02-01", "wi\\u0000nd", "1")])
    assert len(literally["accepted_records"]) == len(GOOD) + 1


CELL = (
    st.none()
    | st.text(st.characters(codec=None))
    | st.from_regex(r"\s*[0-9+-]{1,5}[-/.T:eE0-9+Z ]{0,20}\s*")
    | st.sampled_from(["now", "today", "NaT", "nan", "2024-01-01", "wind", "1.5", "9999-12-31"])
)


@given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_any_text_in_any_cell_is_accepted_or_rejected_unchanged(
    records: list[tuple[Any, Any, Any]],
) -> None:
    result = check(records, ANY_TEXT)
    accepted, rejected = result["accepted_records"], result["rejected_records"]
    assert len(accepted) + len(rejected) == len(records)
    assert rejected["reasons"].ne("").all()
    for record in rejected.to_dict("records"):
        came = records[record["record_number"] - 1]
        kept = [record["raw_time"], record["raw_metric"], record["raw_value"]]
        assert [None if pd.isna(cell) else cell for cell in kept] == [
            cell and re.sub("[\0\ud800-\udfff]", lambda c: f"\\u{ord(c[0]):04x}", cell)
            for cell in came
        ]
    kept_numbers = set(rejected["record_number"])
    values = [float(v) for n, (_, _, v) in enumerate(records, 1) if n not in kept_numbers]
    assert sorted(accepted["value"]) == sorted(values)
    years = [int(t.strip()[:4]) for n, (t, _, _) in enumerate(records, 1) if n not in kept_numbers]
    assert all(any(abs(time.year - year) <= 1 for year in years) for time in accepted["time"])


def test_an_empty_record_is_rejected_with_every_reason() -> None:
    rejected = check([*GOOD, (None, None, None)])["rejected_records"]
    reasons = "time is missing; metric is missing; value is missing"
    assert list(rejected["reasons"]) == [reasons]


def test_a_correction_of_a_bad_record_is_not_a_duplicate() -> None:
    result = check([("2024-01-01", "wind", "999"), ("2024-01-01", "wind", "9")])
    assert list(result["accepted_records"]["value"]) == [9.0]
    assert len(result["rejected_records"]) == 1


def test_an_unknown_metric_has_no_range_and_is_reported() -> None:
    result = check([("2024-01-01", "sales", "-1e9")])
    assert len(result["accepted_records"]) == 1
    assert result["quality_report"]["unknown_metrics"] == ["sales"]


def test_gaps_are_found_by_the_step_of_each_metric() -> None:
    hourly = [(f"2024-01-01T{hour:02}:00:00", "temp_max", "1") for hour in (0, 1, 2, 3, 7, 8)]
    gaps = check([*GOOD[:10], *GOOD[13:], *hourly])["time_gaps"]
    found = [
        (gap.metric, str(gap.last_before), str(gap.first_after), gap.missing)
        for gap in gaps.itertuples()
    ]
    assert found == [
        ("temp_max", "2024-01-01 03:00:00+00:00", "2024-01-01 07:00:00+00:00", 3),
        ("wind", "2024-01-10 00:00:00+00:00", "2024-01-14 00:00:00+00:00", 3),
    ]


def test_the_quality_gate_stops_a_record_that_breaks_a_rule() -> None:
    broken = check(GOOD)["accepted_records"]
    broken.loc[0, "value"] = np.inf
    with pytest.raises(DataValidationError):
        check(GOOD, accepted_records_raw=broken)


def accepted(records: list[tuple[str, str, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(records, columns=["time", "metric", "value"]).astype({"value": float})
    return frame.assign(time=pd.to_datetime(frame["time"], utc=True).dt.as_unit("us"))


def nothing(schema: pa.DataFrameSchema) -> pd.DataFrame:
    """What an empty warehouse holds."""
    columns = {name: pd.Series(dtype=str(column.dtype)) for name, column in schema.columns.items()}
    return pd.DataFrame(columns)


def transform(records: list[tuple[str, str, float]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    dataflow = driver.Builder().with_modules(metrics_transform).build()
    inputs = {
        "accepted_records": accepted(records),
        "unfinished_months": nothing(metrics_transform.MONTH_ROW),
        "held_rows": nothing(metrics_transform.METRIC_ROW),
        "held_months": nothing(metrics_transform.MONTH_ROW),
        "metric_dimension": DIMENSION,
        "anomaly_z_threshold": 3.0,
    }
    outputs = ["metric_rows", "month_rows", "recalculated_rows", "recalculated_months"]
    result = dataflow.execute(outputs, inputs=inputs)
    assert result["recalculated_rows"].empty
    assert result["recalculated_months"].empty
    return result["metric_rows"], result["month_rows"]


def daily(metric: str, values: list[float], start: str = "2024-01-01") -> list[Any]:
    days = pd.date_range(start, periods=len(values)).strftime("%Y-%m-%d")
    return list(zip(days, [metric] * len(values), values, strict=True))


def test_rolling_statistics_cover_days_and_separate_metrics() -> None:
    values = [float(day) for day in range(40)]
    rows, _ = transform([*daily("wind", values), *daily("temp_max", [0.0] * 40)])
    wind = rows[rows["metric"] == "wind"].reset_index(drop=True)
    assert wind["rolling_mean_7d"][39] == np.mean(values[33:40])
    assert wind["rolling_mean_30d"][39] == pytest.approx(np.mean(values[10:40]))
    assert wind["rolling_std_30d"][39] == pytest.approx(np.std(values[10:40], ddof=1))
    assert wind["z_score"][:7].isna().all()
    before = values[9:39]
    expected = (39 - np.mean(before)) / np.std(before, ddof=1)
    assert wind["z_score"][39] == pytest.approx(expected)
    assert (rows.loc[rows["metric"] == "temp_max", "rolling_mean_7d"] == 0).all()
    assert set(rows.loc[rows["metric"] == "wind", "unit"]) == {"m/s"}


def test_an_outlier_is_flagged_and_does_not_hide_itself() -> None:
    values = [1.0, 2.0] * 15
    rows, months = transform(daily("wind", [*values, 50.0]))
    assert list(rows.index[rows["is_anomaly"]]) == [30]
    assert list(months["anomalies"]) == [1]


def test_the_largest_accepted_values_have_finite_statistics() -> None:
    values = [metrics_quality.LARGEST_VALUE, -metrics_quality.LARGEST_VALUE]
    rows, months = transform(daily("sales", values * 30))
    assert np.isfinite(rows["rolling_std_30d"][1:]).all()
    assert np.isfinite(months["value"]).all()


def test_equal_values_are_not_anomalies() -> None:
    rows, _ = transform(daily("wind", [0.1] * 40 + [0.1000001]))
    assert not rows["is_anomaly"].any()


def test_months_are_aggregated_and_compared_with_the_month_before() -> None:
    rain = daily("precipitation", [1.0] * 31 + [2.0] * 29)
    heat = daily("temp_max", [10.0] * 31 + [20.0] * 29)
    _, months = transform([*rain, *heat])
    found = {
        (month.metric, str(month.month)[:7]): (month.value, month.change, month.change_percent)
        for month in months.itertuples()
    }
    assert found[("precipitation", "2024-01")][0] == 31.0
    assert found[("precipitation", "2024-02")] == (58.0, 27.0, pytest.approx(100 * 27 / 31))
    assert found[("temp_max", "2024-02")][:2] == (20.0, 10.0)
    assert np.isnan(found[("temp_max", "2024-02")][2])  # 20 °C is not "100 % more"
    assert np.isnan(found[("precipitation", "2024-01")][1])


def test_a_month_without_records_has_no_row_and_no_comparison() -> None:
    _, months = transform([*daily("wind", [1.0] * 3), *daily("wind", [2.0] * 3, "2024-03-01")])
    assert [str(month)[:7] for month in months["month"]] == ["2024-01", "2024-03"]
    assert months["change"].isna().all()
