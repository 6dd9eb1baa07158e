"""NetworkPolicies and RBAC."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from charts.schema import kubernetes
from charts.schema.values.common import Values

PolicyComponent = Literal[
    "background-services",
    "bootstrap",
    "flow-run",
    "git-server",
    "hamilton-ui",
    "hamilton-ui-retention",
    "metrics",
    "postgres",
    "secrets",
    "server",
    "valkey",
    "worker",
]


class NetworkPolicy(Values):
    """NetworkPolicies."""

    enabled: bool = Field(default=True, description="Create a NetworkPolicy for every component.")
    web_from: list[kubernetes.NetworkPolicyPeer] = Field(
        default_factory=list,
        description="Peers that may connect to the Prefect UI and the Hamilton UI, in "
        "addition to the release's pods. If empty, everyone may.",
        examples=[
            [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}]
        ],
    )
    metrics_from: list[kubernetes.NetworkPolicyPeer] = Field(
        default_factory=list,
        description="Peers that may scrape the pods of `metrics`, workers and exporters. If empty,"
        " everyone may.",
        examples=[
            [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
        ],
    )
    extra_egress: dict[PolicyComponent, list[kubernetes.NetworkPolicyEgressRule]] = Field(
        default_factory=dict,
        description="Additional egress rules by component, for example `bootstrap` for a Git "
        "server in the cluster whose pods listen on another port than its Service.",
        examples=[{"bootstrap": [{"ports": [{"port": 8443, "protocol": "TCP"}]}]}],
    )
    notifications_egress: list[kubernetes.NetworkPolicyEgressRule] | None = Field(
        default=None,
        description="Egress rules for notifications and webhooks of automations, which the "
        "background services send, or the server if it runs them. If null, port 443 of any "
        "address is open if `bootstrap.state.blocks` has a notification or webhook block, and what "
        "`alerts.channels` need.",
        examples=[
            [
                {
                    "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
                    "ports": [{"port": 8443, "protocol": "TCP"}],
                }
            ]
        ],
    )
    flows_egress: list[kubernetes.NetworkPolicyEgressRule] | None = Field(
        default=None,
        description="Egress rules of flow pods, in addition to those for Prefect, the "
        "Hamilton UI and the warehouse. If null, flow pods may connect to any "
        "address.",
        examples=[
            [
                {
                    "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
                    "ports": [{"port": 443, "protocol": "TCP"}],
                }
            ]
        ],
    )


class Rbac(Values):
    """Roles and RoleBindings."""

    create: bool = Field(
        default=True,
        description="Create the Roles of the workers and of the Job that creates Secrets.",
    )
