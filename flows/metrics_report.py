"""Flow `Metrics Quality Report`: what one run of the data pipeline loaded, with a plot.

Its deployment is triggered by the pipeline's completion. It reports once per upstream run: after a
second event, a retry or a repeated call, the existing report is named and none is published.
"""

import base64
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.utilities.urls import url_for

from flows.tables import DEFAULT_TARGET, LOADS, METRICS, MONTHLY, REPORTS
from prefect_hamilton import warehouse
from prefect_hamilton.artifacts import best_effort
from prefect_hamilton.metrics import measure
from prefect_hamilton.warehouse import Target, TargetTable, Warehouse

if TYPE_CHECKING:
    import pandas as pd
    from prefect.client.schemas.objects import State

ARTIFACT_KEY = "metrics-quality-report"
PLOT_INCHES = (9.0, 2.1)  # width, and height of each metric
PLOT_DPI = 80
MAX_PANELS = 8


class ReportError(Exception):
    """There is nothing to report on; the message says what was looked for."""


@flow(name="Metrics Quality Report")
def metrics_quality_report(
    upstream_flow_run_id: UUID | None = None,
    target_table: TargetTable | None = None,
) -> "State[Any]":
    """
    Report on what one run of the data pipeline loaded: quality, months and a plot.

    Args:
        upstream_flow_run_id: Id of the flow run whose load to report on, once. By default, the
            report is on the latest complete load, and can be repeated.
        target_table: The table that was loaded, as catalog.schema.table. Defaults to the table that
        the upstream run loaded, or warehouse.prod.metrics.

    """
    try:
        target = Target.parse(target_table or _target_of(upstream_flow_run_id))
        warehouse.check(warehouse.warehouse_url(), target)
        message = publish_report(target, upstream_flow_run_id)
    except (ReportError, warehouse.WarehouseError) as error:
        return Failed(message=str(error))
    get_run_logger().info(message)
    return Completed(message=message)


def _target_of(upstream_flow_run_id: UUID | None) -> str:
    """Return the table that the upstream run was asked to load."""
    if upstream_flow_run_id is None:
        return DEFAULT_TARGET
    with get_client(sync_client=True) as client:
        try:
            upstream = client.read_flow_run(upstream_flow_run_id)
        except ObjectNotFound:
            raise ReportError(
                f"There is no flow run {upstream_flow_run_id}: pass the id of a run of Enterprise "
                "Data Pipeline, or none for the latest load"
            ) from None
    return str(upstream.parameters.get("target_table") or DEFAULT_TARGET)


@task(name="publish_report", retries=2, retry_delay_seconds=2, cache_policy=NO_CACHE)
def publish_report(target: Target, upstream_flow_run_id: UUID | None) -> str:
    """Publish the report artifact, once per upstream run; returns a sentence on what was done."""
    import pandas as pd

    logger = get_run_logger()
    with (
        measure("publish_report") as metrics,
        warehouse.connect(warehouse.warehouse_url(), on_wait=logger.info) as connection,
    ):
        load = _find_load(connection, target, upstream_flow_run_id)
        upstream = str(load["flow_run_id"])
        with connection.exclusively(f"report on {upstream}"):
            connection.prepare(target, [REPORTS])
            earlier = _read(connection, target, REPORTS, "upstream_flow_run_id = ?", [upstream])
            # Only runs of the trigger are limited to one report; a report on the latest load can be
            # repeated.
            if upstream_flow_run_id is not None and not earlier.empty:
                reporter = earlier["flow_run_id"].iloc[0]
                return f"Flow run {reporter} has already reported on flow run {upstream}"
            rows, months = _loaded(connection, target, load)
            metrics.rows_read = len(rows) + len(months)
            create_markdown_artifact(
                markdown=_markdown(target, load, rows, months),
                key=ARTIFACT_KEY,
                description=f"What {load['flow_run_name']} loaded into {target.shown(METRICS)}",
            )
            report = {
                "upstream_flow_run_id": upstream,
                "flow_run_id": str(flow_run.get_id()),
                "reported_at": datetime.now(UTC).replace(tzinfo=None),
            }
            connection.upsert(target, [(REPORTS, pd.DataFrame([report]))])
    return f"Reported on {len(rows):,} rows that flow run {upstream} loaded"


def _read(
    connection: Warehouse,
    target: Target,
    spec: warehouse.TableSpec,
    condition: str,
    parameters: Sequence[Any],
) -> "pd.DataFrame":
    # The table's name is checked by Target.parse; values go as parameters.
    query = f"SELECT * FROM {target.name(spec)} WHERE {condition}"  # noqa: S608
    return connection.read(query, parameters)


def _find_load(
    connection: Warehouse, target: Target, upstream_flow_run_id: UUID | None
) -> "pd.Series":
    """Return the load log's row of the upstream run, or of the latest complete load."""
    wanted = f"flow run {upstream_flow_run_id}" if upstream_flow_run_id else "any complete flow run"
    if connection.has_table(target, LOADS):
        loads = _read(connection, target, LOADS, "status = ?", ["complete"])
        if upstream_flow_run_id:
            loads = loads[loads["flow_run_id"] == str(upstream_flow_run_id)]
        if not loads.empty:
            return loads.sort_values("finished_at").iloc[-1]
    raise ReportError(
        f"There is no load by {wanted} in {target.shown(LOADS)}: run Enterprise Data Pipeline "
        f"with target_table={target.shown(METRICS)} first"
    )


