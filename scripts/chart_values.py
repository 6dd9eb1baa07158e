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
        default="", description="Registry; `global.imageRegistry` when empty."
    )
    repository: Repository = Field(description="Repository without the registry.")
    tag: str = Field(
        default="",
        description="Tag; the chart's appVersion when empty.",
        pattern=TAG,
    )
    digest: str = Field(
        default="",
        description="Digest (`sha256:…`); wins over the tag.",
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

    requests: dict[str, Quantity] = Field(default_factory=dict, description="What it needs.")
    limits: dict[str, Quantity] = Field(default_factory=dict, description="What it may use.")


class PodSettings(Values):
    """What can be said about any pod."""

    env: Env = Field(
        default_factory=dict,
        description="Environment variables by name: a value, or `secretKeyRef`, `configMapKeyRef`, "
        "`fieldRef` or `resourceFieldRef`. They win over the chart's own; null removes one.",
    )
    env_from: list[KubernetesObject] = Field(
        default_factory=list, description="Secrets and ConfigMaps whose keys become environment."
    )
    volumes: list[KubernetesObject] = Field(
        default_factory=list, description="Volumes to add to the pod."
    )
    volume_mounts: list[KubernetesObject] = Field(
        default_factory=list, description="Where the main container mounts them."
    )
    init_containers: list[KubernetesObject] = Field(
        default_factory=list, description="Containers that run to their end before the others."
    )
    sidecars: list[KubernetesObject] = Field(
        default_factory=list, description="Containers that run beside the main one."
    )
    pod_labels: dict[str, str] = Field(
        default_factory=dict, description="Labels of the pods alone."
    )
    pod_annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations of the pods alone."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that a node must have."
    )
    affinity: KubernetesObject = Field(
        default_factory=dict, description="Affinity to nodes and to other pods."
    )
    tolerations: list[KubernetesObject] = Field(
        default_factory=list, description="Taints that are tolerated."
    )
    topology_spread_constraints: list[KubernetesObject] = Field(
        default_factory=list,
        description="How replicas are spread. Without it, several replicas are spread over "
        "nodes where that is possible.",
    )
    priority_class_name: ObjectName = Field(default="", description="PriorityClass of the pods.")
    pod_security_context: KubernetesObject = Field(
        default_factory=dict,
        description="Merged into the pods' security context, which passes Pod Security "
        "`restricted`. A null removes a field: `runAsUser: null` for an id that the cluster gives.",
    )
    security_context: KubernetesObject = Field(
        default_factory=dict, description="Merged into the containers' security context."
    )
    dns_config: KubernetesObject = Field(default_factory=dict, description="DNS of the pods.")


class Global(PodSettings):
    """Defaults of every component; a component's own setting wins."""

    image_registry: Registry = Field(
        default="", description="Registry of every image that names none: a mirror in one value."
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="When images are pulled, flow images too."
    )
    image_pull_secrets: list[DnsLabel] = Field(
        default_factory=list, description="Names of the Secrets to pull images with."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of every object.")
    annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations of every object."
    )


class PodDisruptionBudget(Values):
    """How many pods a drained node may take away; rendered when there are several replicas."""

    min_available: int | str | None = Field(default=None, description="At least so many stay.")
    max_unavailable: int | str | None = Field(default=None, description="At most so many go (1).")


class Autoscaling(Values):
    """A HorizontalPodAutoscaler, which then owns the number of replicas."""

    enabled: bool = Field(
        default=False, description="Scale by load; `replicas` is then not rendered."
    )
    min_replicas: int = Field(default=2, ge=1, description="Never fewer.")
    max_replicas: int = Field(default=5, ge=1, description="Never more.")
    target_cpu: int = Field(
        default=80, ge=1, description="Wanted use of the requested CPU, in percent."
    )


