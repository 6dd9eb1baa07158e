"""Tables of the data pipeline.

Beside a target table stand its companions: `<table>_monthly` (one row per metric and month),
`<table>_quarantine` (rejected records and why), `<table>_loads` (which flow run loaded what) and
`<table>_reports`. Times are UTC, without a zone.
"""

from types import MappingProxyType

from prefect_hamilton.warehouse import TableSpec

DEFAULT_TARGET = "warehouse.prod.metrics"
# Maximum number of rejected records per run that are kept: enough to see the fault of a source.
QUARANTINE_LIMIT = 10_000


def _spec(suffix: str, key: tuple[str, ...], columns: dict[str, str]) -> TableSpec:
    return TableSpec(suffix=suffix, columns=MappingProxyType(columns), key=key)


METRICS = _spec(
    "",
    ("metric", "time"),
    {
        "metric": "TEXT",
        "time": "TIMESTAMP",
        "value": "DOUBLE PRECISION",
        "unit": "TEXT",
        "station": "TEXT",
        "rolling_mean_7d": "DOUBLE PRECISION",
        "rolling_mean_30d": "DOUBLE PRECISION",
        "rolling_std_30d": "DOUBLE PRECISION",
        "z_score": "DOUBLE PRECISION",
        "is_anomaly": "BOOLEAN",
        "flow_run_id": "TEXT",
    },
)
MONTHLY = _spec(
    "_monthly",
    ("metric", "month"),
    {
        "metric": "TEXT",
        "month": "TIMESTAMP",
        "unit": "TEXT",
        "aggregation": "TEXT",
        "value": "DOUBLE PRECISION",
        "minimum": "DOUBLE PRECISION",
        "maximum": "DOUBLE PRECISION",
        "observations": "BIGINT",
        "anomalies": "BIGINT",
        "change": "DOUBLE PRECISION",
        "change_percent": "DOUBLE PRECISION",
        "flow_run_id": "TEXT",
    },
)
QUARANTINE = _spec(
    "_quarantine",
    ("record_id",),
    {
        "record_id": "TEXT",
        "source": "TEXT",
        "record_number": "BIGINT",
        "raw_time": "TEXT",
        "raw_metric": "TEXT",
        "raw_value": "TEXT",
        "reasons": "TEXT",
        "flow_run_id": "TEXT",
        "rejected_at": "TIMESTAMP",
    },
)
LOADS = _spec(
    "_loads",
    ("flow_run_id",),
    {
        "flow_run_id": "TEXT",
        "flow_run_name": "TEXT",
        "source": "TEXT",
        "status": "TEXT",
        "started_at": "TIMESTAMP",
        "finished_at": "TIMESTAMP",
        "rows_read": "BIGINT",
        "rows_rejected": "BIGINT",
        "rows_written": "BIGINT",
        "months_written": "BIGINT",
        "metrics": "TEXT",
        "first_time": "TIMESTAMP",
        "last_time": "TIMESTAMP",
        "quality": "TEXT",
    },
)
REPORTS = _spec(
    "_reports",
    ("upstream_flow_run_id",),
    {
        "upstream_flow_run_id": "TEXT",
        "flow_run_id": "TEXT",
        "reported_at": "TIMESTAMP",
    },
)
