"""Flow `Enterprise Data Pipeline`: extract, check, transform and load time series of metrics.

    python flows/data_pipeline.py --help

The flow runs on a Prefect server, or on a temporary one if none is configured.
"""

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Failed
from prefect.variables import Variable
from pydantic import Field

from flows import extract, memory, metrics_load, pipeline_report, tables, write_slot
from flows.limits import DEFAULT_MEGABYTES, DEFAULT_SECONDS, Limits
from flows.metrics_load import LARGEST_BATCH, Held, Transformed
from flows.pipeline_report import Checked, LoadSummary
from flows.tables import DEFAULT_TARGET
from prefect_hamilton import command_line, dataflow, warehouse
from prefect_hamilton.artifacts import create_progress_artifact, update_progress_artifact
from prefect_hamilton.metrics import measure
from prefect_hamilton.warehouse import Target, TargetTable

if TYPE_CHECKING:
    import pandas as pd
    from prefect.client.schemas.objects import State, TaskRun

DEFAULT_SOURCE = "sample:seattle-weather"
PROGRESS_INTERVAL = 1.0  # seconds between two updates of the progress artifact
DIMENSION_FILE = Path(__file__).parent / "data" / "metric_dimension.csv"


class DataQualityError(Exception):
    """Too many records were rejected; the message holds the counts."""


class SettingError(Exception):
    """A Prefect variable has an invalid value."""


def _may_pass(_task: Any, _run: Any, state: "State[Any]") -> bool:
    """Retry errors that may be temporary, not a conflicting table."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, warehouse.TableConflictError)


def _may_recover(_task: Any, _run: "TaskRun", state: "State[Any]") -> bool:
    """Retry errors that may be temporary, not definite answers of the source; see `extract`."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, extract.ExtractError) or error.retry


@task(
    name="extract_metrics",
    retries=3,
    retry_delay_seconds=2,
    retry_condition_fn=_may_recover,
    cache_policy=NO_CACHE,
)
def extract_metrics(source_url: str, limits: Limits) -> "pd.DataFrame | State[pd.DataFrame]":
    """
    Read the source's records as text: columns time, metric, value.

    A source that cannot be reached is tried four times. One that answers with something definite,
    such as 404, other columns or no records, is read once. A URL that nothing can read, such as
    `invalid://url`, is tried four times as well, only to show what retries look like.
    """
    try:
        with measure("extract_metrics") as metrics:
            records = extract.read_records(source_url, limits)
            metrics.rows_read = len(records)
    except extract.ExtractError as error:
        # The cause in one line as the state's message, without a traceback.
        return Failed(message=str(error), data=error)
    get_run_logger().info("Read %s records from %s", f"{len(records):,}", _shown(source_url))
    return records


@task(name="validate_metrics", cache_policy=NO_CACHE)
def validate_metrics(raw_records: "pd.DataFrame") -> Checked:
    """Sort the records into accepted and rejected ones, and find gaps in time."""
    import pandas as pd

    from flows.dataflows import metrics_quality

    outputs = ["accepted_records", "rejected_records", "time_gaps", "quality_report"]
    with measure("validate_metrics") as metrics:
        inputs = {
            "raw_records": raw_records,
            "metric_dimension": _dimension(),
            "as_of": pd.Timestamp(datetime.now(UTC)),
        }
        run = dataflow.execute(metrics_quality, outputs, inputs=inputs, name="metrics-quality")
        checked = Checked(*(run[output] for output in outputs))
        metrics.rows_read = checked.report["rows_read"]
        metrics.rows_rejected = checked.report["rows_rejected"]
    get_run_logger().info(
        "Accepted %s records, rejected %s; %s gaps in time",
        f"{len(checked.accepted):,}",
        f"{len(checked.rejected):,}",
        f"{len(checked.gaps):,}",
    )
    return checked


@task(
    name="quarantine_rejected",
    retries=2,
    retry_delay_seconds=2,
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,
)
def quarantine_rejected(rejected: "pd.DataFrame", source: str, target: Target) -> None:
    """Keep rejected records, as they came, with the reasons; the same one again changes nothing.

    Of a source with more than QUARANTINE_LIMIT of them, the first.
    """
    logger = get_run_logger()
    with measure("quarantine_rejected") as metrics:
        kept = rejected.head(tables.QUARANTINE_LIMIT)
        rows = kept.assign(
            record_id=_record_ids(kept, source),
            source=source,
            flow_run_id=_flow_run_id(),
            rejected_at=metrics_load.utc_now(),
        )
        with write_slot.writing(enterprise_data_pipeline.name, logger.info) as connection:
            connection.prepare(target, [tables.QUARANTINE])
            connection.upsert(target, [(tables.QUARANTINE, rows)])
        metrics.rows_read = metrics.rows_rejected = len(rejected)
        metrics.rows_written = len(rows)
    logger.warning(
        "Rejected %s records; %s", f"{len(rejected):,}", pipeline_report.kept(len(rejected), target)
    )