class Service(Values):
    """The Service in front of a component."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(
        default="ClusterIP", description="Type of the Service."
    )
    port: Port = Field(description="Port of the Service.")
    node_port: NodePort | None = Field(
        default=None, description="Port on the nodes, for `NodePort`."
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations, for example of a load balancer."
    )


class Storage(Values):
    """A persistent volume."""

    size: Quantity = Field(description="Size of the volume.")
    storage_class: ObjectName = Field(
        default="", description="StorageClass; the cluster's default when empty."
    )
    existing_claim: DnsLabel = Field(
        default="", description="Use this PersistentVolumeClaim instead."
    )
    keep: bool = Field(default=True, description="Keep the volume when the release is removed.")


class StatefulStorage(Values):
    """The persistent volume of a StatefulSet."""

    size: Quantity = Field(description="Size of the volume.")
    storage_class: ObjectName = Field(
        default="", description="StorageClass; the cluster's default when empty."
    )
    keep: bool = Field(default=True, description="Keep the volume when the release is removed.")


class ServiceAccount(Values):
    """The identity of a component's pods."""

    create: bool = Field(default=True, description="Create it, or use the one named.")
    name: DnsLabel = Field(default="", description="Name; made from the release's name when empty.")
    annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations, for example of a cloud identity."
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
    """How clients show the Prefect API who they are."""

    type: Literal["basic", "apiKey", "none"] = Field(
        default="basic",
        description="`basic`: one auth string, for a self-hosted server. `apiKey`: Prefect Cloud. "
        "`none`: anybody who reaches the API may do anything.",
    )
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with the credential, also in the namespace of the flow pods. "
        "Created once, with a random password, when empty and the server is ours.",
    )
    key: SecretKey | Literal[""] = Field(
        default="", description="Its key; `auth-string` or `api-key` when empty."
    )


class Api(Values):
    """A Prefect API elsewhere, for a release that holds workers alone."""

    url: Url = Field(
        default="",
        description="Address of the API (`https://prefect.example.org/api`), "
        "with `server.enabled: false`.",
    )


class Retention(Values):
    """How long the server keeps what happened."""

    events_days: int = Field(default=7, ge=1, description="Events are deleted after so many days.")
    flow_runs_days: int = Field(
        default=90,
        ge=0,
        description="Finished flow runs are deleted after so many days; 0 keeps them.",
    )


class Sqlite(Values):
    """SQLite instead of PostgreSQL, for one server replica."""

    enabled: bool = Field(default=False, description="Keep the server's database in a file.")
    storage: Storage = Field(default_factory=lambda: Storage(size="1Gi"))


class Server(Component):
    """The Prefect server: API, web page and, with one replica, the background services."""

    enabled: bool = Field(
        default=True, description="Run a server; `api.url` names one elsewhere if not."
    )
    image: Image = Field(default_factory=lambda: Image(repository="prefect-hamilton/prefect"))
    replicas: int = Field(
        default=1,
        ge=1,
        description="More than one: these serve API and page, `backgroundServices` run apart, and "
        "PostgreSQL and Valkey are needed.",
    )
    host: Host = Field(default="", description="Host name for `ingress` and `gateway`.")
    url: Url = Field(
        default="",
        description="Address of the web page as people see it, for links in logs; "
        "made from `host` when empty.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="WARNING", description="Level of the server's log."
    )
    metrics: bool = Field(default=False, description="Serve Prometheus metrics under /api/metrics.")
    retention: Retention = Field(default_factory=Retention)
    sqlite: Sqlite = Field(default_factory=Sqlite)
    resources: Resources = Field(default_factory=lambda: _resources("100m", "320Mi", "1Gi"))
    autoscaling: Autoscaling = Field(default_factory=Autoscaling)
    pod_disruption_budget: PodDisruptionBudget = Field(default_factory=PodDisruptionBudget)
    service: Service = Field(default_factory=lambda: Service(port=4200))
    termination_grace_period_seconds: Seconds = Field(
        default=30, description="Time for requests to end before the pod is killed."
    )


