"""Names of metrics that dashboards and alerts may use: what is really exported, by source."""

import re
import shutil
import subprocess
from typing import Any

import pytest

from prefect_hamilton.exporter import families

_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}

EXPORTED = {
    "metrics": {
        family.name + suffix for family in families.ALL for suffix in _SUFFIXES[family.kind]
    },
    "worker": {
        "prefect_worker_last_poll_timestamp_seconds",
        "prefect_worker_standby_pods",
        "prefect_worker_submission_delay_seconds_bucket",
        "prefect_worker_submissions_total",
    },
    "server": {
        "docket_task_punctuality_seconds_count",
        "docket_task_punctuality_seconds_sum",
        "docket_tasks_failed_total",
        "docket_tasks_succeeded_total",
        "prefect_server_request_duration_seconds_bucket",
        "prefect_server_request_duration_seconds_count",
        "process_cpu_seconds_total",
        "process_open_fds",
        "process_resident_memory_bytes",
        "up",
    },
    "hamilton-ui": {
        "hamilton_ui_oldest_run_timestamp_seconds",
        "hamilton_ui_request_duration_seconds_bucket",
        "hamilton_ui_request_duration_seconds_count",
        "hamilton_ui_runs",
    },
    "kube-state-metrics": {
        "kube_cronjob_created",
        "kube_cronjob_next_schedule_time",
        "kube_cronjob_status_last_schedule_time",
        "kube_cronjob_status_last_successful_time",
        "kube_deployment_spec_replicas",
        "kube_deployment_status_replicas_available",
        "kube_job_failed",
        "kube_job_owner",
        "kube_pod_container_resource_limits",
        "kube_pod_container_status_restarts_total",
        "kube_pod_status_phase",
    },
    "kubelet": {
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "kubelet_volume_stats_available_bytes",
        "kubelet_volume_stats_capacity_bytes",
        "kubelet_volume_stats_used_bytes",
    },
    # postgres_exporter 0.17
    "postgres": {
        "pg_database_size_bytes",
        "pg_locks_count",
        "pg_settings_max_connections",
        "pg_stat_activity_count",
        "pg_stat_activity_max_tx_duration",
        "pg_stat_database_blks_hit",
        "pg_stat_database_blks_read",
        "pg_stat_database_deadlocks",
        "pg_stat_database_xact_commit",
        "pg_stat_user_tables_n_dead_tup",
        "pg_stat_user_tables_size_bytes",
        "pg_up",
    },
    # redis_exporter 1.69
    "valkey": {
        "redis_commands_processed_total",
        "redis_connected_clients",
        "redis_memory_used_bytes",
        "redis_stream_group_lag",
        "redis_up",
    },
}
"""Metrics by source, as in the dashboards."""


SHORT_FOR, SHORT_WINDOW = "5s", "1m"


def names(expression: str) -> set[str]:
    """Return the metrics in an expression of PromQL; each of our own has a prefix of its source."""
    prefixes = "container|docket_tasks?|flows|hamilton_ui|kube|kubelet|pg|prefect|process|redis"
    return set(re.findall(rf"\b(?:(?:{prefixes})_\w+|up(?={{))", expression)) - {"prefect_hamilton"}


def check(text: str) -> None:
    """Let promtool check what a component serves; skips the test without promtool."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not on PATH: install Debian's package prometheus")
    subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=True)


def shorten(rule: Any) -> None:
    """Let the alerts of a PrometheusRule wait for seconds: their `for`, and windows of rates."""
    for group in rule["spec"]["groups"]:
        for each in group["rules"]:
            each["for"] = SHORT_FOR
            each["expr"] = re.sub(r"\[(5|10|15|30)m\]", f"[{SHORT_WINDOW}]", each["expr"])
