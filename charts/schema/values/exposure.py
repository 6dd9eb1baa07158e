"""How the UIs are reached from outside the cluster."""

from __future__ import annotations

from pydantic import Field

from charts.schema import kubernetes
from charts.schema.values.common import DnsLabel, ObjectName, Values


class Ingress(Values):
    """Ingress for `server.host` and `hamiltonUi.host`."""

    enabled: bool = Field(default=False, description="Create the Ingress.")
    class_name: ObjectName = Field(
        default="", description="IngressClass; the cluster's default when empty."
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations of the Ingress."
    )
    tls: bool = Field(default=False, description="Serve HTTPS.")
    tls_secret: DnsLabel = Field(
        default="",
        description="Secret with a certificate for both hosts. If empty, each host has a "
        "separate Secret.",
    )


class Gateway(Values):
    """HTTPRoutes of the Gateway API for `server.host` and `hamiltonUi.host`."""

    enabled: bool = Field(default=False, description="Create the HTTPRoutes.")
    parent_refs: list[kubernetes.ParentReference] = Field(
        default_factory=list,
        description="Gateways to which the HTTPRoutes attach.",
        examples=[[{"name": "public", "namespace": "gateways", "sectionName": "https"}]],
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations of the HTTPRoutes."
    )
    tls: bool = Field(default=False, description="Whether the Gateway's listener serves HTTPS.")
