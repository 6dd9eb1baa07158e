"""
The values of the chart `prefect-hamilton`: names, types, defaults and what each one does.

This is the one source: `scripts/chart_schema.py` writes the chart's values.yaml,
values.schema.json and the table in its README from these models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

DNS_LABEL = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
HOST = r"^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
URL = r"^$|^https?://[A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._~%-]+)*$"
GIT_URL = r"^$|^(https?|ssh|git)://[A-Za-z0-9._~:@%+/-]+$|^[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:[A-Za-z0-9._~+/-]+$"
TAG = r"^$|^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"
DIGEST = r"^$|^sha256:[0-9a-f]{64}$"

Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9.]+([numkKMGTPE]i?)?$")] | int | float
DnsLabel = Annotated[str, StringConstraints(pattern=DNS_LABEL, max_length=63)]
Host = Annotated[str, StringConstraints(pattern=HOST, max_length=253)]
Url = Annotated[str, StringConstraints(pattern=URL)]
SecretKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$")]
ObjectName = Annotated[str, StringConstraints(pattern=r"^$|^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""Name of a class of the cluster, which may have dots."""
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
NodePort = Annotated[int, Field(ge=30000, le=32767)]
Seconds = Annotated[int, Field(ge=1)]
KubernetesObject = dict[str, Any]
"""A part of a Kubernetes object, passed on as it is; the API server checks it."""


class Values(BaseModel):
    """A closed mapping: a key that is not declared is refused. Keys are camelCase."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


Registry = Annotated[
    str, StringConstraints(pattern=r"^$|^[A-Za-z0-9]([A-Za-z0-9.:/_-]*[a-z0-9])?$")
]


Repository = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._/-]*[a-z0-9])?$", min_length=1)
]


class Image(Values):
    """A container image: `registry/repository:tag`, or `registry/repository@digest`."""

    registry: Registry = Field(
        default="", description="Registry of the image. Defaults to `global.imageRegistry`."
    )
    repository: Repository = Field(description="Repository, without the registry.")
    tag: str = Field(
        default="",
        description="Tag. Defaults to the chart's appVersion.",
        pattern=TAG,
    )
    digest: str = Field(
        default="",
        description="Digest (`sha256:…`). Takes precedence over the tag.",
        pattern=DIGEST,
    )


class PoolImage(Values):
    """What differs in a container image of one pool."""

    registry: Registry | None = None
    tag: str | None = Field(default=None, pattern=TAG)
    digest: str | None = Field(default=None, pattern=DIGEST)
    repository: Repository | None = None


class EnvSource(Values):
    """Where an environment variable's value comes from: exactly one of these."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    secret_key_ref: KubernetesObject | None = None
    config_map_key_ref: KubernetesObject | None = None
    field_ref: KubernetesObject | None = None
    resource_field_ref: KubernetesObject | None = None


Env = dict[
    Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")],
    str | int | float | bool | EnvSource | None,
]


class Resources(Values):
    """Requests and limits of a container."""

    requests: dict[str, Quantity] = Field(
        default_factory=dict, description="Requested CPU and memory."
    )
    limits: dict[str, Quantity] = Field(
        default_factory=dict, description="Limits of CPU and memory."
    )


