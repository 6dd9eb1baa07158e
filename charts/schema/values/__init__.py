"""The values of the chart `prefect-hamilton`: names, types, defaults and what each one does."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from charts.schema.partial import Partial
from charts.schema.values.alerts import Alerts
from charts.schema.values.common import DnsLabel, Global, KubernetesObject, Values
from charts.schema.values.databases import Postgres, Valkey, Warehouse
from charts.schema.values.exposure import Gateway, Ingress
from charts.schema.values.flows import Flows, GitServer
from charts.schema.values.hamilton_ui import HamiltonUi
from charts.schema.values.jobs import Bootstrap, SecretsJob
from charts.schema.values.observability import (
    Dashboards,
    Logs,
    Metrics,
    Monitoring,
    PrometheusRule,
    ServiceMonitor,
    Telemetry,
)
from charts.schema.values.security import NetworkPolicy, Rbac
from charts.schema.values.server import Api, Auth, BackgroundServices, Server
from charts.schema.values.workers import Pool, Worker

PoolName = Annotated[str, StringConstraints(pattern=r"^[^/%\s]+$")]


class ChartValues(Values):
    """All values of the chart."""

    global_: Global = Field(default_factory=Global, alias="global")
    flows: Flows = Field(default_factory=Flows)
    git_server: GitServer = Field(default_factory=GitServer)
    workers: dict[PoolName, Annotated[Pool, Partial()]] = Field(
        default_factory=dict,
        description="Work pools by name, each with the settings that differ from `worker` and"
        " `flows`. Only the pools listed here are created. If empty, one pool "
        "named `kubernetes` is created.",
        examples=[
            {
                "kubernetes": {},
                "gpu": {
                    "concurrencyLimit": 4,
                    "flows": {
                        "image": {"repository": "team/gpu-flows", "tag": "1.4.0"},
                        "nodeSelector": {"accelerator": "gpu"},
                    },
                },
                "team-a": {
                    "flows": {"namespace": "team-a"},
                    "hamiltonUi": {"project": "team-a"},
                },
            }
        ],
    )
    worker: Worker = Field(default_factory=Worker)
    auth: Auth = Field(default_factory=Auth)
    api: Api = Field(default_factory=Api)
    server: Server = Field(default_factory=Server)
    background_services: BackgroundServices = Field(default_factory=BackgroundServices)
    hamilton_ui: HamiltonUi = Field(default_factory=HamiltonUi)
    postgres: Postgres = Field(default_factory=Postgres)
    warehouse: Warehouse = Field(default_factory=Warehouse)
    valkey: Valkey = Field(default_factory=Valkey)
    ingress: Ingress = Field(default_factory=Ingress)
    gateway: Gateway = Field(default_factory=Gateway)
    network_policy: NetworkPolicy = Field(default_factory=NetworkPolicy)
    rbac: Rbac = Field(default_factory=Rbac)
    secrets: SecretsJob = Field(default_factory=SecretsJob)
    logs: Logs = Field(default_factory=Logs)
    metrics: Metrics = Field(default_factory=Metrics)
    monitoring: Monitoring = Field(default_factory=Monitoring)
    telemetry: Telemetry = Field(default_factory=Telemetry)
    service_monitor: ServiceMonitor = Field(default_factory=ServiceMonitor)
    prometheus_rule: PrometheusRule = Field(default_factory=PrometheusRule)
    dashboards: Dashboards = Field(default_factory=Dashboards)
    alerts: Alerts = Field(default_factory=Alerts)
    bootstrap: Bootstrap = Field(default_factory=Bootstrap)
    extra_objects: list[KubernetesObject | str] = Field(
        default_factory=list,
        description="Additional objects: mappings, or strings that are rendered as templates.",
        examples=[
            [
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": "my-config"},
                    "data": {"key": "value"},
                }
            ]
        ],
    )
    name_override: DnsLabel = Field(
        default="", description="Overrides the chart's name in names of objects."
    )
    fullname_override: DnsLabel = Field(
        default="",
        description="Overrides `<release>-prefect-hamilton` in names of objects.",
        max_length=40,
    )
    rollout_token: str = Field(
        default="",
        description="Any text. Change it to restart every pod and run every Job again, for "
        "example after the content of a Secret changed.",
    )


SECTIONS = {
    "global": "All components",
    "flows": "Flows",
    "workers": "Workers",
    "auth": "Server",
    "hamiltonUi": "Hamilton UI",
    "postgres": "Databases",
    "ingress": "Exposure",
    "networkPolicy": "Security",
    "logs": "Observability",
    "bootstrap": "Advanced",
}
"""Sections of values.yaml: the first key of each, and its title."""
