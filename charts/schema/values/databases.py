"""PostgreSQL, the warehouse and Valkey."""

from __future__ import annotations

from pydantic import Field

from charts.schema.values.common import (
    DnsLabel,
    Host,
    Identifier,
    Image,
    PodSettings,
    Port,
    Resources,
    SecretKey,
    StatefulStorage,
    Values,
    resources,
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
        description="Secret with the URL of an external warehouse. It must exist in the namespace "
        "of the release, where the bootstrap reads it, and in that of the flow pods. If empty, "
        "the database `warehouse` of the bundled PostgreSQL is used.",
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
    resources: Resources = Field(default_factory=lambda: resources("50m", "128Mi", "512Mi"))
    parameters: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="Server parameters of the bundled PostgreSQL by name.",
        examples=[{"max_connections": 200}],
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
    resources: Resources = Field(default_factory=lambda: resources("25m", "32Mi", "128Mi"))