class PodSettings(Values):
    """Settings of the pods of a component."""

    env: Env = Field(
        default_factory=dict,
        description="Environment variables by name: a value, or `secretKeyRef`, "
        "`configMapKeyRef`, `fieldRef` or `resourceFieldRef`. They override "
        "variables that the chart sets; null removes one.",
    )
    env_from: list[KubernetesObject] = Field(
        default_factory=list,
        description="Secrets and ConfigMaps whose keys become environment variables.",
    )
    volumes: list[KubernetesObject] = Field(
        default_factory=list, description="Volumes to add to the pods."
    )
    volume_mounts: list[KubernetesObject] = Field(
        default_factory=list, description="Volume mounts of the main container."
    )
    init_containers: list[KubernetesObject] = Field(
        default_factory=list, description="Init containers to add to the pods."
    )
    sidecars: list[KubernetesObject] = Field(
        default_factory=list, description="Containers to run beside the main container."
    )
    pod_labels: dict[str, str] = Field(
        default_factory=dict, description="Labels to add to the pods."
    )
    pod_annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations to add to the pods."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that a node must have."
    )
    affinity: KubernetesObject = Field(default_factory=dict, description="Affinity of the pods.")
    tolerations: list[KubernetesObject] = Field(
        default_factory=list, description="Tolerations of the pods."
    )
    topology_spread_constraints: list[KubernetesObject] = Field(
        default_factory=list,
        description="Topology spread constraints of the pods. By default, several replicas "
        "are spread over nodes where that is possible.",
    )
    priority_class_name: ObjectName = Field(default="", description="PriorityClass of the pods.")
    pod_security_context: KubernetesObject = Field(
        default_factory=dict,
        description="Merged into the pods' security context, which passes Pod Security "
        "`restricted`. A null removes a field: `runAsUser: null` where the "
        "cluster assigns the user ID.",
    )
    security_context: KubernetesObject = Field(
        default_factory=dict, description="Merged into the containers' security context."
    )
    dns_config: KubernetesObject = Field(
        default_factory=dict, description="DNS configuration of the pods."
    )


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
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels to add to every object."
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations to add to every object."
    )


