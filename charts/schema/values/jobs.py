"""The Jobs of an installation: bootstrap and Secrets."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from charts.schema.values.common import (
    KubernetesObject,
    OptionalCronSchedule,
    PodSettings,
    Resources,
    Seconds,
    resources,
)

BLOCKS = [{"name": "alerts", "type": "slack-webhook", "values": {"url": {"from_env": "SLACK_URL"}}}]

AUTOMATIONS = [
    {
        "name": "slack-on-failure",
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "expect": ["prefect.flow-run.Failed"],
            "for_each": ["prefect.resource.id"],
        },
        "actions": [
            {
                "type": "send-notification",
                "block_document": "slack-webhook/alerts",
                "subject": "{{ flow.name }} failed",
                "body": "{{ flow_run.state.message }}",
            }
        ],
    }
]


class State(BaseModel):
    """Additional objects of the Prefect server.

    The keys are those of a `prefect-state.yaml`, so that a part of such a file can be moved here.
    """

    model_config = ConfigDict(extra="forbid")

    variables: list[KubernetesObject] = Field(
        default_factory=list,
        description="Prefect variables.",
        examples=[[{"name": "max_rejected_ratio", "value": 0.2}]],
    )
    blocks: list[KubernetesObject] = Field(
        default_factory=list,
        description="Prefect blocks of any type. Their secrets come from `bootstrap.env`.",
        examples=[BLOCKS],
    )
    global_concurrency_limits: list[KubernetesObject] = Field(
        default_factory=list,
        description="Global concurrency limits.",
        examples=[[{"name": "warehouse-writes", "limit": 1}]],
    )
    tag_concurrency_limits: list[KubernetesObject] = Field(
        default_factory=list,
        description="Concurrency limits of task tags.",
        examples=[[{"tag": "model-training", "limit": 2}]],
    )
    automations: list[KubernetesObject] = Field(
        default_factory=list,
        description="Automations in Prefect's words, with names instead of ids.",
        examples=[AUTOMATIONS],
    )


class Bootstrap(PodSettings):
    """Job that reconciles the server and the Hamilton UI with values and flows repository."""

    enabled: bool = Field(
        default=True,
        description="Create and update work pools, variables, concurrency limits, "
        "automations, the Hamilton project and the deployments.",
    )
    state: State = Field(default_factory=State)
    schedule: OptionalCronSchedule = Field(
        default="",
        description="When to reconcile again, as a cron expression in UTC, so that manual changes "
        "do not last. Empty: only on an installation, an upgrade or a sync with a change.",
        examples=["*/30 * * * *"],
    )
    prune: bool = Field(
        default=True,
        description="Delete objects that the bootstrap created when the values and the flows "
        "repository no longer name them. Objects that users created are never deleted.",
    )
    record_name: str = Field(
        default="",
        description="Name, on the Prefect server, of the record of the objects that the bootstrap "
        "created. Set it if installations in several clusters share a server. Default: namespace "
        "and name of the release.",
    )
    timeout_seconds: Seconds = Field(
        default=600,
        description="Number of seconds to wait for the Prefect server and the Hamilton UI.",
    )
    resources: Resources = Field(default_factory=lambda: resources("25m", "192Mi", "1Gi"))


class SecretsJob(PodSettings):
    """Job that creates missing Secrets with random values.

    It never changes an existing Secret.
    """

    enabled: bool = Field(
        default=True,
        description="Create missing Secrets. Otherwise every `existingSecret` in use must be set.",
    )
    resources: Resources = Field(default_factory=lambda: resources("10m", "64Mi", "256Mi"))
