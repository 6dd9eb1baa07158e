"""Logs, OpenTelemetry, and objects of the Prometheus Operator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from charts.schema import kubernetes
from charts.schema.values.common import Duration, Values


class Logs(Values):
    """Log lines of all pods."""

    format: Literal["text", "json"] = Field(
        default="text",
        description="`text` for people, or `json` for a log collector: one JSON object per line."
        " Hamilton UI always writes JSON, PostgreSQL and Valkey always write text.",
    )


class Otlp(Values):
    """The collector that receives OTLP over HTTP, usually at port 4318."""

    endpoint: Annotated[str, StringConstraints(pattern=r"^(https?://\S+)?$")] = Field(
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


class PrometheusRule(Values):
    """PrometheusRule of the Prometheus Operator."""

    enabled: bool = Field(
        default=False,
        description="Create alerts for a server that is down, a component without a ready pod,"
        " a failed Job and a retention that does not succeed. Except for a server with a"
        " ServiceMonitor, they need kube-state-metrics.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels by which Prometheus selects the object."
    )
    rules: list[kubernetes.PrometheusRule] = Field(
        default_factory=list,
        description="Rules to add to the release's group of alerts.",
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