class PodDisruptionBudget(Values):
    """PodDisruptionBudget, which is created when there are several replicas."""

    min_available: int | str | None = Field(
        default=None, description="Minimum number or percentage of available pods."
    )
    max_unavailable: int | str | None = Field(
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


class Storage(Values):
    """A persistent volume."""

    size: Quantity = Field(description="Size of the volume.")
    storage_class: ObjectName = Field(
        default="",
        description="StorageClass of the volume. Defaults to the cluster's default class.",
    )
    existing_claim: DnsLabel = Field(
        default="", description="Name of an existing PersistentVolumeClaim to use instead."
    )
    keep: bool = Field(default=True, description="Keep the volume when the release is uninstalled.")


class StatefulStorage(Values):
    """The persistent volume of a StatefulSet."""

    size: Quantity = Field(description="Size of the volume.")
    storage_class: ObjectName = Field(
        default="",
        description="StorageClass of the volume. Defaults to the cluster's default class.",
    )
    keep: bool = Field(default=True, description="Keep the volume when the release is uninstalled.")


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


def _resources(cpu: str, memory: str, memory_limit: str) -> Resources:
    return Resources(
        requests={"cpu": cpu, "memory": memory},
        limits={"memory": memory_limit},
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
        description="Secret with the credential. It must also exist in the namespace of the "
        "flow pods. If empty, the release's own server gets a Secret with a "
        "random password on first install.",
    )
    key: SecretKey | Literal[""] = Field(
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
        " `host`.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="WARNING", description="Log level of the server."
    )
    metrics: bool = Field(default=False, description="Serve Prometheus metrics at /api/metrics.")
    retention: Retention = Field(default_factory=Retention)
    sqlite: Sqlite = Field(default_factory=Sqlite)
    resources: Resources = Field(default_factory=lambda: _resources("100m", "320Mi", "1Gi"))
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
    resources: Resources = Field(default_factory=lambda: _resources("50m", "256Mi", "1Gi"))
    pod_disruption_budget: PodDisruptionBudget = Field(default_factory=PodDisruptionBudget)
    termination_grace_period_seconds: Seconds = Field(
        default=30,
        description="Number of seconds for the services to finish before the pod is killed.",
    )


class Worker(Component):
    """Settings of all workers. An entry of `workers` overrides them for one work pool."""

    enabled: bool = Field(
        default=True,
        description="Run workers. Otherwise another release must run the workers of the work "
        "pools.",
    )
    image: Image = Field(default_factory=lambda: Image(repository="prefect-hamilton/prefect"))
    replicas: int = Field(default=1, ge=0, description="Number of worker pods per work pool.")
    poll_seconds: float = Field(
        default=1, gt=0, description="Number of seconds between two polls for scheduled flow runs."
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
    resources: Resources = Field(default_factory=lambda: _resources("50m", "192Mi", "512Mi"))
    autoscaling: Autoscaling = Field(default_factory=Autoscaling)
    pod_disruption_budget: PodDisruptionBudget = Field(default_factory=PodDisruptionBudget)
    termination_grace_period_seconds: Seconds = Field(
        default=30,
        description="Number of seconds for a submission to finish before the pod is killed.",
    )


class FlowSettings(Values):
    """Flow pods: the base job template of the work pools.

    Job variables override it per deployment or flow run.
    """

    image: Image | PoolImage | None = None
    command: str | None = Field(
        default="",
        description="Command that runs a flow run. Defaults to the command of Prefect's worker.",
    )
    resources: Resources | None = Field(
        default_factory=lambda: Resources(
            requests={"cpu": "25m", "memory": "128Mi"}, limits={"memory": "512Mi"}
        )
    )
    active_deadline_seconds: int | None = Field(
        default=86400,
        ge=0,
        description="Number of seconds after which the pod of a flow run is terminated. 0 "
        "means never.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=600, ge=0, description="Number of seconds after which a finished Job is deleted."
    )
    termination_grace_period_seconds: Seconds | None = Field(
        default=60,
        description="Number of seconds for a flow to finish when its pod is terminated. "
        "Prefect itself takes up to 30 seconds.",
    )
    env: Env | None = Field(
        default_factory=dict,
        description="Environment variables by name: a value, or `secretKeyRef`, "
        "`configMapKeyRef`, `fieldRef` or `resourceFieldRef`.",
    )
    env_from: list[KubernetesObject] | None = Field(
        default_factory=list,
        description="Secrets and ConfigMaps whose keys become environment variables.",
    )
    volumes: list[KubernetesObject] | None = Field(
        default_factory=list, description="Volumes of flow pods."
    )
    volume_mounts: list[KubernetesObject] | None = Field(
        default_factory=list, description="Volume mounts of flow containers."
    )
    pod_labels: dict[str, str] | None = Field(
        default_factory=dict, description="Labels of flow pods."
    )
    pod_annotations: dict[str, str] | None = Field(
        default_factory=dict, description="Annotations of flow pods."
    )
    node_selector: dict[str, str] | None = Field(
        default_factory=dict, description="Labels that a node must have."
    )
    affinity: KubernetesObject | None = Field(
        default_factory=dict, description="Affinity of flow pods."
    )
    tolerations: list[KubernetesObject] | None = Field(
        default_factory=list, description="Tolerations of the pods."
    )
    priority_class_name: ObjectName | None = Field(
        default="", description="PriorityClass of flow pods."
    )
    pod_security_context: KubernetesObject | None = Field(
        default_factory=dict, description="Merged into flow pods' security context."
    )
    security_context: KubernetesObject | None = Field(
        default_factory=dict, description="Merged into flow containers' security context."
    )


class GitCredential(Values):
    """Credential of a private flows repository: a token for HTTPS or a key for SSH."""

    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with `token`, or with `ssh-privatekey` and `known_hosts`. It must"
        " also exist in the namespace of the flow pods.",
    )
    type: Literal["token", "ssh"] = Field(default="token", description="Type of the credential.")


class Flows(FlowSettings):
    """Flow pods of all work pools: the base job template, which job variables override."""

    image: Image = Field(default_factory=lambda: Image(repository="prefect-hamilton/flows"))
    namespace: DnsLabel = Field(
        default="",
        description="Namespace of the flow pods, which must exist. Defaults to the namespace "
        "of the release.",
    )
    service_account: ServiceAccount = Field(default_factory=ServiceAccount)
    repository: str = Field(
        default="",
        description="Git URL of the flows repository. The deployments of its prefect.yaml are"
        " registered. If empty, nothing is registered, unless `gitServer` is "
        "enabled.",
        pattern=GIT_URL,
    )
    ref: Annotated[str, StringConstraints(min_length=1)] = Field(
        default="main", description="Branch, tag or whole commit SHA of the flows repository."
    )
    submodules: bool = Field(
        default=False, description="Clone the repository's Git submodules, too."
    )
    deployments: list[str] = Field(
        default_factory=lambda: ["*-k8s"],
        min_length=1,
        description="Names or patterns of the deployments in prefect.yaml to register.",
    )
    git_credential: GitCredential = Field(default_factory=GitCredential)


class PoolFlows(FlowSettings):
    """What flow pods of one pool have of their own."""

    image: PoolImage | None = None
    command: str | None = None
    resources: Resources | None = None
    active_deadline_seconds: int | None = Field(default=None, ge=0)
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0)
    termination_grace_period_seconds: Seconds | None = None
    env: Env | None = None
    env_from: list[KubernetesObject] | None = None
    volumes: list[KubernetesObject] | None = None
    volume_mounts: list[KubernetesObject] | None = None
    pod_labels: dict[str, str] | None = None
    pod_annotations: dict[str, str] | None = None
    node_selector: dict[str, str] | None = None
    affinity: KubernetesObject | None = None
    tolerations: list[KubernetesObject] | None = None
    priority_class_name: ObjectName | None = None
    pod_security_context: KubernetesObject | None = None
    security_context: KubernetesObject | None = None


