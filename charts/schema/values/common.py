"""Types that several components share: names, images, pods, volumes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from charts.schema import kubernetes
from charts.schema.text import Text

DnsLabel = Annotated[
    str,
    StringConstraints(max_length=63),
    Text(
        r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        "a name of lowercase letters, digits and hyphens, such as my-name",
    ),
]

_SUBDOMAIN = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"

Host = Annotated[
    str,
    StringConstraints(max_length=253),
    Text(
        _SUBDOMAIN,
        "a host name in lowercase without scheme, port and path, such as app.example.org",
    ),
]

Url = Annotated[
    str,
    Text(
        r"^$|^https?://[A-Za-z0-9.-]+(:[0-9]+)?(/([A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+)*$",
        "an http or https URL without user, query and final slash, such as https://app.example.org",
    ),
]

GitUrl = Annotated[
    str,
    Text(
        r"^$|^(https?|ssh|git)://[A-Za-z0-9._~:@%+/-]+$"
        r"|^[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[A-Za-z0-9._~+/-]+$",
        "the URL of a Git repository, such as https://git.example.org/flows.git or "
        "ssh://git@git.example.org/flows.git",
    ),
]

Tag = Annotated[
    str,
    Text(
        r"^$|^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$",
        "the tag of an image: letters, digits, dots, hyphens and underscores, such as 1.2.3",
    ),
]

Digest = Annotated[
    str, Text(r"^$|^sha256:[0-9a-f]{64}$", "sha256: and 64 lowercase hexadecimal digits")
]

Quantity = (
    Annotated[
        str,
        Text(
            r"^[0-9]+(\.[0-9]+)?([KMGTPE]i|[numkMGTPE])?$",
            "a quantity of Kubernetes, such as 500m, 2 or 1Gi",
        ),
    ]
    | int
    | float
)

_UNITS = ("d", "h", "m", "s", "ms")

Duration = Annotated[
    str,
    Text(
        # Prometheus wants the larger unit first, and each unit once.
        "|".join(
            f"^[0-9]+{unit}{''.join(f'([0-9]+{smaller})?' for smaller in _UNITS[i + 1 :])}$"
            for i, unit in enumerate(_UNITS)
        ),
        "a duration with a unit, such as 30s or 1m",
    ),
]

_CRON = r"^@[a-z]+$|^\S+( \S+){4}$"
_CRON_WORDS = "a cron expression of five fields, such as 17 3 * * *, or @daily"

CronSchedule = Annotated[str, Text(_CRON, _CRON_WORDS)]

OptionalCronSchedule = Annotated[str, Text(f"^$|{_CRON}", f"{_CRON_WORDS}, or empty")]

_KEY_WORDS = "a key of a Secret: letters, digits, dots, hyphens and underscores, such as api-key"

SecretKey = Annotated[str, Text(r"^[A-Za-z0-9._-]+$", _KEY_WORDS)]

OptionalSecretKey = Annotated[str, Text(r"^[A-Za-z0-9._-]*$", _KEY_WORDS)]

ObjectName = Annotated[
    str,
    Text(
        _SUBDOMAIN,
        "a name of lowercase letters, digits, hyphens and dots, such as my-name",
    ),
]

"""Name of an object of the cluster, which may contain dots."""

Identifier = Annotated[
    str,
    Text(
        r"^[a-z_][a-z0-9_]{0,62}$",
        "a name of lowercase letters, digits and underscores, such as prefect_user",
    ),
]

Port = Annotated[int, Field(ge=1, le=65535)]

NodePort = Annotated[int, Field(ge=30000, le=32767)]

Seconds = Annotated[int, Field(ge=1)]

KubernetesObject = dict[str, Any]

"""A part of a Kubernetes object that is rendered unchanged; the API server checks it."""


class Values(BaseModel):
    """A closed mapping: unknown keys are rejected. Keys are camelCase."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


Registry = Annotated[
    str,
    Text(
        r"^$|^[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*$",
        "a registry without scheme, such as registry.example.org or registry.example.org/team",
    ),
]

