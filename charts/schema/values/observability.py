"""Logs, OpenTelemetry, and objects of the Prometheus Operator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from charts.schema import kubernetes
from charts.schema.text import Text
from charts.schema.values.common import (
    Duration,
    Image,
    PodSettings,
    Resources,
    Service,
    Url,
    Values,
    resources,
)


class Logs(Values):
    """Log lines of all pods."""

    format: Literal["text", "json"] = Field(
        default="text",
        description="`text` for people, or `json` for a log collector: one JSON object per line."
        " Hamilton UI always writes JSON, PostgreSQL and Valkey always write text.",
    )
    url: Annotated[
        str,
        Text(
            r"^$|^https?://[^\s{}'\"]+(\{flow_run_id\}[^\s{}'\"]*)+$",
            "an http or https URL with {flow_run_id}, such as "
            "https://logs.example.org/?query={flow_run_id}",
        ),
    ] = Field(
        default="",
        description="Address of the log lines of a flow run in your log system; `{flow_run_id}` "
        "stands for its ID. The messages of `alerts` link to it.",
    )


class Metrics(PodSettings):
    """Metrics of flow runs, work pools, deployments and workers for Prometheus."""

    enabled: bool = Field(
        default=False,
        description="Run one pod that listens to Prefect's events and serves metrics on port 9090."
        " It uses the image of the server. The pods of workers serve theirs on the same port.",
    )
    refresh_seconds: int = Field(
        default=30,
        ge=5,
        description="Number of seconds between two reads of what no event tells, such as the "
        "number of late runs.",
    )
    resources: Resources = Field(default_factory=lambda: resources("20m", "128Mi", "512Mi"))
    service: Service = Field(default_factory=lambda: Service(port=9090))


class PostgresExporter(Values):
    """Metrics of the bundled PostgreSQL, from a container in its pod."""

    enabled: bool = Field(
        default=False,
        description="Run postgres_exporter beside the bundled PostgreSQL, port 9187. Switching it"
        " restarts PostgreSQL.",
    )
    image: Image = Field(
        default_factory=lambda: Image(
            registry="quay.io", repository="prometheuscommunity/postgres-exporter", tag="v0.17.1"
        )
    )
    resources: Resources = Field(default_factory=lambda: resources("10m", "32Mi", "128Mi"))


class ValkeyExporter(Values):
    """Metrics of the bundled Valkey, from a container in its pod."""

    enabled: bool = Field(
        default=False,
        description="Run redis_exporter beside the bundled Valkey, port 9121. Switching it"
        " restarts Valkey.",
    )
    image: Image = Field(
        default_factory=lambda: Image(repository="oliver006/redis_exporter", tag="v1.69.0")
    )
    resources: Resources = Field(default_factory=lambda: resources("10m", "32Mi", "128Mi"))


class Monitoring(Values):
    """Exporters of the bundled databases."""

    postgres_exporter: PostgresExporter = Field(default_factory=PostgresExporter)
    valkey_exporter: ValkeyExporter = Field(default_factory=ValkeyExporter)


class Otlp(Values):
    """The collector that receives OTLP over HTTP, usually at port 4318."""

    endpoint: Url = Field(
        default="",
        description="URL without `/v1/traces`, for example `http://collector.monitoring:4318`."
        " Flow pods send traces and the metrics of tasks to it. If empty, nothing is sent.",
    )


class Telemetry(Values):
    """OpenTelemetry of flow pods; its other variables can be set in `flows.env`."""

    otlp: Otlp = Field(default_factory=Otlp)


class ServiceMonitor(Values):
    """ServiceMonitors of the Prometheus Operator."""

    enabled: bool = Field(default=False, description="Create ServiceMonitors.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels by which Prometheus selects the object."
    )
    interval: Duration = Field(default="30s", description="Interval between two scrapes.")


class Dashboards(Values):
    """Dashboards of Grafana, in ConfigMaps that its sidecar loads."""

    enabled: bool = Field(
        default=False, description="Create ConfigMaps with the dashboards. They need `metrics`."
    )
    labels: dict[str, str] = Field(
        default_factory=lambda: {"grafana_dashboard": "1"},
        description="Labels by which Grafana's sidecar selects the ConfigMaps.",
    )
    annotations: dict[str, str] = Field(
        default_factory=dict,
        description="Annotations of the ConfigMaps.",
        examples=[{"grafana_folder": "Prefect"}],
    )


DeploymentName = Annotated[str, StringConstraints(pattern=r"^[^/%&><]+/[^/%&><]+$")]
"""A deployment as in the Prefect UI: `flow/deployment`."""


class Thresholds(Values):
    """Where alerts fire."""

    late_seconds: int = Field(
        default=300, ge=1, description="`PrefectRunsLate`: lateness of the first late run."
    )
    pending_seconds: int = Field(
        default=600, ge=1, description="`PrefectRunsStuckPending`: time of a run in state Pending."
    )
    failure_ratio: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="`PrefectRunsFailing`: share of a deployment's runs of 30 minutes that failed.",
    )
    failure_runs: int = Field(
        default=5, ge=1, description="`PrefectRunsFailing`: number of runs that it needs."
    )
    crashed_runs: int = Field(
        default=0,
        ge=0,
        description="`PrefectRunsCrashed`: fires if more runs of a pool crash in 15 minutes.",
    )
    volume_free_ratio: float = Field(
        default=0.1, ge=0, le=1, description="`PrefectVolumeFilling`: free share of a volume."
    )
    volume_days: int = Field(
        default=4,
        ge=1,
        description="`PrefectVolumeGrowing`: number of days in which a volume will be full.",
    )
    success_seconds: dict[DeploymentName, Annotated[int, Field(ge=60)]] = Field(
        default_factory=dict,
        description="`PrefectDeploymentNotSucceeding`: time since the last success, by"
        " deployment. Only those that are listed have this alert.",
        examples=[{"data-pipeline/daily-k8s": 93600}],
    )
    failed_pods: int = Field(
        default=0,
        ge=0,
        description="`PrefectPodsFailing`: fires if more flow pods have a problem of one kind, such"
        " as OOMKilled, in 15 minutes.",
    )
    failed_submissions: int = Field(
        default=2,
        ge=0,
        description="`PrefectSubmissionsFailing`: fires if a worker more often creates no Job for a"
        " flow run of a pool in 15 minutes.",
    )
    server_error_ratio: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="`PrefectServerErrors`: share of API requests with a status of 500 or more.",
    )
    service_delay_seconds: int = Field(
        default=60,
        ge=1,
        description="`PrefectServicesLate`: by how much a background service begins late.",
    )
    event_delay_seconds: int = Field(
        default=60,
        ge=1,
        description="`PrefectEventsDelayed`: time from an event of a flow run to its arrival.",
    )
    untracked_runs: int = Field(
        default=0,
        ge=0,
        description="`PrefectTrackingFailing`: fires if more flow runs are not tracked in the"
        " Hamilton UI in 30 minutes.",
    )
    connections_ratio: float = Field(
        default=0.85,
        ge=0,
        le=1,
        description="`PrefectPostgresConnectionsHigh`: share of `max_connections` in use.",
    )
    transaction_seconds: int = Field(
        default=3600,
        ge=1,
        description="`PrefectPostgresTransactionLong`: duration of a transaction.",
    )
    valkey_memory_ratio: float = Field(
        default=0.85,
        ge=0,
        le=1,
        description="`PrefectValkeyMemoryHigh`: share of the memory limit of its container.",
    )
    backlog: int = Field(
        default=1000,
        ge=0,
        description="`PrefectValkeyBacklog`: messages that no server pod has read.",
    )
    stale_seconds: int = Field(
        default=300, ge=60, description="`PrefectMetricsStale`: age of the metrics."
    )


class PrometheusRule(Values):
    """PrometheusRule of the Prometheus Operator."""

    enabled: bool = Field(
        default=False,
        description="Create alerts for a server that is down, a component without a ready pod,"
        " a failed Job, a retention that does not succeed and a full volume. Except for a server"
        " with a ServiceMonitor, they need kube-state-metrics. With `metrics` and"
        " `serviceMonitor`, there are alerts for flow runs, work pools and automations too; with"
        " the exporters of `monitoring`, for PostgreSQL and Valkey.",
    )
    thresholds: Thresholds = Field(default_factory=Thresholds)
    runbook_url: Url = Field(
        default="",
        description="Address of the page with what to do about each alert: docs/runbooks.md."
        " Defaults to that page in the repository that publishes the chart.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels by which Prometheus selects the object."
    )
    rules: list[kubernetes.PrometheusRule] = Field(
        default_factory=list,
        description="Rules to add to the alerts of the release.",
        examples=[
            [
                {
                    "alert": "ManyFlowRunsRunning",
                    "expr": 'sum(kube_job_status_active{namespace="prefect"}) > 50',
                    "for": "10m",
                    "labels": {"severity": "warning"},
                }
            ]
        ],
    )