class BackgroundServices(PodSettings):
    """Scheduler, late runs, automations and the like, in pods of their own."""

    separate: bool = Field(
        default=False,
        description="Run them apart from one API replica too; always so with several.",
    )
    replicas: int = Field(default=1, ge=1, description="Number of pods; they share the work.")
    resources: Resources = Field(default_factory=lambda: _resources("50m", "256Mi", "1Gi"))
    pod_disruption_budget: PodDisruptionBudget = Field(default_factory=PodDisruptionBudget)
    termination_grace_period_seconds: Seconds = Field(
        default=30, description="Time for running services to end."
    )


class Worker(Component):
    """What all workers share; `workers` has one entry a pool, which wins."""

    enabled: bool = Field(
        default=True,
        description="Run workers. Without them, deployments need a work pool that another release "
        "made.",
    )
    image: Image = Field(default_factory=lambda: Image(repository="prefect-hamilton/prefect"))
    replicas: int = Field(default=1, ge=0, description="Number of pods a pool.")
    poll_seconds: float = Field(
        default=1, gt=0, description="Time between two looks for scheduled runs, in seconds."
    )
    prefetch_seconds: int = Field(
        default=10, ge=0, description="How long before its time a run's pod is created, in seconds."
    )
    limit: int = Field(
        default=0, ge=0, description="Most flow runs at once for each pod; 0 for no limit."
    )
    work_queues: list[str] = Field(
        default_factory=list, description="Work queues to poll; all of the pool when empty."
    )
    cluster_uid: str = Field(
        default="",
        description="Name of this cluster in events, when several clusters share a pool.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Level of the worker's log."
    )
    resources: Resources = Field(default_factory=lambda: _resources("50m", "192Mi", "512Mi"))
    autoscaling: Autoscaling = Field(default_factory=Autoscaling)
    pod_disruption_budget: PodDisruptionBudget = Field(default_factory=PodDisruptionBudget)
    termination_grace_period_seconds: Seconds = Field(
        default=30, description="Time for a submission to end."
    )


class FlowSettings(Values):
    """Flow pods: the work pools' base job template. Job variables win, run by run."""

    image: Image | PoolImage | None = None
    command: str | None = Field(
        default="", description="Command that runs a flow; Prefect's own when empty."
    )
    resources: Resources | None = Field(
        default_factory=lambda: Resources(
            requests={"cpu": "25m", "memory": "128Mi"}, limits={"memory": "512Mi"}
        )
    )
    active_deadline_seconds: int | None = Field(
        default=86400,
        ge=0,
        description="A flow run's pod is ended after so many seconds; 0 for never.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=600, ge=0, description="A finished Job is deleted after so many seconds."
    )
    termination_grace_period_seconds: Seconds | None = Field(
        default=60,
        description="Time for a flow to react to its pod's end; Prefect itself takes up to 30 "
        "seconds.",
    )
    env: Env | None = Field(
        default_factory=dict,
        description="Environment variables by name: a value, or `secretKeyRef` and the like.",
    )
    env_from: list[KubernetesObject] | None = Field(
        default_factory=list, description="Secrets and ConfigMaps whose keys become environment."
    )
    volumes: list[KubernetesObject] | None = Field(
        default_factory=list, description="Volumes of flow pods."
    )
    volume_mounts: list[KubernetesObject] | None = Field(
        default_factory=list, description="Where flow containers mount them."
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
    affinity: KubernetesObject | None = Field(default_factory=dict, description="Affinity.")
    tolerations: list[KubernetesObject] | None = Field(
        default_factory=list, description="Taints that are tolerated."
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
    """What a private repository is cloned with: a token for HTTPS, a key for SSH."""

    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with `token`, or `ssh-privatekey` and `known_hosts`, also in the "
        "namespace of the flow pods.",
    )
    type: Literal["token", "ssh"] = Field(default="token", description="Which of the two it is.")


class Flows(FlowSettings):
    """The flow pods of all pools."""

    image: Image = Field(default_factory=lambda: Image(repository="prefect-hamilton/flows"))
    namespace: DnsLabel = Field(
        default="",
        description="Namespace of the flow pods; the release's when empty. Another one must exist.",
    )
    service_account: ServiceAccount = Field(default_factory=ServiceAccount)
    repository: str = Field(
        default="",
        description="Git URL of the flows; its prefect.yaml is registered. "
        "Nothing is registered when empty, unless there is `gitServer`.",
        pattern=GIT_URL,
    )
    ref: Annotated[str, StringConstraints(min_length=1)] = Field(
        default="main", description="Branch, tag or whole commit SHA."
    )
    submodules: bool = Field(
        default=False, description="Clone the Git submodules of the repository, too."
    )
    deployments: list[str] = Field(
        default_factory=lambda: ["*-k8s"],
        min_length=1,
        description="Which deployments of prefect.yaml are registered: names, or patterns.",
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
    """One work pool and its worker; what is not set comes from `worker` and `flows`."""

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
        default=None, ge=0, description="Most flow runs at once in the pool; no limit when absent."
    )
    flows: PoolFlows | None = Field(default=None, description="Flow pods of this pool.")


class GitServer(PodSettings):
    """A small Git server for development: flows of a working tree that is pushed nowhere else."""

    enabled: bool = Field(
        default=False,
        description="Run it; flow pods then clone from it. It asks for no password, and only flow "
        "pods and the bootstrap reach it.",
    )
    storage: Storage = Field(default_factory=lambda: Storage(size="1Gi", keep=False))
    resources: Resources = Field(default_factory=lambda: _resources("10m", "32Mi", "256Mi"))


class S3(Values):
    """An object store for the code snapshots, needed for several replicas."""

    bucket: ObjectName = Field(default="", description="Bucket; a volume is used when empty.")
    region: ObjectName = Field(default="", description="Region of the bucket.")
    endpoint_url: Url = Field(default="", description="Address of a store that is not Amazon's.")
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with `access-key-id` and `secret-access-key`; without it, the pods' "
        "own cloud identity is used.",
    )