@task(name="transform_metrics", cache_policy=NO_CACHE)
def transform_metrics(
    accepted: "pd.DataFrame", held: Held, anomaly_z_threshold: float
) -> Transformed:
    """Turn accepted records into warehouse rows: one per record, and one per metric and month.

    Statistics and months are those of all records, the held ones included; so rows and months that
    are held already may change too.
    """
    from flows.dataflows import metrics_transform

    outputs = ["metric_rows", "month_rows", "recalculated_rows", "recalculated_months"]
    with measure("transform_metrics") as metrics:
        inputs = {
            "accepted_records": accepted,
            "held_rows": held.rows,
            "held_months": held.months,
            "unfinished_months": held.unfinished_months,
            "metric_dimension": _dimension(),
            "anomaly_z_threshold": anomaly_z_threshold,
        }
        run = dataflow.execute(metrics_transform, outputs, inputs=inputs, name="metrics-transform")
        metrics.rows_read = len(accepted)
    rows, months = run["metric_rows"], run["month_rows"]
    get_run_logger().info(
        "Found %s anomalies in %s records, %s months of %s metrics",
        f"{int(rows['is_anomaly'].sum()):,}",
        f"{len(rows):,}",
        f"{len(months):,}",
        rows["metric"].nunique(),
    )
    return Transformed(
        metrics=rows,
        months=months,
        recalculated=run["recalculated_rows"],
        recalculated_months=run["recalculated_months"],
        run_url=run.url,
    )


@task(
    name="load_metrics",
    retries=2,
    retry_delay_seconds=2,
    retry_condition_fn=_may_pass,
    cache_policy=NO_CACHE,
)
def load_metrics(
    checked: Checked, source: str, target: Target, batch_size: int, anomaly_z_threshold: float
) -> Transformed:
    """Transform the accepted records, with what the warehouse holds around them, and upsert all.

    Nobody else loads the target in between. A transaction holds whole batches and this run's load
    log. Whatever stops it, running it again leaves every row there once, and so does the run of
    another source: it calculates again what this one left half-way.
    """
    logger = get_run_logger()
    progress = create_progress_artifact(
        progress=0.0,
        key="pipeline-load-progress",
        description=f"Rows loaded into {target.shown(tables.METRICS)}",
    )
    with (
        measure("load_metrics") as metrics,
        write_slot.writing(enterprise_data_pipeline.name, logger.info) as connection,
        metrics_load.exclusively(connection, target),
    ):
        connection.prepare(target, [tables.METRICS, tables.MONTHLY, tables.LOADS])
        held = metrics_load.read_held(connection, target, checked.accepted)
        memory.give_back()
        metrics.rows_read = len(checked.accepted) + held.rows_read
        transformed = transform_metrics(checked.accepted, held, anomaly_z_threshold)
        memory.give_back()
        log = _load_log(checked, transformed, source)
        updated = -math.inf
        for written, rows in metrics_load.write(
            connection, target, transformed, held.unfinished, log, batch_size
        ):
            metrics.rows_written = written
            if written == rows or time.monotonic() - updated >= PROGRESS_INTERVAL:
                update_progress_artifact(cast(UUID, progress), 100 * written / rows)
                updated = time.monotonic()
    logger.info(
        "Loaded %s rows and %s months into %s; %s rows and %s months around them are recalculated",
        f"{len(transformed.metrics):,}",
        f"{len(transformed.months):,}",
        target.shown(tables.METRICS),
        f"{len(transformed.recalculated):,}",
        f"{len(transformed.recalculated_months):,}",
    )
    return transformed


def _load_log(checked: Checked, transformed: Transformed, source: str) -> dict[str, Any]:
    """Return the load log's row of this run, nothing written yet."""
    import pandas as pd

    return {
        "flow_run_id": _flow_run_id(),
        "flow_run_name": flow_run.get_name(),
        "source": source,
        "status": "loading",
        "started_at": metrics_load.utc_now(),
        "finished_at": pd.NaT,
        "rows_read": checked.report["rows_read"],
        "rows_rejected": checked.report["rows_rejected"],
        "rows_written": 0,
        "months_written": 0,
        "metrics": json.dumps(sorted(transformed.metrics["metric"].unique())),
        "first_time": transformed.metrics["time"].min(),
        "last_time": transformed.metrics["time"].max(),
        "quality": json.dumps(checked.report),
    }