class Pool(PodSettings):
    """One work pool and its worker. Settings that are absent come from `worker` and `flows`."""

    image: PoolImage | None = None
    replicas: int | None = Field(default=None, ge=0)
    poll_seconds: float | None = Field(default=None, gt=0)
    prefetch_seconds: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=0)
    work_queues: list[str] | None = None
    cluster_uid: str | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] | None = None
    resources: Resources | None = None
    autoscaling: Autoscaling | None = None
    pod_disruption_budget: PodDisruptionBudget | None = None
    termination_grace_period_seconds: Seconds | None = None
    concurrency_limit: int | None = Field(
        default=None,
        ge=0,
        description="Maximum number of concurrent flow runs in the work pool. Unlimited by "
        "default.",
    )
    flows: PoolFlows | None = Field(
        default=None, description="Settings of the flow pods of this pool."
    )


class GitServer(PodSettings):
    """A small Git server for development, to which a working tree is pushed."""

    enabled: bool = Field(
        default=False,
        description="Run a Git server, from which flow pods clone. It requires no password. "
        "Only flow pods and the bootstrap can reach it.",
    )
    storage: Storage = Field(default_factory=lambda: Storage(size="1Gi", keep=False))
    resources: Resources = Field(default_factory=lambda: _resources("10m", "32Mi", "256Mi"))


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
    schedule: str = Field(
        default="17 3 * * *", description="Schedule of the CronJob, as a cron expression."
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
        "from `host`.",
    )
    allowed_hosts: list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.*:\[\]-]+$")]] = (
        Field(default_factory=list, description="Additional host names that requests may use.")
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
        "a name from this list (for example an e-mail address) and the API key.",
    )
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with `api-key` and `django-secret-key`. It must also exist in the"
        " namespace of the flow pods. If empty, one with random values is created"
        " on first install.",
    )
    storage: Storage = Field(default_factory=lambda: Storage(size="1Gi"))
    s3: S3 = Field(default_factory=S3)
    retention: HamiltonRetention = Field(default_factory=HamiltonRetention)
    resources: Resources = Field(default_factory=lambda: _resources("50m", "192Mi", "512Mi"))
    pod_disruption_budget: PodDisruptionBudget = Field(default_factory=PodDisruptionBudget)
    service: Service = Field(default_factory=lambda: Service(port=8241))
    termination_grace_period_seconds: Seconds = Field(
        default=30, description="Number of seconds for requests to finish before the pod is killed."
    )


class Database(Values):
    """One database and its user."""

    name: Identifier = Field(description="Name of the database.")
    user: Identifier = Field(description="Name of the database's user.")
    key: SecretKey = Field(description="Key of the user's password in the Secret.")


class Databases(Values):
    """One database per component, each with its own user."""

    prefect: Database = Field(
        default_factory=lambda: Database(name="prefect", user="prefect", key="prefect-password")
    )
    hamilton: Database = Field(
        default_factory=lambda: Database(name="hamilton", user="hamilton", key="hamilton-password")
    )


class Tls(Values):
    """TLS of an external PostgreSQL."""

    enabled: bool = Field(default=False, description="Use TLS and verify the server's certificate.")
    ca_secret: DnsLabel = Field(
        default="", description="Secret with the certificate authority as `ca.crt`."
    )


