"""What a run of the data pipeline reports: its summary, as artifacts and in a sentence."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from flows import tables
from flows.metrics_load import Transformed
from prefect_hamilton import warehouse
from prefect_hamilton.artifacts import (
    best_effort,
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect_hamilton.warehouse import Target

if TYPE_CHECKING:
    import pandas as pd

PREVIEW_ROWS = 20


class LoadSummary(BaseModel):
    """What a run did, in numbers of records and rows."""

    source: str
    target_table: str
    rows_read: int
    rows_rejected: int
    rows_written: int
    months_written: int
    anomalies: int
    gaps: int


@dataclass(frozen=True)
class Checked:
    """Outcome of the quality dataflow; see `flows.dataflows.metrics_quality`."""

    accepted: "pd.DataFrame"
    rejected: "pd.DataFrame"
    gaps: "pd.DataFrame"
    report: dict[str, Any]


def kept(rejected: int, target: Target) -> str:
    """Return where the rejected records are, and how many are not there."""
    table = target.shown(tables.QUARANTINE)
    if rejected <= tables.QUARANTINE_LIMIT:
        return f"the rejected records are in {table}"
    more = rejected - tables.QUARANTINE_LIMIT
    return f"the first {tables.QUARANTINE_LIMIT:,} are in {table}, {more:,} more were not kept"


@best_effort("its summary")
def publish(
    summary: LoadSummary, checked: Checked, transformed: Transformed, target: Target
) -> None:
    """Publish a preview, a summary and a link."""
    latest = _latest(transformed.metrics)
    create_table_artifact(
        table=json.loads(latest.to_json(orient="records", date_format="iso", double_precision=3)),
        key="pipeline-preview",
        description=f"The latest {len(latest)} rows of {summary.target_table}",
    )
    markdown = f"""# {summary.target_table}

{in_short(summary)}

| | |
|---|---:|
| Records read | {summary.rows_read:,} |
| Records rejected | {summary.rows_rejected:,} |
| Rows written | {summary.rows_written:,} |
| Months written | {summary.months_written:,} |
| Anomalies | {summary.anomalies:,} |

## Metrics

{_metrics_markdown(transformed.metrics)}

{_quality_markdown(checked, target)}"""
    create_markdown_artifact(
        markdown=markdown, key="pipeline-summary", description=f"Loaded {summary.target_table}"
    )
    address = warehouse.describe(warehouse.warehouse_url())
    create_link_artifact(
        link=transformed.run_url or address,
        link_text=(
            "Run in the Hamilton UI"
            if transformed.run_url
            else f"{summary.target_table} in {address}"
        ),
        key="pipeline-link",
        description=f"Where {summary.target_table} came to be: {address}",
    )


def publish_rejection(checked: Checked, source: str, target: Target) -> None:
    """Publish the quality report of a source that is rejected as a whole."""
    create_markdown_artifact(
        markdown=_quality_markdown(checked, target),
        key="pipeline-summary",
        description=f"Rejected: {source}",
    )


def _latest(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return the last rows by time and metric, without sorting a copy of all."""
    times = rows["time"].nlargest(PREVIEW_ROWS)
    latest: pd.DataFrame = rows[rows["time"] >= times.min()].sort_values(["time", "metric"])
    return latest.tail(PREVIEW_ROWS)


def _metrics_markdown(rows: "pd.DataFrame") -> str:
    lines = [
        "| Metric | Unit | From | To | Rows | Mean | Anomalies |",
        "|---|---|---|---|--:|--:|--:|",
    ]
    for metric, part in rows.groupby("metric"):
        unit = part["unit"].iloc[0]
        lines.append(
            f"| {_cell(metric)} | {unit if isinstance(unit, str) else ''} "
            f"| {part['time'].min():%Y-%m-%d} | {part['time'].max():%Y-%m-%d} | {len(part):,} "
            f"| {part['value'].mean():,.2f} | {int(part['is_anomaly'].sum()):,} |"
        )
    return "\n".join(lines)


def _quality_markdown(checked: Checked, target: Target) -> str:
    """Return the quality report: what was rejected and why, and where time has holes."""
    report = checked.report
    lines = ["## Data quality", ""]
    if report["rows_rejected"]:
        share = report["rows_rejected"] / report["rows_read"]
        lines += [
            f"{report['rows_rejected']:,} of {report['rows_read']:,} records ({share:.1%}) were "
            f"rejected; {kept(report['rows_rejected'], target)}.",
            "",
            "| Reason | Records |",
            "|---|--:|",
            *(f"| {reason} | {count:,} |" for reason, count in report["reasons"].items()),
        ]
    else:
        lines.append(f"All {report['rows_read']:,} records satisfy every rule.")
    lines.append("")
    if report["gaps"]:
        lines += [
            f"{report['gaps']:,} gaps in time, {report['missing_in_gaps']:,} records missing in "
            "them; the longest:",
            "",
            "| Metric | Last before | First after | Missing |",
            "|---|---|---|--:|",
        ]
        longest = checked.gaps.sort_values("missing", ascending=False).head(10)
        lines += [
            f"| {_cell(gap.metric)} | {gap.last_before:%Y-%m-%d %H:%M} "
            f"| {gap.first_after:%Y-%m-%d %H:%M} | {gap.missing:,} |"
            for gap in longest.itertuples()
        ]
    else:
        lines.append("No gaps in time.")
    if report["unknown_metrics"]:
        names = ", ".join(_cell(name) for name in report["unknown_metrics"])
        lines += [
            "",
            "These metrics have no unit and no range check, because they are not in the metric "
            f"dimension: {names}.",
        ]
    return "\n".join(lines)


def in_short(summary: LoadSummary) -> str:
    """Return the summary as one sentence without a full stop."""
    return (
        f"{summary.rows_read:,} records read from {summary.source}, "
        f"{summary.rows_rejected:,} rejected, {summary.rows_written:,} rows and "
        f"{summary.months_written:,} months written to {summary.target_table}, "
        f"{summary.anomalies:,} anomalies, {summary.gaps:,} gaps in time"
    )


def _cell(value: object) -> str:
    """Return text from the data that cannot break a markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
