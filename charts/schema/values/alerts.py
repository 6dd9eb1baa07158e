"""Alerts: messages of the Prefect server to people."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from charts.schema import kubernetes
from charts.schema.text import Text
from charts.schema.values.common import ObjectName, Port, SecretKey, Values

ChannelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]

Channels = list[
    Annotated[
        str,
        Text(
            r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
            "a name of lowercase letters, digits and hyphens, such as my-name",
        ),
    ]
]

DeploymentName = Annotated[
    str, Text(r"^[^/]+$", "the name of a deployment without its flow, such as daily")
]

Wait = Annotated[int, Field(ge=10)]


class Channel(Values):
    """Where messages go."""

    type: Literal[
        "slack",
        "teams",
        "discord",
        "mattermost",
        "pagerduty",
        "opsgenie",
        "sendgrid",
        "webhook",
        "apprise",
    ] = Field(description="Type of the receiver.")
    existing_secret: ObjectName = Field(description="Secret with the URL or the keys.")
    keys: list[SecretKey] = Field(
        default_factory=list,
        description="Of a `webhook`: further keys of the Secret, for which `{{key}}` stands.",
    )
    values: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of the block type, in Prefect's words."
    )
    port: Port = Field(default=443, description="Port of the receiver, to which egress opens.")
    to: list[kubernetes.NetworkPolicyPeer] = Field(
        default_factory=list,
        description="Peers to which egress opens. If empty, any address, since a NetworkPolicy "
        "cannot name hosts.",
    )


class Preset(Values):
    """Common settings of all presets."""

    enabled: bool = Field(default=True, description="Send these messages.")
    channels: Channels = Field(
        default_factory=list, description="Names of channels. If empty, all."
    )


class OfRuns(Preset):
    """Messages about flow runs."""

    tags: list[str] = Field(
        default_factory=list, description="Only flow runs with one of these tags."
    )


class OfDeployments(OfRuns):
    """Messages about flow runs of some deployments."""

    deployments: list[DeploymentName] = Field(
        default_factory=list,
        description="Only flow runs of these deployments, named without their flow; `*` stands "
        "for any text.",
    )


class OncePerFlow(OfDeployments):
    """Messages of which some are left out."""

    interval: int = Field(
        default=60,
        ge=0,
        description="At most one message about a flow in this number of seconds. 0: one about "
        "each flow run.",
    )


class Failed(OncePerFlow):
    """A flow run failed, after its retries, or crashed."""


class Late(OfDeployments):
    """A flow run is late, and no run of its deployment has started since."""

    seconds: Wait = Field(default=300, description="Number of seconds since it became late.")


class Pending(OfDeployments):
    """A flow run stays Pending."""

    seconds: Wait = Field(default=600, description="Number of seconds in Pending.")


class Pool(Preset):
    """A work pool has no online worker."""

    seconds: Wait = Field(default=120, description="Number of seconds without a worker.")
    pools: list[str] = Field(default_factory=list, description="Only these work pools.")


class Zombie(OfRuns):
    """A running flow run sends no heartbeats. Makes flow pods send them."""

    enabled: bool = Field(default=False, description="Send these messages.")
    seconds: int = Field(
        default=300, ge=90, description="Number of seconds since the last heartbeat."
    )


class Quality(OncePerFlow):
    """A flow called `report_quality_breach` of the library."""


class Presets(Values):
    """The messages."""

    failed: Failed = Field(default_factory=Failed)
    late: Late = Field(default_factory=Late)
    pending: Pending = Field(default_factory=Pending)
    pool: Pool = Field(default_factory=Pool)
    zombie: Zombie = Field(default_factory=Zombie)
    quality: Quality = Field(default_factory=Quality)


class Alerts(Values):
    """Messages of the Prefect server to people."""

    channels: dict[ChannelName, Channel] = Field(
        default_factory=dict,
        description="Where messages go, by name. Without a channel there are no alerts.",
        examples=[{"team": {"type": "slack", "existingSecret": "slack"}}],
    )
    presets: Presets = Field(default_factory=Presets)