class HamiltonRetention(Values):
    """The CronJob that deletes old Hamilton runs and ends those that were killed."""

    enabled: bool = Field(default=True, description="Run it.")
    schedule: str = Field(default="17 3 * * *", description="When, as a cron expression.")
    days: int = Field(
        default=90, ge=0, description="Runs are deleted after so many days; 0 keeps them."
    )
    stale_run_hours: int = Field(
        default=24,
        ge=0,
        description="A run that says Running for so many hours is ended as failed.",
    )


class HamiltonUi(Component):
    """The Hamilton UI: the tracking server and its page."""

    enabled: bool = Field(default=True, description="Run it.")
    image: Image = Field(default_factory=lambda: Image(repository="prefect-hamilton/hamilton-ui"))
    replicas: int = Field(default=1, ge=1, description="More than one needs `s3`.")
    processes: int = Field(
        default=1, ge=1, description="Processes of a pod, of eight threads each."
    )
    host: Host = Field(default="", description="Host name of its own for `ingress` and `gateway`.")
    url: Url = Field(
        default="", description="Address as people see it, for links; made from `host` when empty."
    )
    allowed_hosts: list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.*:\[\]-]+$")]] = (
        Field(default_factory=list, description="Further host names that requests may name.")
    )
    project: str = Field(default="flows", description="Project that flows report to.", min_length=1)
    username: str = Field(default="prefect", description="User that flows report as.", min_length=1)
    users: list[Annotated[str, StringConstraints(min_length=1)]] = Field(
        default_factory=list,
        description="Further users who see and change the project: each logs in with a name of "
        "this list (an e-mail address, say) and the API key.",
    )
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with `api-key` and `django-secret-key`, also in the namespace of the "
        "flow pods. Created once, with random values, when empty.",
    )
    storage: Storage = Field(default_factory=lambda: Storage(size="1Gi"))
    s3: S3 = Field(default_factory=S3)
    retention: HamiltonRetention = Field(default_factory=HamiltonRetention)
    resources: Resources = Field(default_factory=lambda: _resources("50m", "192Mi", "512Mi"))
    pod_disruption_budget: PodDisruptionBudget = Field(default_factory=PodDisruptionBudget)
    service: Service = Field(default_factory=lambda: Service(port=8241))
    termination_grace_period_seconds: Seconds = Field(
        default=30, description="Time for requests to end before the pod is killed."
    )


