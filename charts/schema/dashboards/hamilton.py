"""The dashboard of dataflows and of the Hamilton UI."""

from __future__ import annotations

from charts.schema.dashboards.model import Dashboard, Panel, Query, Section, Variable
from charts.schema.dashboards.promql import FLOW, NAMESPACE, count, increase, quantile, rate

UI_DEPLOYMENT = f'{NAMESPACE},deployment=~".*-ui"'
UI_POD = f'{NAMESPACE},pod=~".*-ui-.*",pod!~".*-ui-retention-.*",container!=""'
RETENTION = f'{NAMESPACE},cronjob=~".*-ui-retention"'
REQUESTS = "hamilton_ui_request_duration_seconds"


def _seconds(share: float) -> Query:
    expr = quantile(share, "flows_task_seconds", FLOW, "flow, task")
    return Query(expr, f"p{round(100 * share)} {{{{flow}}}} {{{{task}}}}")


def _rejected() -> Query:
    rejected = count("flows_task_rows_rejected_total", FLOW, "flow, task")
    read = count("flows_task_rows_read_total", FLOW, "flow, task")
    return Query(f"topk(10, {rejected} / ({read} > 0))", "{{flow}} {{task}}")


TASKS = Section(
    "Tasks with dataflows",
    (
        Panel(
            "Flow runs that are not tracked",
            "stat",
            "short",
            12,
            "Flow runs of this time whose dataflows are not in the Hamilton UI, or only in part,"
            " because it did not answer. Their results are not affected.",
            (Query(count("flows_tracking_failures_total", FLOW) + " or vector(0)", "flow runs"),),
            red=("from", 1),
        ),
        Panel(
            "Measured tasks",
            "stat",
            "short",
            12,
            "Task runs of this time with numbers from `prefect_hamilton.metrics.measure`.",
            (Query(count("flows_task_seconds_count", FLOW) + " or vector(0)", "task runs"),),
        ),
        Panel(
            "Duration of measured tasks",
            "timeseries",
            "s",
            24,
            "Median and 95th percentile.",
            (_seconds(0.5), _seconds(0.95)),
        ),
        Panel(
            "Failures to track",
            "timeseries",
            "short",
            12,
            "Flow runs that stopped to send their dataflows to the Hamilton UI, by flow.",
            (Query(increase("flows_tracking_failures_total", FLOW, "flow"), "{{flow}}"),),
        ),
        Panel(
            "Share of rejected rows",
            "bargauge",
            "percentunit",
            12,
            "The ten tasks that rejected the largest share of the rows that they read.",
            (_rejected(),),
        ),
    ),
)

UI = Section(
    "Hamilton UI",
    (
        Panel(
            "Pods",
            "stat",
            "short",
            6,
            "Pods of the Hamilton UI that are available.",
            (
                Query(
                    "sum by (deployment) (kube_deployment_status_replicas_available"
                    f"{{{UI_DEPLOYMENT}}})",
                    "{{deployment}}",
                ),
            ),
            source="kube-state-metrics",
            red=("below", 1),
        ),
        Panel(
            "Time since the last retention",
            "stat",
            "s",
            6,
            "Time since the CronJob that deletes old runs last succeeded.",
            (
                Query(
                    "time() - max by (cronjob) (kube_cronjob_status_last_successful_time"
                    f"{{{RETENTION}}})",
                    "{{cronjob}}",
                ),
            ),
            source="kube-state-metrics",
        ),
        Panel(
            "Restarts of the Hamilton UI",
            "stat",
            "short",
            6,
            "Restarts in this time.",
            (
                Query(
                    count("kube_pod_container_status_restarts_total", UI_POD),
                    "restarts",
                ),
            ),
            source="kube-state-metrics",
            red=("from", 1),
        ),
        Panel(
            "Database",
            "stat",
            "bytes",
            6,
            "Size of the database of the Hamilton UI, whose name contains `hamilton`.",
            (
                Query(
                    "sum by (datname) (pg_database_size_bytes"
                    f'{{{NAMESPACE},datname=~".*hamilton.*"}})',
                    "{{datname}}",
                ),
            ),
            source="postgres",
        ),
        Panel(
            "Requests by status",
            "timeseries",
            "ops",
            12,
            "Requests of flow pods and browsers in a second. 5xx are errors of the Hamilton UI; it"
            " also answers so while its database is away.",
            (Query(rate(f"{REQUESTS}_count", NAMESPACE, "status"), "{{status}}"),),
            source="hamilton-ui",
        ),
        Panel(
            "Slowest requests",
            "timeseries",
            "s",
            12,
            "95th percentile of the ten routes that take the longest, by route.",
            (
                Query(
                    f"topk(10, {quantile(0.95, REQUESTS, NAMESPACE, 'route')})",
                    "{{route}}",
                ),
            ),
            source="hamilton-ui",
        ),
        Panel(
            "Stored runs",
            "timeseries",
            "short",
            12,
            "Runs in the database, by status.",
            (
                Query(
                    f"sum by (status) (max by (namespace, project, status) "
                    f"(hamilton_ui_runs{{{NAMESPACE}}}))",
                    "{{status}}",
                ),
            ),
            source="hamilton-ui",
        ),
        Panel(
            "Age of the oldest run",
            "timeseries",
            "s",
            12,
            "Time since the oldest run in the database was created, by status. More than the"
            " retention allows: it deletes no runs, or marks none as failed that stay RUNNING.",
            (
                Query(
                    "time() - min by (status) (hamilton_ui_oldest_run_timestamp_seconds"
                    f"{{{NAMESPACE}}})",
                    "{{status}}",
                ),
            ),
            source="hamilton-ui",
        ),
        Panel(
            "CPU of the Hamilton UI",
            "timeseries",
            "short",
            12,
            "Cores that each pod uses.",
            (Query(rate("container_cpu_usage_seconds_total", UI_POD, "pod"), "{{pod}}"),),
            source="kubelet",
        ),
        Panel(
            "Memory of the Hamilton UI",
            "timeseries",
            "bytes",
            12,
            "Memory that each pod uses.",
            (
                Query(
                    f"sum by (pod) (container_memory_working_set_bytes{{{UI_POD}}})",
                    "{{pod}}",
                ),
            ),
            source="kubelet",
        ),
        Panel(
            "Use of the volume",
            "timeseries",
            "percentunit",
            24,
            "Used share of the volume with the results that the Hamilton UI keeps as files.",
            (
                Query(
                    "max by (persistentvolumeclaim) (kubelet_volume_stats_used_bytes"
                    f'{{{NAMESPACE},persistentvolumeclaim=~".*-hamilton-ui"}} /'
                    f" kubelet_volume_stats_capacity_bytes{{{NAMESPACE}}})",
                    "{{persistentvolumeclaim}}",
                ),
            ),
            source="kubelet",
        ),
    ),
)

HAMILTON = Dashboard(
    uid="prefect-hamilton",
    title="Prefect: Hamilton",
    description="Tasks that execute dataflows, and the Hamilton UI.",
    variables=(
        Variable("namespace", "prefect_metrics_up"),
        Variable("flow", "prefect_flow_run_transitions_total"),
    ),
    sections=(TASKS, UI),
)