Repository = Annotated[
    str,
    StringConstraints(min_length=1),
    Text(
        r"^[a-z0-9]([a-z0-9._/-]*[a-z0-9])?$",
        "the name of an image in lowercase without registry and tag, such as team/server",
    ),
]


class Image(Values):
    """A container image: `registry/repository:tag`, or `registry/repository@digest`."""

    registry: Registry = Field(
        default="", description="Registry of the image. Defaults to `global.imageRegistry`."
    )
    repository: Repository = Field(description="Repository, without the registry.")
    tag: Tag = Field(default="", description="Tag. Defaults to the version of the chart.")
    digest: Digest = Field(
        default="", description="Digest (`sha256:…`). Takes precedence over the tag."
    )


class EnvSource(Values):
    """Where an environment variable's value comes from: exactly one of these."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    secret_key_ref: kubernetes.SecretKeySelector | None = None
    config_map_key_ref: kubernetes.ConfigMapKeySelector | None = None
    field_ref: kubernetes.FieldSelector | None = None
    resource_field_ref: kubernetes.ResourceFieldSelector | None = None


Env = dict[
    Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")],
    str | int | float | bool | EnvSource | None,
]


EnvFrom = Annotated[
    list[kubernetes.EnvFromSource],
    Field(
        description="Secrets and ConfigMaps whose keys become environment variables.",
        examples=[[{"secretRef": {"name": "my-secret"}}]],
    ),
]


class Resources(Values):
    """Requests and limits of a container."""

    requests: dict[str, Quantity] = Field(
        default_factory=dict, description="Requested CPU and memory."
    )
    limits: dict[str, Quantity] = Field(
        default_factory=dict, description="Limits of CPU and memory."
    )


TOLERATION = {"key": "dedicated", "operator": "Equal", "value": "flows", "effect": "NoSchedule"}


DnsPolicy = Literal["", "ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"]

HostAliases = Annotated[
    list[kubernetes.HostAlias],
    Field(
        description="Entries of the pods' hosts file.",
        examples=[[{"ip": "192.0.2.10", "hostnames": ["git.example.org"]}]],
    ),
]

TopologySpread = Annotated[
    list[kubernetes.TopologySpreadConstraint],
    Field(
        examples=[
            [
                {
                    "maxSkew": 1,
                    "topologyKey": "topology.kubernetes.io/zone",
                    "whenUnsatisfiable": "ScheduleAnyway",
                }
            ]
        ],
    ),
]


class Placement(Values):
    """How a pod finds a node, a runtime and its hosts; the same for components and flow pods."""

    runtime_class_name: ObjectName = Field(
        default="", description="RuntimeClass of the pods, such as one of a sandbox."
    )
    scheduler_name: ObjectName = Field(
        default="", description="Scheduler of the pods. Defaults to that of the cluster."
    )
    host_aliases: HostAliases = Field(default_factory=list)
    dns_policy: DnsPolicy = Field(
        default="", description="DNS policy of the pods. Kubernetes uses `ClusterFirst` by default."
    )
    dns_config: kubernetes.PodDnsConfig = Field(
        default_factory=dict,
        description="DNS configuration of the pods.",
        examples=[{"options": [{"name": "ndots", "value": "2"}]}],
    )


class PodSettings(Placement):
    """Settings of the pods of a component."""

    env: Env = Field(
        default_factory=dict,
        description="Environment variables by name: a value, or `secretKeyRef`, "
        "`configMapKeyRef`, `fieldRef` or `resourceFieldRef`. They override "
        "variables that the chart sets; null removes one.",
        examples=[
            {
                "HTTPS_PROXY": "http://proxy.example.org:3128",
                "TOKEN": {"secretKeyRef": {"name": "my-secret", "key": "token"}},
            }
        ],
    )
    env_from: EnvFrom = Field(default_factory=list)
    volumes: list[kubernetes.Volume] = Field(
        default_factory=list,
        description="Volumes to add to the pods.",
        examples=[[{"name": "ca", "configMap": {"name": "my-ca"}}]],
    )
    volume_mounts: list[kubernetes.VolumeMount] = Field(
        default_factory=list,
        description="Volume mounts of the main container.",
        examples=[[{"name": "ca", "mountPath": "/etc/ssl/ca", "readOnly": True}]],
    )
    init_containers: list[kubernetes.Container] = Field(
        default_factory=list,
        description="Init containers to add to the pods.",
        examples=[
            [
                {
                    "name": "prepare",
                    "image": "registry.example.org/tools:1",
                    "command": ["prepare"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ]
        ],
    )
    sidecars: list[kubernetes.Container] = Field(
        default_factory=list, description="Containers to run beside the main container."
    )
    pod_labels: dict[str, str] = Field(
        default_factory=dict, description="Labels to add to the pods."
    )
    pod_annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations to add to the pods."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict,
        description="Labels that a node must have.",
        examples=[{"kubernetes.io/arch": "amd64"}],
    )
    affinity: kubernetes.Affinity = Field(
        default_factory=dict,
        description="Rules that prefer or require nodes for the pods, or pods to be near.",
        examples=[
            {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {
                                "matchExpressions": [
                                    {"key": "zone", "operator": "In", "values": ["a", "b"]}
                                ]
                            }
                        ]
                    }
                }
            }
        ],
    )
    tolerations: list[kubernetes.Toleration] = Field(
        default_factory=list,
        description="Taints of nodes that the pods tolerate.",
        examples=[[TOLERATION]],
    )
    topology_spread_constraints: TopologySpread = Field(
        default_factory=list,
        description="Topology spread constraints of the pods. By default, several replicas "
        "are spread over nodes where that is possible.",
    )
    priority_class_name: ObjectName = Field(
        default="",
        description="PriorityClass of the pods. With one that is higher than that of the flow "
        "pods, a server or database that restarts finds room on a node full of flow pods.",
    )
    pod_security_context: kubernetes.PodSecurityContext = Field(
        default_factory=dict,
        description="Merged into the pods' security context, which passes Pod Security "
        "`restricted`. A null removes a field: `runAsUser: null` where the "
        "cluster assigns the user ID.",
    )
    security_context: kubernetes.SecurityContext = Field(
        default_factory=dict, description="Merged into the containers' security context."
    )


ProxyUrl = Annotated[
    str,
    Text(
        r"^$|^https?://[A-Za-z0-9.-]+(:[0-9]+)?$",
        "the URL of a proxy without user and path, such as http://proxy.example.org:3128; one with "
        "a password belongs into the Secret of global.proxy.existingSecret",
    ),
]


class Proxy(Values):
    """The HTTP proxy through which all pods send requests that leave the cluster."""

    http: ProxyUrl = Field(
        default="",
        description="URL of the proxy for http.",
        examples=["http://proxy.example.org:3128"],
    )
    https: ProxyUrl = Field(
        default="",
        description="URL of the proxy for https. Its scheme is usually http, too.",
        examples=["http://proxy.example.org:3128"],
    )
    no_proxy: list[str] = Field(
        default_factory=list,
        description="Hosts and domains to reach without the proxy, besides those of the cluster: "
        "`.svc`, `.cluster.local`, the Services of the release and the Kubernetes API.",
        examples=[[".example.org", "collector.monitoring"]],
    )
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with the URLs instead, if they contain a password: `http-proxy`, "
        "`https-proxy` or both. It must also exist in the namespace of the flow pods.",
    )
    port: Port = Field(
        default=3128,
        description="Port of the proxy in `existingSecret`, for the NetworkPolicies.",
    )


class CaBundle(Values):
    """Certificates of the authorities that all pods trust instead of the images' own."""

    config_map: ObjectName = Field(
        default="",
        description="ConfigMap with the certificates in PEM format. It replaces the public "
        "authorities, so add theirs if pods reach public hosts. It must also exist in the "
        "namespace of the flow pods.",
    )
    secret: ObjectName = Field(default="", description="Secret with them instead.")
    key: SecretKey = Field(default="ca.crt", description="Key of the ConfigMap or Secret.")