class Database(Values):
    """One database and its user."""

    name: Identifier = Field(description="Name of the database.")
    user: Identifier = Field(description="Name of its user.")
    key: SecretKey = Field(description="Key of the user's password in the Secret.")


class Databases(Values):
    """The databases: each component has one and can reach no other."""

    prefect: Database = Field(
        default_factory=lambda: Database(name="prefect", user="prefect", key="prefect-password")
    )
    hamilton: Database = Field(
        default_factory=lambda: Database(name="hamilton", user="hamilton", key="hamilton-password")
    )


class Tls(Values):
    """TLS to an external PostgreSQL."""

    enabled: bool = Field(
        default=False, description="Encrypt, and verify the server's certificate."
    )
    ca_secret: DnsLabel = Field(default="", description="Secret with the authority's `ca.crt`.")


class Warehouse(Values):
    """The database that flows load into."""

    enabled: bool = Field(default=True, description="Give flow pods `WAREHOUSE_URL`.")
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret in the namespace of the flow pods with the URL, for a warehouse "
        "elsewhere; the bundled PostgreSQL has a database `warehouse` otherwise.",
    )
    key: SecretKey = Field(default="warehouse-url", description="Its key.")


class Postgres(PodSettings):
    """PostgreSQL: a small one of our own, or one elsewhere."""

    enabled: bool = Field(
        default=True, description="Run a PostgreSQL for a first install; no replicas, no backups."
    )
    image: Image = Field(default_factory=lambda: Image(repository="postgres", tag="17"))
    host: Host = Field(default="", description="Host of one elsewhere, with `enabled: false`.")
    port: Port = Field(default=5432, description="Its port.")
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with the passwords (and `postgres-password`, `warehouse-password` and "
        "`warehouse-url` for ours). Created once, with random values, when empty and ours.",
    )
    databases: Databases = Field(default_factory=Databases)
    tls: Tls = Field(default_factory=Tls)
    storage: StatefulStorage = Field(default_factory=lambda: StatefulStorage(size="8Gi"))
    resources: Resources = Field(default_factory=lambda: _resources("50m", "128Mi", "512Mi"))
    parameters: dict[str, str] = Field(
        default_factory=dict, description="Server parameters by name (`max_connections: '200'`)."
    )


class Valkey(PodSettings):
    """Valkey (or Redis): messages between several server pods."""

    enabled: bool = Field(
        default=False, description="Run a Valkey; needed for several server replicas."
    )
    image: Image = Field(default_factory=lambda: Image(repository="valkey/valkey", tag="8"))
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with the URL of one elsewhere (`rediss://user:password@host:6379/0`, "
        "percent-encoded), with `enabled: false`; or with `password` and `url` for ours.",
    )
    url_key: SecretKey = Field(default="url", description="Its key.")
    port: Port = Field(default=6379, description="Port of one elsewhere, for the NetworkPolicies.")
    storage: StatefulStorage = Field(default_factory=lambda: StatefulStorage(size="1Gi"))
    resources: Resources = Field(default_factory=lambda: _resources("25m", "32Mi", "128Mi"))


