"""Dataflow that sorts raw records of time, metric and value into accepted and rejected ones.

The rules are Pandera schemas, attached to nodes with Hamilton's ``check_output``. On
`typed_records` and `valid_records` the check is not a gate but data: each failure case becomes the
reason a rejected record is kept with. On `accepted_records` it is the gate: the run fails if a
record that breaks a rule gets that far.

Times without an offset count as UTC. What lies beyond microseconds is cut off.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from hamilton.data_quality.base import ValidationResult
from hamilton.function_modifiers import check_output

EARLIEST_TIME = pd.Timestamp("1900-01-01", tz="UTC")
KEY = ["metric", "time"]
RAW = ["time", "metric", "value"]
# A key of PostgreSQL holds 2,704 bytes; a character takes up to 4.
MAX_METRIC_LENGTH = 255

# Neither database stores NUL; half of a surrogate pair is not even text.
_UNSTORABLE = "[\0\ud800-\udfff]"
# pandas reads `now` and `today` as the time of the run, too.
_STARTS_WITH_YEAR = r"\s*[0-9]{4}"
_NANOSECONDS = r"(\.[0-9]{6})[0-9]+"
# The sum of squares of such values is still a number, of however many.
LARGEST_VALUE = 1e150
BLOCK_SIZE = 100_000  # records whose text is parsed at once


def _rule(reason: str, passes: Any) -> pa.Check:
    """Check whole records; `reason` is what a person reads beside a rejected one."""
    return pa.Check(passes, name=reason, error=reason)


TYPED_RECORD = pa.DataFrameSchema(
    {
        "record_number": pa.Column("int64", unique=True),
        "time": pa.Column("datetime64[us, UTC]", nullable=True),
        "metric": pa.Column("str", nullable=True),
        "value": pa.Column("float64", nullable=True),
    },
    checks=[
        _rule("time is missing", lambda df: df["raw_time"].notna()),
        _rule(
            "time is not an ISO 8601 date or time",
            lambda df: df["time"].notna() | df["raw_time"].isna(),
        ),
        _rule("time is before 1900", lambda df: (df["time"] >= EARLIEST_TIME) | df["time"].isna()),
        _rule(
            "time is in the future",
            lambda df: (df["time"] <= df["latest_time"]) | df["time"].isna(),
        ),
        _rule("metric is missing", lambda df: df["metric"].notna()),
        _rule(
            "metric contains a NUL or half of a surrogate pair",
            lambda df: ~df["metric_is_unstorable"],
        ),
        _rule(
            f"metric is longer than {MAX_METRIC_LENGTH} characters",
            lambda df: ~(df["metric"].str.len() > MAX_METRIC_LENGTH),
        ),
        _rule("value is missing", lambda df: df["raw_value"].notna()),
        _rule("value is not a number", lambda df: df["value"].notna() | df["raw_value"].isna()),
        _rule("value is infinite", lambda df: ~np.isinf(df["value"])),
        _rule(
            "value is too large to calculate with",
            lambda df: ~((df["value"].abs() > LARGEST_VALUE) & np.isfinite(df["value"])),
        ),
        _rule(
            "value is below the metric's minimum",
            lambda df: ~((df["value"] < df["minimum"]) & np.isfinite(df["value"])),
        ),
        _rule(
            "value is above the metric's maximum",
            lambda df: ~((df["value"] > df["maximum"]) & np.isfinite(df["value"])),
        ),
    ],
)

UNIQUE_RECORD = pa.DataFrameSchema(unique=KEY, report_duplicates="exclude_first")
DUPLICATE_REASON = "duplicate of an earlier record"

ACCEPTED_RECORD = pa.DataFrameSchema(
    {
        "time": pa.Column("datetime64[us, UTC]", pa.Check.ge(EARLIEST_TIME)),
        "metric": pa.Column("str", pa.Check.str_length(min_value=1)),
        "value": pa.Column("float64", pa.Check(np.isfinite, name="finite")),
    },
    unique=KEY,
    strict=True,
)


def numbered_records(raw_records: pd.DataFrame) -> pd.DataFrame:
    r"""Raw records (text columns time, metric, value), numbered from 1 in the source's order.

    What cannot be stored, NUL and half of a surrogate pair, is written as in JSON: `\u0000`.
    Then metric_is_unstorable is true.
    """
    numbered = raw_records.reset_index(drop=True)
    unstorable = {column: _is_unstorable(numbered[column]) for column in RAW}
    escaped = {column: _escaped(numbered[column], unstorable[column]) for column in RAW}
    return numbered.assign(
        **escaped,
        metric_is_unstorable=unstorable["metric"],
        record_number=np.arange(1, len(numbered) + 1, dtype="int64"),
    )


@check_output(schema=TYPED_RECORD, importance="warn")
def typed_records(
    numbered_records: pd.DataFrame, metric_dimension: pd.DataFrame, as_of: pd.Timestamp
) -> pd.DataFrame:
    """Time (UTC, microseconds), metric and value as types, beside their text and allowed range.

    A time without an offset counts as UTC. What cannot be read becomes null here; the schema then
    says why. Up to a day after `as_of` a time counts as now, for clocks and time zones differ.
    """
    code, names = numbered_records["metric"].astype("str").factorize()
    metric = pd.Series(names, dtype="str").str.strip()
    metric = metric.where(metric != "")
    limits = metric_dimension.set_index("metric")
    return pd.DataFrame(
        {
            "record_number": numbered_records["record_number"],
            "time": _in_blocks(numbered_records["time"], _time),
            "metric": metric.reindex(code).array,
            "value": _in_blocks(numbered_records["value"], _number),
            "raw_time": numbered_records["time"],
            "raw_value": numbered_records["value"],
            "minimum": metric.map(limits["minimum"]).astype("float64").reindex(code).array,
            "maximum": metric.map(limits["maximum"]).astype("float64").reindex(code).array,
            "metric_is_unstorable": numbered_records["metric_is_unstorable"],
            "latest_time": as_of + pd.Timedelta(days=1),
        }
    )


def invalid_records(
    typed_records_raw: pd.DataFrame, typed_records_pandera_schema_validator: ValidationResult
) -> pd.DataFrame:
    """Columns record_number and reason: one row for each rule that a record breaks."""
    failures = _failed_rows(typed_records_pandera_schema_validator)
    return pd.DataFrame(
        {
            "record_number": typed_records_raw["record_number"].reindex(failures["row"]).to_numpy(),
            "reason": failures["reason"].to_numpy(),
        }
    )


@check_output(schema=UNIQUE_RECORD, importance="warn")
def valid_records(typed_records_raw: pd.DataFrame, invalid_records: pd.DataFrame) -> pd.DataFrame:
    """Keep the records that pass every rule; the same metric and time may occur twice."""
    broken = typed_records_raw["record_number"].isin(invalid_records["record_number"])
    return _without(typed_records_raw[["record_number", "time", "metric", "value"]], broken)


def duplicate_records(
    valid_records_raw: pd.DataFrame, valid_records_pandera_schema_validator: ValidationResult
) -> pd.DataFrame:
    """Columns record_number and reason: every record but the first of its metric and time."""
    rows = _failed_rows(valid_records_pandera_schema_validator)["row"].unique()
    numbers = valid_records_raw["record_number"].reindex(rows).to_numpy()
    return pd.DataFrame({"record_number": numbers, "reason": DUPLICATE_REASON})


def rejection_reasons(
    invalid_records: pd.DataFrame, duplicate_records: pd.DataFrame
) -> pd.DataFrame:
    """Columns record_number and reason for all rejected records; several reasons, several rows."""
    reasons = pd.concat([invalid_records, duplicate_records], ignore_index=True)
    return reasons.astype({"record_number": "int64", "reason": "str"})


def rejected_records(
    numbered_records: pd.DataFrame, rejection_reasons: pd.DataFrame
) -> pd.DataFrame:
    """Rejected records as they came (text), with all their reasons joined by ``; ``."""
    reasons = rejection_reasons.groupby("record_number")["reason"].agg("; ".join)
    columns = ["record_number", "time", "metric", "value"]
    rejected = numbered_records.loc[
        numbered_records["record_number"].isin(reasons.index), columns
    ].rename(columns={"time": "raw_time", "metric": "raw_metric", "value": "raw_value"})
    return rejected.assign(reasons=rejected["record_number"].map(reasons)).reset_index(drop=True)


@check_output(schema=ACCEPTED_RECORD, importance="fail")
def accepted_records(
    valid_records_raw: pd.DataFrame, duplicate_records: pd.DataFrame
) -> pd.DataFrame:
    """Columns time, metric, value of all records that keep every rule, by metric and time."""
    duplicated = valid_records_raw["record_number"].isin(duplicate_records["record_number"])
    accepted = _without(valid_records_raw[["time", "metric", "value"]], duplicated)
    return accepted.sort_values(KEY, ignore_index=True)


def time_gaps(accepted_records: pd.DataFrame) -> pd.DataFrame:
    """Columns metric, last_before, first_after, missing: where a metric's usual step is exceeded.

    The usual step is the median distance of a metric's records; `missing` is how many records
    would fill the gap. At least three records are needed to speak of a step.
    """
    spaced = accepted_records.assign(
        last_before=accepted_records.groupby("metric")["time"].shift(),
    ).rename(columns={"time": "first_after"})
    spaced["distance"] = spaced["first_after"] - spaced["last_before"]
    by_metric = spaced.groupby("metric")["distance"]
    usual = by_metric.transform("median").where(by_metric.transform("count") >= 2)
    steps = spaced["distance"] / usual
    gaps = spaced.assign(missing=(steps.round() - 1))[steps >= 1.5]
    columns = ["metric", "last_before", "first_after", "missing"]
    return gaps[columns].astype({"missing": "int64"}).reset_index(drop=True)


def quality_report(
    numbered_records: pd.DataFrame,
    accepted_records: pd.DataFrame,
    rejected_records: pd.DataFrame,
    rejection_reasons: pd.DataFrame,
    time_gaps: pd.DataFrame,
    metric_dimension: pd.DataFrame,
) -> dict[str, Any]:
    """Count the whole: rows read, accepted, rejected, by reason, missing in time, unknown."""
    known = set(metric_dimension["metric"])
    return {
        "rows_read": len(numbered_records),
        "rows_accepted": len(accepted_records),
        "rows_rejected": len(rejected_records),
        "reasons": {
            str(reason): int(count)
            for reason, count in rejection_reasons["reason"].value_counts().items()
        },
        "gaps": len(time_gaps),
        "missing_in_gaps": int(time_gaps["missing"].sum()),
        "unknown_metrics": sorted(set(accepted_records["metric"].unique()) - known),
    }


def _in_blocks(
    text: "pd.Series[str]", parse: "Callable[[pd.Series[str]], pd.Series[Any]]"
) -> "pd.Series[Any]":
    """Parse text some of it at a time, for pandas makes Python objects of all that it parses."""
    starts = range(0, max(len(text), 1), BLOCK_SIZE)
    parsed: pd.Series[Any] = pd.concat(
        [parse(text.iloc[start : start + BLOCK_SIZE]) for start in starts]
    )
    return parsed


def _time(text: "pd.Series[str]") -> "pd.Series[pd.Timestamp]":
    text = text.where(text.str.match(_STARTS_WITH_YEAR, na=False))
    # One time in nanoseconds would take the range of all down to the years 1677 to 2262.
    text = text.str.replace(_NANOSECONDS, r"\1", regex=True)
    return pd.to_datetime(text, utc=True, errors="coerce", format="ISO8601").dt.as_unit("us")


def _number(text: "pd.Series[str]") -> "pd.Series[float]":
    number: pd.Series[float] = pd.to_numeric(text, errors="coerce").astype("float64")
    return number


def _without(rows: pd.DataFrame, left_out: "pd.Series[bool]") -> pd.DataFrame:
    """Leave rows out; where there are none to leave out, what comes back shares their memory."""
    return rows[~left_out] if left_out.any() else rows


def _is_unstorable(text: "pd.Series[str]") -> "pd.Series[bool]":
    # Arrow keeps no half of a surrogate pair, so there is none to look for, nor can it be.
    arrow = getattr(text.dtype, "storage", None) == "pyarrow"
    return text.str.contains("\0" if arrow else _UNSTORABLE, regex=not arrow, na=False)


def _escaped(text: "pd.Series[str]", unstorable: "pd.Series[bool]") -> "pd.Series[str]":
    def escape(found: re.Match[str]) -> str:
        return f"\\u{ord(found[0]):04x}"

    if not unstorable.any():
        return text
    written = text[unstorable].map(lambda value: re.sub(_UNSTORABLE, escape, value))
    return text.astype("object").where(~unstorable, written).astype("str")


def _failed_rows(result: ValidationResult) -> pd.DataFrame:
    """Columns row (index label) and reason of a Pandera check's failure cases, each pair once."""
    cases = [
        pd.DataFrame(
            {
                "row": error.failure_cases["index"],
                "reason": getattr(error.check, "error", None) or str(error.check),
            }
        )
        for error in result.diagnostics.get("schema_errors", [])
    ]
    if not cases:
        return pd.DataFrame({"row": pd.Series(dtype="int64"), "reason": pd.Series(dtype="str")})
    return pd.concat(cases, ignore_index=True).drop_duplicates(ignore_index=True)
