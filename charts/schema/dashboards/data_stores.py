"""The dashboard of PostgreSQL, Valkey and volumes."""

from __future__ import annotations

from charts.schema.dashboards.model import LIMITS, Dashboard, Panel, Query, Section, Variable
from charts.schema.dashboards.promql import NAMESPACE, increase, rate

CONNECTIONS = f"sum by (namespace) (pg_stat_activity_count{{{NAMESPACE}}})"
DATABASES = f'{NAMESPACE},datname!~"template.*|postgres|"'

POSTGRES = Section(
    "PostgreSQL",
    (
        Panel(
            "PostgreSQL answers",
            "stat",
            "bool_yes_no",
            6,
            "Whether the exporter can connect.",
            (Query(f"min by (namespace) (pg_up{{{NAMESPACE}}})", "{{namespace}}"),),
            source="postgres",
        ),
        Panel(
            "Connections",
            "stat",
            "percentunit",
            6,
            "Open connections as a share of `max_connections`.",
            (
                Query(
                    f"{CONNECTIONS} / on (namespace)"
                    f" sum by (namespace) (pg_settings_max_connections{{{NAMESPACE}}})",
                    "{{namespace}}",
                ),
            ),
            source="postgres",
            red=("from", LIMITS.connections_ratio),
        ),
        Panel(
            "Longest transaction",
            "stat",
            "s",
            6,
            "Duration of the transaction that has been open the longest.",
            (
                Query(
                    f"max by (namespace) (pg_stat_activity_max_tx_duration{{{NAMESPACE}}})",
                    "{{namespace}}",
                ),
            ),
            source="postgres",
            red=("from", LIMITS.transaction_seconds),
        ),
        Panel(
            "Size",
            "stat",
            "bytes",
            6,
            "Size of all databases.",
            (
                Query(
                    f"sum by (namespace) (pg_database_size_bytes{{{NAMESPACE}}})",
                    "{{namespace}}",
                ),
            ),
            source="postgres",
        ),
        Panel(
            "Size of databases",
            "timeseries",
            "bytes",
            12,
            "Size of each database.",
            (
                Query(
                    f"sum by (datname) (pg_database_size_bytes{{{DATABASES}}})",
                    "{{datname}}",
                ),
            ),
            source="postgres",
        ),
        Panel(
            "Connections by state",
            "timeseries",
            "short",
            12,
            "Open connections. Those that stay `idle in transaction` hold locks and hinder"
            " autovacuum.",
            (
                Query(
                    f"sum by (datname, state) (pg_stat_activity_count{{{DATABASES}}}) > 0",
                    "{{datname}} {{state}}",
                ),
            ),
            source="postgres",
        ),
        Panel(
            "Transactions",
            "timeseries",
            "ops",
            12,
            "Transactions that were committed in a second.",
            (Query(rate("pg_stat_database_xact_commit", DATABASES, "datname"), "{{datname}}"),),
            source="postgres",
        ),
        Panel(
            "Reads that the cache answered",
            "timeseries",
            "percentunit",
            12,
            "Share of the blocks that were read from shared buffers. Well below 95 %, PostgreSQL"
            " needs more memory.",
            (
                Query(
                    f"{rate('pg_stat_database_blks_hit', DATABASES, 'datname')} / ("
                    f"{rate('pg_stat_database_blks_hit', DATABASES, 'datname')} + "
                    f"{rate('pg_stat_database_blks_read', DATABASES, 'datname')})",
                    "{{datname}}",
                ),
            ),
            source="postgres",
        ),
        Panel(
            "Largest tables of Prefect",
            "bargauge",
            "bytes",
            12,
            "The ten largest tables, with their indexes, of Prefect's database.",
            (
                Query(
                    f"topk(10, sum by (relname) (pg_stat_user_tables_size_bytes{{{NAMESPACE}}}))",
                    "{{relname}}",
                ),
            ),
            source="postgres",
        ),
        Panel(
            "Dead rows of Prefect",
            "bargauge",
            "short",
            12,
            "The ten tables of Prefect's database with the most rows for autovacuum to remove.",
            (
                Query(
                    f"topk(10, sum by (relname) (pg_stat_user_tables_n_dead_tup{{{NAMESPACE}}}))",
                    "{{relname}}",
                ),
            ),
            source="postgres",
        ),
        Panel(
            "Deadlocks",
            "timeseries",
            "short",
            12,
            "Transactions that PostgreSQL ended because they waited for each other.",
            (Query(increase("pg_stat_database_deadlocks", DATABASES, "datname"), "{{datname}}"),),
            source="postgres",
        ),
        Panel(
            "Locks",
            "timeseries",
            "short",
            12,
            "Locks that are held or awaited, by mode.",
            (
                Query(
                    f"sum by (datname, mode) (pg_locks_count{{{DATABASES}}}) > 0",
                    "{{datname}} {{mode}}",
                ),
            ),
            source="postgres",
        ),
    ),
)