def _loaded(
    connection: Warehouse, target: Target, load: "pd.Series"
) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Return the rows and months within a load's metrics and times.

    A later run may have written some of them again, so the load's extent counts, not who wrote a
    row last.
    """
    metrics = json.loads(load["metrics"])
    first, last = load["first_time"].to_pydatetime(), load["last_time"].to_pydatetime()
    named = f"metric IN ({', '.join(['?'] * len(metrics))})"
    rows = _read(
        connection,
        target,
        METRICS,
        f"{named} AND time BETWEEN ? AND ? ORDER BY metric, time",
        [*metrics, first, last],
    )
    month = first.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    months = _read(
        connection,
        target,
        MONTHLY,
        f"{named} AND month BETWEEN ? AND ? ORDER BY metric, month",
        [*metrics, month, last],
    )
    return rows, months


def _markdown(
    target: Target, load: "pd.Series", rows: "pd.DataFrame", months: "pd.DataFrame"
) -> str:
    quality = json.loads(load["quality"])
    run_url = url_for("flow-run", obj_id=load["flow_run_id"])
    run = f"[{load['flow_run_name']}]({run_url})" if run_url else load["flow_run_name"]
    png = _plot(rows)
    picture = (
        f"![Metrics with their 30-day mean and anomalies](data:image/png;base64,"
        f"{base64.b64encode(png).decode('ascii')})"
        if png
        else "The plot could not be drawn: the flow run's log says why."
    )
    reasons = [f"| {reason} | {count:,} |" for reason, count in quality["reasons"].items()] or [
        "| none | 0 |"
    ]
    seconds = (load["finished_at"] - load["started_at"]).total_seconds()
    lines = [
        f"# Quality of {target.shown(METRICS)}",
        "",
        f"Flow run {run} loaded {load['rows_written']:,} rows and {load['months_written']:,} "
        f"months from {load['source']} in {seconds:.1f} s, finished "
        f"{load['finished_at']:%Y-%m-%d %H:%M} UTC.",
        "",
        "| Records read | Accepted | Rejected | Gaps in time | Missing in gaps | Anomalies |",
        "|--:|--:|--:|--:|--:|--:|",
        f"| {quality['rows_read']:,} | {quality['rows_accepted']:,} "
        f"| {quality['rows_rejected']:,} | {quality['gaps']:,} "
        f"| {quality['missing_in_gaps']:,} | {int(rows['is_anomaly'].sum()):,} |",
        "",
        picture,
        "",
        "## Latest month",
        "",
        "| Metric | Month | Value | Change | Change in % | Anomalies |",
        "|---|---|--:|--:|--:|--:|",
        *(_month_line(month) for _, month in months.groupby("metric").tail(1).iterrows()),
        "",
        "## Rejected records",
        "",
        "| Reason | Records |",
        "|---|--:|",
        *reasons,
    ]
    return "\n".join(lines)


def _month_line(month: "pd.Series") -> str:
    import pandas as pd

    unit = f" {month['unit']}" if isinstance(month["unit"], str) else ""
    change = "" if pd.isna(month["change"]) else f"{month['change']:+,.2f}"
    percent = "" if pd.isna(month["change_percent"]) else f"{month['change_percent']:+,.1f}"
    metric = str(month["metric"]).replace("|", "\\|").replace("\n", " ")
    return (
        f"| {metric} | {month['month']:%Y-%m} | {month['value']:,.2f}{unit} | {change} "
        f"| {percent} | {month['anomalies']:,} |"
    )


@best_effort("the plot")
def _plot(rows: "pd.DataFrame") -> bytes:
    """Draw each metric with its 30-day mean and anomalies; returns a PNG.

    At most MAX_PANELS metrics, those with the most anomalies first.
    """
    # Figure without pyplot: no display, no global state, safe in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    anomalies = rows.groupby("metric")["is_anomaly"].sum().sort_values(ascending=False)
    metrics = list(anomalies.index[:MAX_PANELS])
    width, height = PLOT_INCHES
    figure = Figure(figsize=(width, height * len(metrics)), dpi=PLOT_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    for panel, metric in zip(panels, metrics, strict=True):
        part = rows[rows["metric"] == metric]
        odd = part[part["is_anomaly"].astype("bool")]
        unit = part["unit"].iloc[0]
        panel.plot(part["time"], part["value"], color="#9bb8d3", linewidth=0.6, label="value")
        panel.plot(part["time"], part["rolling_mean_30d"], color="#1f4e79", label="30-day mean")
        panel.scatter(odd["time"], odd["value"], color="#c0392b", s=12, zorder=3, label="anomaly")
        # "$" would start a formula.
        panel.set_title(str(metric).replace("$", r"\$"), loc="left", fontsize=10)
        panel.set_ylabel(unit if isinstance(unit, str) else "")
    # Above the first panel, where it hides no value.
    panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
