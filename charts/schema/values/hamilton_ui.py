"""The Hamilton UI."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from charts.schema.text import Text
from charts.schema.values.common import (
    Component,
    CronSchedule,
    DnsLabel,
    Host,
    Image,
    ObjectName,
    PodDisruptionBudget,
    Resources,
    Seconds,
    Service,
    Storage,
    Url,
    Values,
    resources,
)

AllowedHost = Annotated[
    str,
    Text(
        r"^[A-Za-z0-9.*:\[\]-]+$",
        "a host name or address without scheme and path, such as app.example.org",
    ),
]


class S3(Values):
    """Object store for code snapshots, required for several replicas."""

    bucket: ObjectName = Field(
        default="", description="Name of the bucket. If empty, a volume is used."
    )
    region: ObjectName = Field(default="", description="Region of the bucket.")
    endpoint_url: Url = Field(
        default="", description="URL of an S3-compatible object store other than Amazon S3."
    )
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with `access-key-id` and `secret-access-key`. If empty, the cloud"
        " identity of the pods is used.",
    )


class HamiltonRetention(Values):
    """CronJob that deletes old Hamilton runs and marks abandoned ones as failed."""

    enabled: bool = Field(default=True, description="Run the CronJob.")
    schedule: CronSchedule = Field(
        default="17 3 * * *", description="Schedule of the CronJob, as a cron expression in UTC."
    )
    days: int = Field(
        default=90, ge=0, description="Number of days after which runs are deleted. 0 keeps them."
    )
    stale_run_hours: int = Field(
        default=24,
        ge=0,
        description="Number of hours after which a run that is still Running is marked as failed.",
    )


class HamiltonUi(Component):
    """The Hamilton UI and its tracking server."""

    enabled: bool = Field(default=True, description="Run the Hamilton UI.")
    image: Image = Field(default_factory=lambda: Image(repository="prefect-hamilton/hamilton-ui"))
    replicas: int = Field(
        default=1, ge=1, description="Number of pods. More than one requires `s3`."
    )
    processes: int = Field(
        default=1, ge=1, description="Number of processes per pod, with eight threads each."
    )
    host: Host = Field(
        default="", description="Host name of the Hamilton UI for `ingress` and `gateway`."
    )
    url: Url = Field(
        default="",
        description="Public URL of the Hamilton UI, used in links. Defaults to a URL made "
        "from `host` if `ingress` or `gateway` is enabled.",
    )
    allowed_hosts: list[AllowedHost] = Field(
        default_factory=list, description="Additional host names that requests may use."
    )
    project: str = Field(
        default="flows", description="Project in which flow runs are tracked.", min_length=1
    )
    username: str = Field(
        default="prefect", description="User as which flow runs are tracked.", min_length=1
    )
    users: list[Annotated[str, StringConstraints(min_length=1)]] = Field(
        default_factory=list,
        description="Additional users who can view and change the project. Each logs in with "
        "a name from this list (for example an e-mail address) and the API key. A user who "
        "leaves this list keeps access to the project.",
        examples=[["ada@example.org"]],
    )
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with `api-key` and `django-secret-key`. It must also exist in the"
        " namespace of the flow pods. If empty, one with random values is created"
        " on first install.",
    )
    metrics: bool = Field(
        default=False,
        description="Serve Prometheus metrics on port 9090: durations and results of requests, and"
        " stored runs.",
    )
    storage: Storage = Field(default_factory=lambda: Storage(size="1Gi"))
    s3: S3 = Field(default_factory=S3)
    retention: HamiltonRetention = Field(default_factory=HamiltonRetention)
    resources: Resources = Field(default_factory=lambda: resources("50m", "192Mi", "512Mi"))
    pod_disruption_budget: PodDisruptionBudget = Field(default_factory=PodDisruptionBudget)
    service: Service = Field(default_factory=lambda: Service(port=8241))
    termination_grace_period_seconds: Seconds = Field(
        default=30, description="Number of seconds for requests to finish before the pod is killed."
    )