VALKEY = Section(
    "Valkey",
    (
        Panel(
            "Valkey answers",
            "stat",
            "bool_yes_no",
            6,
            "Whether the exporter can connect.",
            (Query(f"min by (namespace) (redis_up{{{NAMESPACE}}})", "{{namespace}}"),),
            source="valkey",
        ),
        Panel(
            "Clients",
            "stat",
            "short",
            6,
            "Connections of server pods.",
            (
                Query(
                    f"sum by (namespace) (redis_connected_clients{{{NAMESPACE}}})", "{{namespace}}"
                ),
            ),
            source="valkey",
        ),
        Panel(
            "Memory of Valkey",
            "stat",
            "bytes",
            6,
            "Memory of all data.",
            (
                Query(
                    f"sum by (namespace) (redis_memory_used_bytes{{{NAMESPACE}}})",
                    "{{namespace}}",
                ),
            ),
            source="valkey",
        ),
        Panel(
            "Backlog",
            "stat",
            "short",
            6,
            "Events and tasks that no server pod has read yet.",
            (Query(f"sum(redis_stream_group_lag{{{NAMESPACE}}})", "messages"),),
            source="valkey",
            red=("from", LIMITS.backlog),
        ),
        Panel(
            "Backlog by reader",
            "timeseries",
            "short",
            12,
            "Messages that a group of readers has not read yet. If it grows, the server or its"
            " background services do not keep up.",
            (
                Query(
                    f"sum by (stream, group) (redis_stream_group_lag{{{NAMESPACE}}})",
                    "{{stream}} {{group}}",
                ),
            ),
            source="valkey",
        ),
        Panel(
            "Commands",
            "timeseries",
            "ops",
            12,
            "Commands in a second.",
            (
                Query(
                    rate("redis_commands_processed_total", NAMESPACE, "namespace"),
                    "{{namespace}}",
                ),
            ),
            source="valkey",
        ),
    ),
)

VOLUMES = Section(
    "Volumes and CronJobs",
    (
        Panel(
            "Use of volumes",
            "timeseries",
            "percentunit",
            12,
            "Used share of each volume. PostgreSQL stops when its volume is full.",
            (
                Query(
                    "max by (persistentvolumeclaim) ("
                    f"kubelet_volume_stats_used_bytes{{{NAMESPACE}}}"
                    f" / kubelet_volume_stats_capacity_bytes{{{NAMESPACE}}})",
                    "{{persistentvolumeclaim}}",
                ),
            ),
            source="kubelet",
        ),
        Panel(
            "Time since a CronJob last succeeded",
            "bargauge",
            "s",
            12,
            "Retention of the Hamilton UI, and the bootstrap with `bootstrap.schedule`.",
            (
                Query(
                    "time() - max by (cronjob) (kube_cronjob_status_last_successful_time"
                    f"{{{NAMESPACE}}})",
                    "{{cronjob}}",
                ),
            ),
            source="kube-state-metrics",
        ),
    ),
)

DATA_STORES = Dashboard(
    uid="prefect-data-stores",
    title="Prefect: data stores",
    description="PostgreSQL, Valkey and volumes of the release.",
    variables=(Variable("namespace", "prefect_metrics_up"),),
    sections=(POSTGRES, VALKEY, VOLUMES),
)