class State(BaseModel):
    """More of what a server holds, in the form of bootstrap/desired-state.yaml."""

    model_config = ConfigDict(extra="forbid")

    variables: list[KubernetesObject] = Field(
        default_factory=list, description="Prefect variables."
    )
    blocks: list[KubernetesObject] = Field(
        default_factory=list, description="Blocks; their secrets come from `bootstrap.env`."
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
    """The Job that brings the server to what the values say."""

    enabled: bool = Field(
        default=True,
        description="Create and keep in step: work pools, variables, limits, the Hamilton project "
        "and the deployments.",
    )
    state: State = Field(default_factory=State)
    timeout_seconds: Seconds = Field(
        default=600, description="How long it waits for what it needs."
    )
    resources: Resources = Field(default_factory=lambda: _resources("25m", "192Mi", "1Gi"))


class SecretsJob(PodSettings):
    """The Job that creates missing Secrets with random values, and never changes one."""

    enabled: bool = Field(
        default=True,
        description="Create them; without it, every `existingSecret` in use must be named.",
    )
    resources: Resources = Field(default_factory=lambda: _resources("10m", "64Mi", "256Mi"))


class Ingress(Values):
    """An Ingress for `server.host` and `hamiltonUi.host`."""

    enabled: bool = Field(default=False, description="Render it.")
    class_name: ObjectName = Field(
        default="", description="IngressClass; the cluster's default when empty."
    )
    annotations: dict[str, str] = Field(default_factory=dict, description="Its annotations.")
    tls: bool = Field(default=False, description="Serve HTTPS.")
    tls_secret: DnsLabel = Field(
        default="", description="Secret with the certificate of both hosts; one a host when empty."
    )


class Gateway(Values):
    """HTTPRoutes of the Gateway API for the same hosts."""

    enabled: bool = Field(default=False, description="Render them.")
    parent_refs: list[KubernetesObject] = Field(
        default_factory=list, description="Gateways that they join."
    )
    annotations: dict[str, str] = Field(default_factory=dict, description="Their annotations.")
    tls: bool = Field(default=False, description="The Gateway's listener serves HTTPS.")


class NetworkPolicy(Values):
    """Who may talk to whom."""

    enabled: bool = Field(default=True, description="Render a NetworkPolicy for every component.")
    web_from: list[KubernetesObject] = Field(
        default_factory=list,
        description="Peers that may open the two web pages, beside our pods; anybody when empty.",
    )
    extra_egress: dict[str, list[KubernetesObject]] = Field(
        default_factory=dict,
        description="Further egress rules by component (`server`: a webhook of an automation; "
        "`bootstrap`: a Git server in the cluster whose pods listen at another port than its "
        "Service).",
    )
    flows_egress: list[KubernetesObject] | None = Field(
        default=None,
        description="Egress rules of flow pods beside what they need for Prefect, the Hamilton UI "
        "and the warehouse; they may reach everything while this is null.",
    )


class Rbac(Values):
    """Roles."""

    create: bool = Field(
        default=True,
        description="Create the Roles of the workers and of the Job that makes Secrets.",
    )


class ServiceMonitor(Values):
    """Prometheus Operator."""

    enabled: bool = Field(default=False, description="Render ServiceMonitors.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels that Prometheus selects."
    )
    interval: str = Field(
        default="30s", description="Time between two scrapes.", pattern=r"^([0-9]+(ms|[smhd]))+$"
    )


class PrometheusRule(Values):
    """Alerts of the Prometheus Operator."""

    enabled: bool = Field(
        default=False,
        description="Render alerts: server down, a component without a ready pod, a failed Job.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels that Prometheus selects."
    )
    rules: list[KubernetesObject] = Field(
        default_factory=list, description="Rules of your own, in the same group."
    )


class ChartValues(Values):
    """All values of the chart."""

    global_: Global = Field(default_factory=Global, alias="global")
    name_override: DnsLabel = Field(default="", description="Replaces the chart's name in names.")
    fullname_override: DnsLabel = Field(
        default="", description="Replaces `<release>-prefect-hamilton` in names.", max_length=40
    )
    rollout_token: str = Field(
        default="",
        description="Change it to roll every pod and run every Job again, for example after a "
        "Secret of yours has changed.",
    )
    auth: Auth = Field(default_factory=Auth)
    api: Api = Field(default_factory=Api)
    server: Server = Field(default_factory=Server)
    background_services: BackgroundServices = Field(default_factory=BackgroundServices)
    workers: dict[Annotated[str, StringConstraints(pattern=r"^[^/%\s]+$")], Pool] = Field(
        default_factory=dict,
        description="Work pools, each with its worker: the pool's name, and what differs from "
        "`worker` and `flows`. Those named are all there are; one named kubernetes when empty.",
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
        description="Objects of your own: mappings, or texts with the chart's templating.",
    )
