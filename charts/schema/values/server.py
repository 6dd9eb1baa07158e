"""The Prefect server."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from charts.schema.values.common import (
    Autoscaling,
    Component,
    DnsLabel,
    Host,
    Image,
    OptionalSecretKey,
    PodDisruptionBudget,
    PodSettings,
    Resources,
    Seconds,
    Service,
    Storage,
    Url,
    Values,
    resources,
)


class Auth(Values):
    """Authentication to the Prefect API."""

    type: Literal["basic", "apiKey", "none"] = Field(
        default="basic",
        description="How clients authenticate to the Prefect API. `basic`: one auth string, "
        "for a self-hosted server. `apiKey`: Prefect Cloud. `none`: anyone who "
        "can reach the API has full access.",
    )
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with the credential. With `server.metrics` and `serviceMonitor`, it "
        "also needs the keys `username` and `password`. It must also exist in the namespace of the "
        "flow pods. If empty, the release's own server gets a Secret with a "
        "random password on first install.",
    )
    key: OptionalSecretKey = Field(
        default="",
        description="Key of the credential in the Secret. Defaults to `auth-string` or `api-key`.",
    )


class Api(Values):
    """External Prefect API, for a release that runs workers only."""

    url: Url = Field(
        default="",
        description="URL of an external Prefect API (`https://prefect.example.org/api`), with"
        " `server.enabled: false`.",
    )


class Retention(Values):
    """How long the server keeps events and flow runs."""

    events_days: int = Field(
        default=7, ge=1, description="Number of days after which events are deleted."
    )
    flow_runs_days: int = Field(
        default=90,
        ge=0,
        description="Number of days after which finished flow runs are deleted. 0 keeps them.",
    )


class Sqlite(Values):
    """SQLite instead of PostgreSQL, for one server replica."""

    enabled: bool = Field(default=False, description="Use SQLite instead of PostgreSQL.")
    storage: Storage = Field(default_factory=lambda: Storage(size="1Gi"))


class Server(Component):
    """The Prefect server: API, UI and, with one replica, the background services."""

    enabled: bool = Field(
        default=True, description="Run a Prefect server. Otherwise `api.url` names an external one."
    )
    image: Image = Field(default_factory=lambda: Image(repository="prefect-hamilton/prefect"))
    replicas: int = Field(
        default=1,
        ge=1,
        description="Number of server pods. With more than one, `backgroundServices` run in "
        "separate pods, and PostgreSQL and Valkey are required.",
    )
    host: Host = Field(
        default="", description="Host name of the Prefect UI and API for `ingress` and `gateway`."
    )
    url: Url = Field(
        default="",
        description="Public URL of the Prefect UI, used in links. Defaults to a URL made from"
        " `host` if `ingress` or `gateway` is enabled.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="WARNING", description="Log level of the server."
    )
    metrics: bool = Field(
        default=False,
        description="Serve Prometheus metrics at /api/metrics: durations and results of API"
        " requests, delays and results of background services, and those of Prefect. Background"
        " services in pods of their own serve theirs at port 9090.",
    )
    retention: Retention = Field(default_factory=Retention)
    sqlite: Sqlite = Field(default_factory=Sqlite)
    resources: Resources = Field(default_factory=lambda: resources("100m", "320Mi", "1Gi"))
    autoscaling: Autoscaling = Field(default_factory=Autoscaling)
    pod_disruption_budget: PodDisruptionBudget = Field(default_factory=PodDisruptionBudget)
    service: Service = Field(default_factory=lambda: Service(port=4200))
    termination_grace_period_seconds: Seconds = Field(
        default=30, description="Number of seconds for requests to finish before the pod is killed."
    )


class BackgroundServices(PodSettings):
    """The server's background services (scheduler, late runs, automations) in separate pods."""

    separate: bool = Field(
        default=False,
        description="Run background services in separate pods even with one server replica. "
        "With several replicas they always are.",
    )
    replicas: int = Field(default=1, ge=1, description="Number of pods. They share the work.")
    resources: Resources = Field(default_factory=lambda: resources("50m", "256Mi", "1Gi"))
    pod_disruption_budget: PodDisruptionBudget = Field(default_factory=PodDisruptionBudget)
    termination_grace_period_seconds: Seconds = Field(
        default=30,
        description="Number of seconds for the services to finish before the pod is killed.",
    )
