"""The workers and their work pools."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from charts.schema import kubernetes
from charts.schema.partial import Partial
from charts.schema.values.common import (
    Autoscaling,
    Image,
    PodDisruptionBudget,
    PodSettings,
    Resources,
    Seconds,
    ServiceAccount,
    Values,
    resources,
)
from charts.schema.values.flows import FlowSettings


class WorkerSettings(PodSettings):
    """Settings of a worker, which each work pool can override."""

    image: Image = Field(default_factory=lambda: Image(repository="prefect-hamilton/prefect"))
    replicas: int = Field(default=1, ge=0, description="Number of worker pods per work pool.")
    poll_seconds: float = Field(
        default=1,
        gt=0,
        description="Number of seconds between two polls for scheduled flow runs. Events make a"
        " worker poll at once; while it receives them, it polls less often.",
    )
    prefetch_seconds: int = Field(
        default=10,
        ge=0,
        description="Number of seconds before its scheduled time at which the pod of a flow "
        "run is created.",
    )
    limit: int = Field(
        default=0,
        ge=0,
        description="Maximum number of concurrent flow runs per worker pod. 0 means unlimited.",
    )
    skip_late_after: int = Field(
        default=0,
        ge=0,
        description="Number of seconds after which a worker skips a run of a schedule that it "
        "finds late, for example after an outage. The run becomes Cancelled, named `Skipped`. "
        "Runs that a person or an automation created are not skipped. 0 means never.",
    )
    work_queues: list[str] = Field(
        default_factory=list,
        description="Work queues to poll. Defaults to all queues of the work pool.",
    )
    cluster_uid: str = Field(
        default="",
        description="Name of this cluster in events, when several clusters share a work pool.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Log level of the worker."
    )
    resources: Resources = Field(default_factory=lambda: resources("50m", "192Mi", "512Mi"))
    autoscaling: Autoscaling = Field(default_factory=Autoscaling)
    pod_disruption_budget: PodDisruptionBudget = Field(default_factory=PodDisruptionBudget)
    termination_grace_period_seconds: Seconds = Field(
        default=30,
        description="Number of seconds for a submission to finish before the pod is killed.",
    )


class Worker(WorkerSettings):
    """Settings of all workers. An entry of `workers` overrides them for one work pool."""

    enabled: bool = Field(
        default=True,
        description="Run workers. Otherwise another release must run the workers of the work "
        "pools.",
    )
    service_account: ServiceAccount = Field(default_factory=ServiceAccount)


class Queue(Values):
    """A work queue."""

    description: str = Field(default="", description="Description.")
    priority: int | None = Field(
        default=None, ge=1, description="Priority. 1 is the highest. The server sets it by default."
    )
    concurrency_limit: int | None = Field(
        default=None,
        ge=0,
        description="Maximum number of concurrent flow runs of the queue. Unlimited by default.",
    )


class PoolHamiltonUi(Values):
    """Project of the Hamilton UI in which the runs of a pool are tracked."""

    project: str = Field(
        default="",
        description="Project in which the pool's flow runs are tracked. Defaults to "
        "`hamiltonUi.project`. Its only users are the pool's and the one that tracks.",
    )
    users: list[Annotated[str, StringConstraints(min_length=1)]] = Field(
        default_factory=list,
        description="Additional users who can view and change the project, as `hamiltonUi.users`.",
    )


class PoolNetworkPolicy(Values):
    """NetworkPolicy of a pool's flow pods."""

    flows_egress: list[kubernetes.NetworkPolicyEgressRule] | None = Field(
        default=None,
        description="Egress rules of the pool's flow pods, in place of "
        "`networkPolicy.flowsEgress`.",
    )


class Pool(WorkerSettings):
    """One work pool and its worker. Settings that are absent come from `worker` and `flows`."""

    concurrency_limit: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of concurrent flow runs in the work pool. Unlimited by "
        "default.",
    )
    queues: dict[str, Queue] = Field(
        default_factory=dict,
        description="Work queues by name, besides the queue `default`.",
        examples=[{"urgent": {"priority": 1, "concurrencyLimit": 5}}],
    )
    hamilton_ui: PoolHamiltonUi = Field(
        default_factory=PoolHamiltonUi, description="Project in the Hamilton UI of this pool."
    )
    network_policy: PoolNetworkPolicy = Field(
        default_factory=PoolNetworkPolicy,
        description="NetworkPolicy of the flow pods of this pool.",
    )
    flows: Annotated[FlowSettings, Partial()] = Field(
        default_factory=FlowSettings,
        description="Settings of the flow pods of this pool: any of those of `flows` about pods.",
    )