class Global(PodSettings):
    """Defaults of every component. A setting of a component overrides them."""

    image_registry: Registry = Field(
        default="",
        description="Registry of every image that does not name one, for example a mirror.",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent",
        description="Pull policy of all images, including those of flow pods.",
    )
    image_pull_secrets: list[DnsLabel] = Field(
        default_factory=list,
        description="Names of the Secrets with the credentials to pull images.",
        examples=[["registry-credential"]],
    )
    proxy: Proxy = Field(default_factory=Proxy)
    ca_bundle: CaBundle = Field(default_factory=CaBundle)
    ip_family_policy: Literal["SingleStack", "PreferDualStack", "RequireDualStack"] | None = Field(
        default=None,
        description="IP family policy of all Services. Defaults to the cluster's, `SingleStack`.",
    )
    ip_families: list[Literal["IPv4", "IPv6"]] = Field(
        default_factory=list,
        max_length=2,
        description="IP families of all Services, the primary one first. Default: the cluster's.",
        examples=[["IPv6", "IPv4"]],
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels to add to every object."
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations to add to every object."
    )


Count = (
    Annotated[int, Field(ge=0)]
    | Annotated[str, Text(r"^[0-9]+%$", "a number or a percentage, such as 1 or 50%")]
)

"""A number of pods, or a percentage of them."""


