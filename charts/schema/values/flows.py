"""The flow pods and the repository of the flows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from charts.schema import kubernetes
from charts.schema.text import Text
from charts.schema.values.common import (
    TOLERATION,
    DnsLabel,
    Env,
    EnvFrom,
    GitUrl,
    Image,
    ObjectName,
    Placement,
    PodSettings,
    Resources,
    Seconds,
    ServiceAccount,
    Storage,
    TopologySpread,
    Values,
    resources,
)

ModuleName = Annotated[
    str,
    Text(
        r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$",
        "the name of a Python module, such as pandas or sklearn.linear_model",
    ),
]


class Standby(Values):
    """Flow pods that are started before there is a flow run for them, so that it starts faster."""

    count: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Number of idle flow pods of each work pool. Each uses its requests and about "
        "90 MB. A flow run whose job variables change the pod gets a new one. See "
        "docs/pods.md.",
    )
    max_age_seconds: int = Field(
        default=900,
        ge=60,
        description="Number of seconds after which an idle pod is replaced, so that it has new "
        "values of Secrets.",
    )
    preload: list[ModuleName] = Field(
        default_factory=list,
        description="Python modules that idle pods import, besides Prefect.",
        examples=[["pandas", "hamilton.driver"]],
    )


BucketUrl = Annotated[
    str,
    Text(
        r"^$|^(s3|gs|gcs|az|abfs|abfss)://[A-Za-z0-9][A-Za-z0-9._@/-]*[A-Za-z0-9]$",
        "the URL of a bucket, such as s3://my-bucket/results, gs://my-bucket or az://my-container",
    ),
]


class Results(Values):
    """Where persisted results and task caches of flows are, so that later pods find them."""

    bucket: BucketUrl = Field(
        default="",
        description="Bucket, with an optional path: `s3://…`, `gs://…` or `az://…`. For the "
        "last two, the image of the flow pods needs the library's extra `gcs` or `azure`. "
        "A work pool can have another bucket or path, and an empty one turns it off for the pool.",
        examples=["s3://my-bucket/results"],
    )
    existing_secret: DnsLabel = Field(
        default="",
        description="Secret whose keys become environment variables of flow pods: the bucket's "
        "credential, such as `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`. Not needed with a "
        "workload identity in `flows.serviceAccount.annotations`.",
    )
    existing_claim: DnsLabel = Field(
        default="",
        description="PersistentVolumeClaim to use instead of a bucket. Flow pods mount it at "
        "`/results`.",
    )


class FlowSettings(Placement):
    """Flow pods: the base job template of the work pools.

    Job variables override it per deployment or flow run.
    """

    namespace: DnsLabel = Field(
        default="",
        description="Namespace of the flow pods, which must exist. Defaults to the namespace "
        "of the release. The worker stays in the namespace of the release.",
    )
    service_account: ServiceAccount = Field(default_factory=ServiceAccount)
    image: Image = Field(default_factory=lambda: Image(repository="prefect-hamilton/flows"))
    command: str = Field(
        default="",
        description="Command that runs a flow run. Defaults to the command of Prefect's worker.",
    )
    resources: Resources = Field(
        default_factory=lambda: Resources(
            requests={"cpu": "25m", "memory": "128Mi"}, limits={"memory": "512Mi"}
        )
    )
    active_deadline_seconds: int = Field(
        default=86400,
        ge=0,
        description="Number of seconds after which the pod of a flow run is terminated. 0 "
        "means never.",
    )
    ttl_seconds_after_finished: int = Field(
        default=600, ge=0, description="Number of seconds after which a finished Job is deleted."
    )
    termination_grace_period_seconds: Seconds = Field(
        default=60,
        description="Number of seconds for a flow to finish when its pod is terminated. "
        "Prefect itself takes up to 30 seconds.",
    )
    env: Env = Field(
        default_factory=dict,
        description="Environment variables by name: a value, or `secretKeyRef`, "
        "`configMapKeyRef`, `fieldRef` or `resourceFieldRef`.",
        examples=[
            {
                "LOG_LEVEL": "DEBUG",
                "API_TOKEN": {"secretKeyRef": {"name": "my-secret", "key": "token"}},
            }
        ],
    )
    env_from: EnvFrom = Field(default_factory=list)
    store_env_as_secret: bool = Field(
        default=False,
        description="Keep the environment variables of each flow run in a Secret of its Job, and "
        "not in the Job. The worker gets the right to create Secrets in the namespace of the flow "
        "pods. Not with `flows.standby`. See docs/pods.md.",
    )
    volumes: list[kubernetes.Volume] = Field(
        default_factory=list,
        description="Volumes of flow pods.",
        examples=[[{"name": "cache", "persistentVolumeClaim": {"claimName": "uv-cache"}}]],
    )
    volume_mounts: list[kubernetes.VolumeMount] = Field(
        default_factory=list,
        description="Volume mounts of flow containers.",
        examples=[[{"name": "cache", "mountPath": "/uv-cache"}]],
    )
    init_containers: list[kubernetes.Container] = Field(
        default_factory=list, description="Containers that run before the flow."
    )
    sidecars: list[kubernetes.Container] = Field(
        default_factory=list,
        description="Containers that start before the flow and end after it.",
    )
    pod_labels: dict[str, str] = Field(default_factory=dict, description="Labels of flow pods.")
    pod_annotations: dict[str, str] = Field(
        default_factory=dict, description="Annotations of flow pods."
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that a node must have."
    )
    affinity: kubernetes.Affinity = Field(
        default_factory=dict,
        description="Rules that prefer or require nodes for flow pods, as in `global.affinity`.",
    )
    tolerations: list[kubernetes.Toleration] = Field(
        default_factory=list,
        description="Taints of nodes that flow pods tolerate.",
        examples=[[TOLERATION]],
    )
    topology_spread_constraints: TopologySpread = Field(
        default_factory=list, description="Topology spread constraints of flow pods."
    )
    priority_class_name: ObjectName = Field(default="", description="PriorityClass of flow pods.")
    pod_security_context: kubernetes.PodSecurityContext = Field(
        default_factory=dict, description="Merged into flow pods' security context."
    )
    security_context: kubernetes.SecurityContext = Field(
        default_factory=dict, description="Merged into flow containers' security context."
    )
    pod_template: kubernetes.PodTemplatePatch = Field(
        default_factory=dict,
        description="Merged over the template of flow pods and over job variables: containers by "
        "name (the flow's is `prefect-job`); environment variables, volumes and mounts with the "
        "same name or path are replaced, and so is any other list.",
        examples=[{"spec": {"shareProcessNamespace": True}}],
    )
    pod_security: Literal["restricted", "privileged"] = Field(
        default="restricted",
        description="Level of Pod Security of flow pods. A flow run whose pod would break "
        "`restricted` is Crashed with the reason; `privileged` allows everything.",
    )
    standby: Standby = Field(default_factory=Standby)
    results: Results = Field(default_factory=Results)
    allowed_service_accounts: list[ObjectName] = Field(
        default_factory=list,
        description="ServiceAccounts that a deployment may name in `service_account_name`, besides"
        " that of `flows.serviceAccount`. Each must exist in the namespace of the flow pods.",
        examples=[["reader-of-the-bucket"]],
    )


class GitCredential(Values):
    """Credential of a private flows repository: a token for HTTPS or a key for SSH."""

    existing_secret: DnsLabel = Field(
        default="",
        description="Secret with `token`, or with `ssh-privatekey` and `known_hosts`. One of type"
        " `ssh` must also exist in the namespace of the flow pods.",
    )
    type: Literal["token", "ssh"] = Field(default="token", description="Type of the credential.")


GitRef = Annotated[str, Text(r"^\S+$", "a branch, a tag or a whole commit SHA, such as main")]

RepositoryName = Annotated[
    str,
    StringConstraints(max_length=20),
    Text(
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        "a name of lowercase letters, digits and hyphens, such as team-a",
    ),
]

RepositoryPath = Annotated[
    str,
    Text(
        r"^([A-Za-z0-9_*][A-Za-z0-9._*-]*/)*[A-Za-z0-9_*][A-Za-z0-9._*-]*$|^\.$",
        "a path below the repository's folder, such as teams/a",
    ),
]


class FlowRepository(Values):
    """One of several flows repositories."""

    url: Annotated[GitUrl, StringConstraints(min_length=1)] = Field(
        description="Git URL of the repository."
    )
    ref: GitRef = Field(default="main", description="Branch, tag or whole commit SHA.")
    path: RepositoryPath = Field(
        default=".",
        description="Folder of the repository that contains prefect.yaml and prefect-state.yaml.",
    )
    prefect_files: list[RepositoryPath] = Field(
        default_factory=lambda: ["prefect.yaml"],
        min_length=1,
        description="Names or patterns, below `path`, of the files with deployments.",
    )
    deployments: list[str] = Field(
        default_factory=lambda: ["*-k8s"],
        min_length=1,
        description="Names or patterns of the deployments to register.",
    )
    submodules: bool = Field(default=False, description="Clone its Git submodules, too.")
    git_credential: GitCredential = Field(
        default_factory=GitCredential, description="Credential of a private repository."
    )
    pools: list[str] = Field(
        default_factory=list,
        description="Work pools that its deployments may use. Defaults to all pools of the "
        "release.",
    )
    tags: list[str] = Field(
        default_factory=list, description="Tags to add to each of its deployments."
    )
    prune: bool = Field(
        default=True,
        description="Delete objects that the bootstrap created when the repository no longer names"
        " them, or is no longer in the map.",
    )


class Flows(FlowSettings):
    """Flow pods of all work pools: the base job template, which job variables override."""

    repository: GitUrl = Field(
        default="",
        description="Git URL of the flows repository. The deployments of its prefect.yaml are"
        " registered. If empty, nothing is registered, unless `gitServer` is "
        "enabled.",
    )
    ref: GitRef = Field(
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
    repositories: dict[RepositoryName, FlowRepository] = Field(
        default_factory=dict,
        description="Several flows repositories by name, in place of `repository` and the keys "
        "beside it.",
        examples=[
            {
                "team-a": {
                    "url": "https://git.example.org/a/flows.git",
                    "gitCredential": {"existingSecret": "git-a"},
                    "pools": ["kubernetes"],
                },
                "team-b": {
                    "url": "https://git.example.org/mono.git",
                    "path": "teams/b",
                    "tags": ["team-b"],
                },
            }
        ],
    )


class GitServer(PodSettings):
    """A small Git server for development, to which a working tree is pushed."""

    enabled: bool = Field(
        default=False,
        description="Run a Git server, from which flow pods clone. It requires no password. "
        "Only flow pods and the bootstrap can reach it.",
    )
    storage: Storage = Field(default_factory=lambda: Storage(size="1Gi", keep=False))
    resources: Resources = Field(default_factory=lambda: resources("10m", "32Mi", "256Mi"))