@flow(name="Enterprise Data Pipeline")
def enterprise_data_pipeline(
    source_url: Annotated[str, Field(min_length=1)] = DEFAULT_SOURCE,
    batch_size: Annotated[int, Field(ge=1, le=LARGEST_BATCH)] = 500,
    target_table: TargetTable = DEFAULT_TARGET,
    source_timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = DEFAULT_SECONDS,
    source_max_megabytes: Annotated[int, Field(ge=1, le=100_000)] = DEFAULT_MEGABYTES,
) -> "LoadSummary | State[LoadSummary]":
    """
    Load time series of metrics into the warehouse, after checking and enriching them.

    Records of time, metric and value are read, checked (bad ones go to a quarantine table with the
    reason), enriched with rolling statistics and anomaly flags, aggregated by month, and upserted:
    a run that is retried, repeated or killed never duplicates or loses a row.

    Args:
        source_url: URL of the records. `sample:seattle-weather` is the data set in this project.
            Other sources are `file:///`, `http(s)://`, `s3://`, `gs://` or `az://` URLs of CSV,
            JSON (pages are followed), JSON Lines or Parquet with the columns time, metric and
            value. Times are in ISO 8601; a time without an offset is in UTC.
        batch_size: Number of rows per transaction. A load of more than 100 batches writes several
            batches per transaction: about 100 transactions of at most 100,000 rows.
        target_table: The table to load, as catalog.schema.table. The catalog is the warehouse's
        database. Its companions have the suffixes `_monthly`, `_quarantine` and `_loads`.
        source_timeout_seconds: Maximum time to read a source over the network with all its pages,
            in seconds. If it takes longer, the run fails.
        source_max_megabytes: Maximum size of the source with all its pages in megabytes, both
            compressed and decompressed. If it is larger, the run fails. The run needs a multiple of
            it as memory.

    """
    logger = get_run_logger()
    source = _shown(source_url)
    memory.share()
    try:
        target = Target.parse(target_table)
        warehouse.check(warehouse.warehouse_url(), target)
        max_rejected_ratio = _setting("max_rejected_ratio", 0.05, at_most=1.0)
        anomaly_z_threshold = _setting("anomaly_z_threshold", 3.0)

        limits = Limits(source_timeout_seconds, source_max_megabytes)
        extracted = extract_metrics(source_url, limits, return_state=True)
        checked = validate_metrics(_taken(extracted))
        memory.give_back()
        if len(checked.rejected):
            quarantine_rejected(checked.rejected, source, target)
        _require_quality(checked, source, target, max_rejected_ratio)
        transformed = load_metrics(checked, source, target, batch_size, anomaly_z_threshold)
    except (
        extract.ExtractError,
        warehouse.WarehouseError,
        DataQualityError,
        SettingError,
    ) as error:
        # The cause in one line as the state's message; a traceback would say nothing more.
        return Failed(message=str(error))

    summary = LoadSummary(
        source=source,
        target_table=target_table,
        rows_read=checked.report["rows_read"],
        rows_rejected=checked.report["rows_rejected"],
        rows_written=len(transformed.metrics),
        months_written=len(transformed.months),
        anomalies=int(transformed.metrics["is_anomaly"].sum()),
        gaps=checked.report["gaps"],
    )
    pipeline_report.publish(summary, checked, transformed, target)
    logger.info("Done: %s", pipeline_report.in_short(summary))
    return summary


def _taken(extracted: "State[Any]") -> "pd.DataFrame":
    """Return the result of a state, which no longer holds it.

    Timers that Prefect starts in a task run keep its state for minutes, and so the raw records,
    which take more memory than the rows that they become.
    """
    records = cast("pd.DataFrame", extracted.result())
    extracted.data = None
    return records


def _require_quality(
    checked: Checked, source: str, target: Target, max_rejected_ratio: float
) -> None:
    report = checked.report
    ratio = report["rows_rejected"] / report["rows_read"]
    if ratio <= max_rejected_ratio and report["rows_accepted"]:
        return
    pipeline_report.publish_rejection(checked, source, target)
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report["reasons"].items())
    raise DataQualityError(
        f"Rejected {report['rows_rejected']:,} of {report['rows_read']:,} records "
        f"({ratio:.1%}; the maximum is {max_rejected_ratio:.1%}): {reasons}. Nothing was loaded; "
        f"{pipeline_report.kept(report['rows_rejected'], target)}"
    )


def _shown(source_url: str) -> str:
    return extract.public_url(source_url)


def _dimension() -> "pd.DataFrame":
    import pandas as pd

    return pd.read_csv(DIMENSION_FILE)


def _setting(name: str, default: float, *, at_most: float = math.inf) -> float:
    """Read a number from a Prefect variable; not negative, and `at_most` at most."""
    value = Variable.get(name, default=default)
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not 0 <= number <= at_most:
        bound = f" up to {at_most:g}" if at_most < math.inf else ""
        raise SettingError(
            f"The Prefect variable {name} is {value!r}: set it to a number from 0{bound}, "
            f"or delete it for the default, {default:g}"
        )
    return number


def _record_ids(rejected: "pd.DataFrame", source: str) -> list[str]:
    """Identify records by source, content and, among equals, count: the same in every run."""
    content = ["raw_time", "raw_metric", "raw_value"]
    equals = rejected.groupby(content, dropna=False).cumcount()
    texts = rejected[content].fillna("\0").astype("str").agg("\x1f".join, axis="columns")
    return [
        hashlib.sha256(f"{source}\x1f{text}\x1f{count}".encode()).hexdigest()
        for text, count in zip(texts, equals, strict=True)
    ]


def _flow_run_id() -> str:
    return str(flow_run.get_id())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow once from the command line; returns the exit code."""
    return command_line.run(enterprise_data_pipeline, pipeline_report.in_short, arguments)


if __name__ == "__main__":
    # On the command line, the warehouse defaults to the DuckDB file of the local profile.
    os.environ.setdefault(warehouse.STATE_VARIABLE, str(Path(__file__).parents[1] / ".state"))
    sys.exit(main())