class PodDisruptionBudget(Values):
    """PodDisruptionBudget, which is created when there are several replicas."""

    min_available: Count | None = Field(
        default=None, description="Minimum number or percentage of available pods."
    )
    max_unavailable: Count | None = Field(
        default=None, description="Maximum number or percentage of unavailable pods. Defaults to 1."
    )


class Autoscaling(Values):
    """HorizontalPodAutoscaler, which then controls the number of replicas."""

    enabled: bool = Field(
        default=False,
        description="Create a HorizontalPodAutoscaler. `replicas` is then not rendered.",
    )
    min_replicas: int = Field(default=2, ge=1, description="Minimum number of pods.")
    max_replicas: int = Field(default=5, ge=1, description="Maximum number of pods.")
    target_cpu: int = Field(
        default=80,
        ge=1,
        description="Target CPU utilization, as a percentage of the requested CPU.",
    )


class Service(Values):
    """Service of the component."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(
        default="ClusterIP", description="Type of the Service."
    )
    port: Port = Field(description="Port of the Service.")
    node_port: NodePort | None = Field(
        default=None, description="Port on each node, for type `NodePort`."
    )
    annotations: dict[str, str] = Field(
        default_factory=dict,
        description="Annotations of the Service, for example for a load balancer.",
    )


class StatefulStorage(Values):
    """The persistent volume of a StatefulSet."""

    size: Quantity = Field(description="Size of the volume.")
    storage_class: ObjectName = Field(
        default="",
        description="StorageClass of the volume. Defaults to the cluster's default class.",
    )
    keep: bool = Field(default=True, description="Keep the volume when the release is uninstalled.")


class Storage(StatefulStorage):
    """A persistent volume."""

    existing_claim: DnsLabel = Field(
        default="", description="Name of an existing PersistentVolumeClaim to use instead."
    )


class ServiceAccount(Values):
    """ServiceAccount of the component's pods."""

    create: bool = Field(
        default=True, description="Create the ServiceAccount. Otherwise the one in `name` is used."
    )
    name: DnsLabel = Field(
        default="",
        description="Name of the ServiceAccount. Defaults to a name made from the release's name.",
    )
    annotations: dict[str, str] = Field(
        default_factory=dict,
        description="Annotations of the ServiceAccount, for example for a cloud identity.",
    )


class Component(PodSettings):
    """A component with an image and resources."""

    image: Image
    resources: Resources
    service_account: ServiceAccount = Field(default_factory=ServiceAccount)


def resources(cpu: str, memory: str, memory_limit: str) -> Resources:
    """Return default resources: CPU is requested and not limited."""
    return Resources(
        requests={"cpu": cpu, "memory": memory},
        limits={"memory": memory_limit},
    )