class Warehouse(Values):
    """Database into which flows load data."""

    enabled: bool = Field(default=True, description="Set `WAREHOUSE_URL` in flow pods.")
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with the URL of an external warehouse, in the namespace of the "
        "flow pods. If empty, the database `warehouse` of the bundled PostgreSQL "
        "is used.",
    )
    key: SecretKey = Field(default="warehouse-url", description="Key of the URL in the Secret.")


class Postgres(PodSettings):
    """PostgreSQL, bundled or external."""

    enabled: bool = Field(
        default=True,
        description="Run the bundled PostgreSQL, which suits a first install: it has neither "
        "replicas nor backups.",
    )
    image: Image = Field(default_factory=lambda: Image(repository="postgres", tag="17"))
    host: Host = Field(
        default="", description="Host of an external PostgreSQL, with `enabled: false`."
    )
    port: Port = Field(default=5432, description="Port of PostgreSQL.")
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with the passwords of the databases' users. The bundled "
        "PostgreSQL also needs `postgres-password`, `warehouse-password` and "
        "`warehouse-url`. If empty, the bundled PostgreSQL gets a Secret with "
        "random values on first install.",
    )
    databases: Databases = Field(default_factory=Databases)
    tls: Tls = Field(default_factory=Tls)
    storage: StatefulStorage = Field(default_factory=lambda: StatefulStorage(size="8Gi"))
    resources: Resources = Field(default_factory=lambda: _resources("50m", "128Mi", "512Mi"))
    parameters: dict[str, str] = Field(
        default_factory=dict, description="Server parameters by name (`max_connections: '200'`)."
    )


class Valkey(PodSettings):
    """Valkey or Redis, bundled or external: messaging between several server pods."""

    enabled: bool = Field(
        default=False,
        description="Run the bundled Valkey. Several server replicas require it or an "
        "external one.",
    )
    image: Image = Field(default_factory=lambda: Image(repository="valkey/valkey", tag="8"))
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with the percent-encoded URL of an external Valkey or Redis "
        "(`rediss://user:password@host:6379/0`), with `enabled: false`. For the "
        "bundled Valkey, a Secret with `password` and `url`.",
    )
    url_key: SecretKey = Field(default="url", description="Key of the URL in the Secret.")
    port: Port = Field(
        default=6379, description="Port of an external Valkey or Redis, for the NetworkPolicies."
    )
    storage: StatefulStorage = Field(default_factory=lambda: StatefulStorage(size="1Gi"))
    resources: Resources = Field(default_factory=lambda: _resources("25m", "32Mi", "128Mi"))


class State(BaseModel):
    """Additional objects of the Prefect server, in the format of the image's desired-state.yaml."""

    model_config = ConfigDict(extra="forbid")

    variables: list[KubernetesObject] = Field(
        default_factory=list, description="Prefect variables."
    )
    blocks: list[KubernetesObject] = Field(
        default_factory=list, description="Prefect blocks. Their secrets come from `bootstrap.env`."
    )
    global_concurrency_limits: list[KubernetesObject] = Field(
        default_factory=list, description="Global concurrency limits."
    )
    tag_concurrency_limits: list[KubernetesObject] = Field(
        default_factory=list, description="Concurrency limits of task tags."
    )
    automations: list[KubernetesObject] = Field(
        default_factory=list, description="Automations that run a deployment on an event."
    )


class Bootstrap(PodSettings):
    """Job that reconciles the server and the Hamilton UI with values and flows repository."""

    enabled: bool = Field(
        default=True,
        description="Create and update work pools, variables, concurrency limits, "
        "automations, the Hamilton project and the deployments.",
    )
    state: State = Field(default_factory=State)
    timeout_seconds: Seconds = Field(
        default=600,
        description="Number of seconds to wait for the Prefect server and the Hamilton UI.",
    )
    resources: Resources = Field(default_factory=lambda: _resources("25m", "192Mi", "1Gi"))


