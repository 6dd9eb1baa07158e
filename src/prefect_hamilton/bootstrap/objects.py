"""The kinds of objects on a Prefect server that the bootstrap writes, all with the same calls.

The fields of an object are those that a file of desired state can set, by name.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import quote
from uuid import UUID

import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import (
    DeploymentUpdate,
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    VariableCreate,
    VariableUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from typing_extensions import override

from prefect_hamilton.bootstrap import prefect_schemas

Fields = dict[str, Any]

DEPLOYMENT = "deployment"
AUTOMATION = "automation"
VARIABLE = "variable"
GLOBAL_LIMIT = "global concurrency limit"
TAG_LIMIT = "tag concurrency limit"
WORK_POOL = "work pool"
WORK_QUEUE = "work queue"
BLOCK = " block"
"""What the label of a block ends with; it begins with the type."""


@dataclass(frozen=True)
class Found:
    """An object of the server; `more` is what an update of its kind needs besides its fields."""

    id: UUID
    fields: Fields
    more: Any = field(default=None, repr=False)


class Kind(ABC):
    """Reads and writes the objects of one kind."""

    label: str
    public: ClassVar[frozenset[str]] = frozenset()
    """The fields whose values may be printed."""
    removable: ClassVar[bool] = True
    """Whether one that Git no longer names goes."""

    def __init__(self, client: PrefectClient) -> None:
        self.client = client

    @abstractmethod
    async def find(self, name: str) -> Found | None:
        """Return the object of this name; None if there is none."""

    async def find_recorded(self, name: str, id_: UUID) -> Found | None:
        """Return the object that had this name and id; None if it is gone."""
        found = await self.find(name)
        return found if found and found.id == id_ else None

    @abstractmethod
    async def create(self, name: str, fields: Fields) -> UUID:
        """Create the object and return its id."""

    @abstractmethod
    async def update(self, name: str, found: Found, fields: Fields) -> None:
        """Give the object these fields; it keeps what they do not name."""

    @abstractmethod
    async def delete(self, name: str, found: Found) -> None:
        """Delete the object."""

    def present(self, found: Found, desired: Fields) -> Fields:
        """Return the fields of the object that are compared with the desired ones."""
        return {name: found.fields.get(name) for name in desired}


class WorkPools(Kind):
    """Work pools. `type` is given when one is created, and never changes."""

    label = WORK_POOL
    public = frozenset({"description", "concurrency_limit"})
    removable = False  # with a pool its queues go, and deployments of people may be in it

    def __init__(self, client: PrefectClient, type_: str = "process") -> None:
        super().__init__(client)
        self.type = type_

    @override
    async def find(self, name: str) -> Found | None:
        try:
            pool = await self.client.read_work_pool(name)
        except ObjectNotFound:
            return None
        fields = pool.model_dump(include={"description", "concurrency_limit", "base_job_template"})
        return Found(pool.id, fields, pool.type)

    @override
    async def create(self, name: str, fields: Fields) -> UUID:
        pool = WorkPoolCreate(name=name, type=self.type, **fields)
        return (await self.client.create_work_pool(pool)).id

    @override
    async def update(self, name: str, found: Found, fields: Fields) -> None:
        await self.client.update_work_pool(name, WorkPoolUpdate(**fields))

    @override
    async def delete(self, name: str, found: Found) -> None:
        await self.client.delete_work_pool(name)


class WorkQueues(Kind):
    """Queues of work pools, named `pool/queue`."""

    label = WORK_QUEUE
    public = frozenset({"description", "priority", "concurrency_limit"})

    @override
    async def find(self, name: str) -> Found | None:
        pool, _, queue = name.partition("/")
        try:
            found = await self.client.read_work_queue_by_name(queue, pool)
        except ObjectNotFound:
            return None
        return Found(found.id, found.model_dump(include=set(self.public)))

    @override
    async def create(self, name: str, fields: Fields) -> UUID:
        pool, _, queue = name.partition("/")
        return (await self.client.create_work_queue(queue, work_pool_name=pool, **fields)).id

    @override
    async def update(self, name: str, found: Found, fields: Fields) -> None:
        # Not by its id: only so do the other queues of the pool make room for a new priority.
        pool, _, queue = name.partition("/")
        path = f"/work_pools/{quote(pool, safe='')}/queues/{quote(queue, safe='')}"
        response = await self.client.request("PATCH", path, json=fields)  # type: ignore[arg-type]
        response.raise_for_status()

    @override
    async def delete(self, name: str, found: Found) -> None:
        await self.client.delete_work_queue_by_id(found.id)


class Variables(Kind):
    """Prefect variables."""

    label = VARIABLE
    public = frozenset({"value", "tags"})

    @override
    async def find(self, name: str) -> Found | None:
        variable = await self.client.read_variable_by_name(name)
        if variable is None:
            return None
        return Found(variable.id, {"value": variable.value, "tags": variable.tags})

    @override
    async def create(self, name: str, fields: Fields) -> UUID:
        return (await self.client.create_variable(VariableCreate(name=name, **fields))).id

    @override
    async def update(self, name: str, found: Found, fields: Fields) -> None:
        await self.client.update_variable(VariableUpdate(name=name, **fields))

    @override
    async def delete(self, name: str, found: Found) -> None:
        await self.client.delete_variable_by_name(name)


class Blocks(Kind):
    """Block documents of one type."""

    def __init__(self, client: PrefectClient, slug: str) -> None:
        super().__init__(client)
        self.slug = slug
        self.label = f"{slug}{BLOCK}"

    @override
    async def find(self, name: str) -> Found | None:
        try:
            document = await self.client.read_block_document_by_name(
                name, block_type_slug=self.slug, include_secrets=True
            )
        except ObjectNotFound:
            return None
        return Found(document.id, document.data)

    @override
    def present(self, found: Found, desired: Fields) -> Fields:
        """Return all fields: one that the file no longer has goes."""
        return found.fields

    @override
    async def create(self, name: str, fields: Fields) -> UUID:
        id_: UUID = await self._class()(**fields).save(name, client=self.client)
        return id_

    @override
    async def update(self, name: str, found: Found, fields: Fields) -> None:
        known = self._class().model_json_schema()["properties"]
        block = self._class()(**{key: fields[key] for key in fields if key in known})
        await block.save(name, overwrite=True, client=self.client)

    @override
    async def delete(self, name: str, found: Found) -> None:
        await self.client.delete_block_document(found.id)

    def _class(self) -> type[Block]:
        return prefect_schemas.block_class(self.slug)


class GlobalLimits(Kind):
    """Global concurrency limits."""

    label = GLOBAL_LIMIT
    public = frozenset({"limit", "slot_decay_per_second"})

    @override
    async def find(self, name: str) -> Found | None:
        try:
            limit = await self.client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            return None
        return Found(limit.id, limit.model_dump(include=set(self.public)))

    @override
    async def create(self, name: str, fields: Fields) -> UUID:
        return await self.client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name=name, **fields)
        )

    @override
    async def update(self, name: str, found: Found, fields: Fields) -> None:
        await self.client.update_global_concurrency_limit(
            name, GlobalConcurrencyLimitUpdate(name=name, **fields)
        )

    @override
    async def delete(self, name: str, found: Found) -> None:
        await self.client.delete_global_concurrency_limit_by_name(name)


class TagLimits(Kind):
    """Concurrency limits of task tags."""

    label = TAG_LIMIT
    public = frozenset({"limit"})

    @override
    async def find(self, name: str) -> Found | None:
        try:
            limit = await self.client.read_concurrency_limit_by_tag(name)
        except ObjectNotFound:
            return None
        return Found(limit.id, {"limit": limit.concurrency_limit})

    @override
    async def create(self, name: str, fields: Fields) -> UUID:
        return await self.client.create_concurrency_limit(name, fields["limit"])

    @override
    async def update(self, name: str, found: Found, fields: Fields) -> None:
        # The server updates a limit that exists.
        await self.create(name, fields)

    @override
    async def delete(self, name: str, found: Found) -> None:
        await self.client.delete_concurrency_limit_by_tag(name)


class Deployments(Kind):
    """Deployments, named `flow/deployment`. `prefect_deploy` creates those of a prefect.yaml."""

    label = DEPLOYMENT
    public = frozenset({"entrypoint", "work_pool_name", "description", "tags", "path"})

    @override
    async def find(self, name: str) -> Found | None:
        try:
            deployment = await self.client.read_deployment_by_name(name)
        except ObjectNotFound:
            return None
        return Found(deployment.id, dict(deployment), deployment)

    @override
    async def create(self, name: str, fields: Fields) -> UUID:
        flow, _, own = name.partition("/")
        flow_id = await self.client.create_flow_from_name(flow)
        return await self.client.create_deployment(flow_id, own, **fields)

    @override
    async def update(self, name: str, found: Found, fields: Fields) -> None:
        await self.client.update_deployment(found.id, DeploymentUpdate(**fields))

    @override
    async def delete(self, name: str, found: Found) -> None:
        await self.client.delete_resource_owned_automations(f"prefect.deployment.{found.id}")
        await self.client.delete_deployment(found.id)


class Automations(Kind):
    """Automations. Several may have one name, which then is that of the one changed last."""

    label = AUTOMATION
    public = frozenset({"name", "description", "enabled", "tags"})

    @override
    async def find(self, name: str) -> Found | None:
        named = await self.named(name)
        return named[0] if named else None

    async def named(self, name: str) -> list[Found]:
        """Return all that have this name, the one changed last first; `more` is who owns it."""
        return [
            Found(each.id, comparable(each), each.owner_resource)
            for each in await self.client.read_automations_by_name(name)
        ]

    @override
    async def find_recorded(self, name: str, id_: UUID) -> Found | None:
        """Return the automation with this id, which a person may have renamed."""
        try:
            found = await self.client.read_automation(id_)
        except PrefectHTTPStatusError as error:
            if error.response.status_code != httpx.codes.NOT_FOUND:
                raise
            found = None
        return Found(found.id, comparable(found)) if found else None

    @override
    async def create(self, name: str, fields: Fields) -> UUID:
        automation = AutomationCore.model_validate(fields)
        return await self.client.create_automation(automation)

    @override
    async def update(self, name: str, found: Found, fields: Fields) -> None:
        automation = AutomationCore.model_validate(found.fields | fields)
        await self.client.update_automation(found.id, automation)

    @override
    async def delete(self, name: str, found: Found) -> None:
        await self.client.delete_automation(found.id)


def comparable(automation: AutomationCore) -> Fields:
    """Return an automation without what the server adds; sets stay sets, which have no order."""
    return AutomationCore.model_validate(automation.model_dump()).model_dump(
        exclude={"owner_resource"}
    )


REMOVED = (AUTOMATION, DEPLOYMENT, WORK_QUEUE, VARIABLE, GLOBAL_LIMIT, TAG_LIMIT)
"""In which order what is no longer named is removed; blocks, to which these refer, go last."""


def kind_of(client: PrefectClient, label: str) -> Kind:
    """Return what reads and writes the objects of this label."""
    if label.endswith(BLOCK):
        return Blocks(client, label.removesuffix(BLOCK))
    kinds: dict[str, type[Kind]] = {
        kind.label: kind
        for kind in (WorkQueues, Variables, GlobalLimits, TagLimits, Deployments, Automations)
    }
    return kinds[label](client)