class SecretsJob(PodSettings):
    """Job that creates missing Secrets with random values.

    It never changes an existing Secret.
    """

    enabled: bool = Field(
        default=True,
        description="Create missing Secrets. Otherwise every `existingSecret` in use must be set.",
    )
    resources: Resources = Field(default_factory=lambda: _resources("10m", "64Mi", "256Mi"))


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
    parent_refs: list[KubernetesObject] = Field(
        default_factory=list, description="Gateways to which the HTTPRoutes attach."
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations of the HTTPRoutes."
    )
    tls: bool = Field(default=False, description="Whether the Gateway's listener serves HTTPS.")


class NetworkPolicy(Values):
    """NetworkPolicies."""

    enabled: bool = Field(default=True, description="Create a NetworkPolicy for every component.")
    web_from: list[KubernetesObject] = Field(
        default_factory=list,
        description="Peers that may connect to the Prefect UI and the Hamilton UI, in "
        "addition to the release's pods. If empty, everyone may.",
    )
    extra_egress: dict[str, list[KubernetesObject]] = Field(
        default_factory=dict,
        description="Additional egress rules by component, for example `server` for the "
        "webhook of an automation, or `bootstrap` for a Git server in the cluster"
        " whose pods listen on another port than its Service.",
    )
    flows_egress: list[KubernetesObject] | None = Field(
        default=None,
        description="Egress rules of flow pods, in addition to those for Prefect, the "
        "Hamilton UI and the warehouse. If null, flow pods may connect to any "
        "address.",
    )


class Rbac(Values):
    """RBAC objects."""

    create: bool = Field(
        default=True,
        description="Create the Roles of the workers and of the Job that creates Secrets.",
    )


class ServiceMonitor(Values):
    """ServiceMonitors of the Prometheus Operator."""

    enabled: bool = Field(default=False, description="Create ServiceMonitors.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels by which Prometheus selects the object."
    )
    interval: str = Field(
        default="30s",
        description="Interval between two scrapes.",
        pattern=r"^([0-9]+(ms|[smhd]))+$",
    )


class PrometheusRule(Values):
    """PrometheusRule of the Prometheus Operator."""

    enabled: bool = Field(
        default=False,
        description="Create alerts for a server that is down, a component without a ready pod"
        " and a failed Job.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels by which Prometheus selects the object."
    )
    rules: list[KubernetesObject] = Field(
        default_factory=list, description="Additional rules of the same group."
    )


class ChartValues(Values):
    """All values of the chart."""

    global_: Global = Field(default_factory=Global, alias="global")
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
    auth: Auth = Field(default_factory=Auth)
    api: Api = Field(default_factory=Api)
    server: Server = Field(default_factory=Server)
    background_services: BackgroundServices = Field(default_factory=BackgroundServices)
    workers: dict[Annotated[str, StringConstraints(pattern=r"^[^/%\s]+$")], Pool] = Field(
        default_factory=dict,
        description="Work pools by name, each with the settings that differ from `worker` and"
        " `flows`. Only the pools listed here are created. If empty, one pool "
        "named `kubernetes` is created.",
    )
    worker: Worker = Field(default_factory=Worker)
    flows: Flows = Field(default_factory=Flows)
    git_server: GitServer = Field(default_factory=GitServer)
    hamilton_ui: HamiltonUi = Field(default_factory=HamiltonUi)
    postgres: Postgres = Field(default_factory=Postgres)
    warehouse: Warehouse = Field(default_factory=Warehouse)
    valkey: Valkey = Field(default_factory=Valkey)
    bootstrap: Bootstrap = Field(default_factory=Bootstrap)
    secrets: SecretsJob = Field(default_factory=SecretsJob)
    ingress: Ingress = Field(default_factory=Ingress)
    gateway: Gateway = Field(default_factory=Gateway)
    network_policy: NetworkPolicy = Field(default_factory=NetworkPolicy)
    rbac: Rbac = Field(default_factory=Rbac)
    service_monitor: ServiceMonitor = Field(default_factory=ServiceMonitor)
    prometheus_rule: PrometheusRule = Field(default_factory=PrometheusRule)
    extra_objects: list[KubernetesObject | str] = Field(
        default_factory=list,
        description="Additional objects: mappings, or strings that are rendered as templates.",
    )
