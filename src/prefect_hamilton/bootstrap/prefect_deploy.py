"""`prefect deploy`, but it writes only the deployments, schedules and triggers that differ.

Run in the folder of a prefect.yaml as `python -m prefect_hamilton.bootstrap.prefect_deploy FILE`.
Prefect reads it, loads the flows and runs the steps; only the calls with which it writes to the
server are replaced. FILE holds an Exchange, and gets its results.
"""

import asyncio
import os
import re
import sys
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import cache, wraps
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.cli import app
from prefect.cli.deploy import _core
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentTriggerTypes
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.templating import apply_values
from pydantic import BaseModel, PrivateAttr

from prefect_hamilton import _tls
from prefect_hamilton.bootstrap.changes import Outcome, differences
from prefect_hamilton.bootstrap.connection import every
from prefect_hamilton.bootstrap.created import NEW, Created, Entry
from prefect_hamilton.bootstrap.objects import DEPLOYMENT, comparable
from prefect_hamilton.bootstrap.schedules import Given, describe, stored_for

PUBLIC = frozenset(
    {
        "version",
        "description",
        "tags",
        "entrypoint",
        "work_pool_name",
        "work_queue_name",
        "paused",
        "enforce_parameter_schema",
        "concurrency_limit",
        "concurrency_options",
    }
)
"""The fields whose values may be printed: the others may hold the values of Secret blocks."""


NUMBERED = re.compile(r"__automation_\d+$")
"""What Prefect's name of a trigger ends with whose file has none."""


class Known(BaseModel):
    """What the record has on a deployment."""

    id: UUID
    triggers: list[UUID] | None = None
    ending: bool = False
    disabled: bool = False


class Result(BaseModel):
    """What became of a deployment.

    `triggers` are its automations, or None if not all of them could be written. `disabled` is
    whether its file pauses it.
    """

    name: str
    id: UUID
    outcome: Outcome
    differences: list[str]
    parts: list[str]
    triggers: list[UUID] | None = None
    disabled: bool


class Wanted(BaseModel):
    """A deployment in a file: `selector` is its name as `prefect deploy --name` takes it.

    `place` is where it is, such as `prefect.yaml: deployments.0`.
    """

    selector: str
    name: str
    entrypoint: str
    place: str = ""


class Exchange(BaseModel):
    """What this program gets and gives: names of deployments are `flow/deployment`.

    `files` are files such as prefect.yaml with what to deploy of each. `tags` are added to each
    deployment. Nothing is deployed if one of them has a name in `taken`, which `refused` names, or
    if several have one name, whose places are in `repeated`. `announced` is what the record of the
    release got before it was created.
    """

    write: bool
    files: dict[str, list[Wanted]] = {}
    tags: list[str] = []
    taken: list[str] = []
    refused: list[str] = []
    repeated: dict[str, list[str]] = {}
    pools: dict[str, str] = {}
    """Types of work pools that may not be there yet."""
    known: dict[str, Known] = {}
    release: str | None = None
    source: str = ""
    announced: list[Entry] = []
    results: list[Result] = []

    def write_to(self, file: Path) -> None:
        """Write it whole or not at all: this process may be ended at any time."""
        draft = file.with_suffix(".draft")
        draft.write_text(self.model_dump_json(), encoding="utf-8")
        draft.replace(file)


class FromFile(RunnerDeployment):
    """A deployment of a file: to Prefect, one without `paused` is not paused."""

    _paused_by_file: bool | None = PrivateAttr(default=None)

    def __init__(self, **content: Any) -> None:
        super().__init__(**content)
        if content.get("paused") is not None:
            self._paused_by_file = self.paused


class Deploying:
    """The state of one `prefect deploy`."""

    def __init__(self, exchange: Exchange, file: Path) -> None:
        self.exchange = exchange
        self._file = file
        self._stored: dict[str, DeploymentResponse] | None = None
        self._automations: dict[UUID, Automation] | None = None
        self._open: Result | None = None
        self._triggers: list[tuple[AutomationCore, bool]] = []

    async def announce(self, names: Iterable[str]) -> None:
        """Record what is about to be created: no result says so when this process is killed."""
        if not self.exchange.write or self.exchange.release is None:
            return
        async with get_client() as client:
            self.exchange.announced = [
                Entry(kind=DEPLOYMENT, name=name, id=NEW, source=self.exchange.source)
                for name in names
                if await self._find(client, name) is None
            ]
            if self.exchange.announced:
                created = await Created.load(client, self.exchange.release)
                for entry in self.exchange.announced:
                    created.put(entry)
                await created.save()

    async def apply(self, deployment: RunnerDeployment, schedules: list[Given] | None) -> UUID:
        """Write the deployment if it differs; the answer is its id.

        No schedules, or no key for them, means that the deployment has none.
        """
        await self.settle()
        if self.exchange.tags:
            deployment.tags = list(dict.fromkeys([*(deployment.tags or []), *self.exchange.tags]))
        wanted = schedules or []
        # As in Prefect's `apply`: also decides on the version.
        info = deployment._get_deployment_version_info(deployment.version_type)
        async with get_client() as client:
            stored = await self._find(client, deployment.full_name)
        known = self.exchange.known.get(deployment.full_name)
        if stored is None:
            id_ = NEW
            if self.exchange.write:
                id_ = await PREFECTS.apply(deployment, schedules=wanted or None, version_info=info)
            self._note(deployment, id_, "created", [], _signed("+", wanted))
            return id_
        ours = known and known.id == stored.id and (known.ending or known.disabled)
        if paused_by_file(deployment) is None and not ours:  # left to people
            deployment.paused = stored.paused
        kept = stored_for(wanted, stored.schedules)
        ids = {same.id for same in kept if same}
        gone = [each for each in stored.schedules if each.id not in ids]
        new = [each for each, same in zip(wanted, kept, strict=True) if same is None]
        lines = list(differences(_stored_fields(stored), fields(deployment, stored), PUBLIC))
        if lines or gone or new:
            if self.exchange.write:
                await self._update(deployment, stored, wanted if gone or new else None, info)
            parts = [*_signed("-", gone), *_signed("+", new)]
            self._note(deployment, stored.id, "updated", lines, parts)
        else:
            self._note(deployment, stored.id, "unchanged", [], [])
        return stored.id

    async def _update(
        self,
        deployment: RunnerDeployment,
        stored: DeploymentResponse,
        schedules: list[Given] | None,
        version_info: Any,
    ) -> None:
        """Update the deployment; the schedules too, unless they are None.

        The server refuses schedules without slugs in place of such with slugs, and never deletes
        one with a slug: what does not stay is deleted first. A paused schedule stays paused.
        """
        # Prefect sends only fields that were set: one that left the file would stay as it is.
        deployment.enforce_parameter_schema = deployment.enforce_parameter_schema
        if schedules is not None:
            slugs = {each.get(key) for each in schedules for key in ("slug", "replaces")}
            all_named = all(each.get("slug") for each in schedules)
            async with get_client() as client:
                for each in stored.schedules:
                    if not schedules or (each.slug and not (all_named and each.slug in slugs)):
                        await client.delete_deployment_schedule(stored.id, each.id)
            kept = stored_for(schedules, stored.schedules)
            schedules = [
                {"active": same.active} | each if same else each
                for each, same in zip(schedules, kept, strict=True)
            ]
        await PREFECTS.apply(deployment, schedules=schedules or None, version_info=version_info)

    def trigger(self, automation: AutomationCore, *, may_be_paused: bool) -> None:
        """Take the automation of a trigger of the deployment that was applied last."""
        self._triggers.append((automation, may_be_paused))

    async def settle(self) -> None:
        """Write the triggers of the deployment that was applied last, if they differ."""
        result, triggers = self._open, self._triggers
        self._open, self._triggers = None, []
        if result is None:
            return
        known = self.exchange.known.get(result.name)
        ids = known.triggers if known and known.id == result.id else None
        if result.outcome == "created":
            ids = []
        async with get_client() as client:
            stored = [each for id_ in ids or [] if (each := await self._automation(client, id_))]
            wanted = _with_pauses(triggers, stored)
            before, after = _by_name(stored), _by_name(wanted)
            same = before == after and len(stored) == len(ids or []) == len(wanted)
            if not same or ids is None:
                ids = await self._replace_triggers(client, result.id, wanted)
        if not same:
            for name in sorted({*before, *after}):
                if before.get(name) != after.get(name):
                    sign = "+" if name not in before else "-" if name not in after else "~"
                    result.parts.append(f"{sign} trigger {name}")
            if result.outcome == "unchanged":
                result.outcome = "updated"
        result.triggers = ids

    async def _replace_triggers(
        self, client: PrefectClient, deployment_id: UUID, wanted: list[AutomationCore]
    ) -> list[UUID]:
        if not self.exchange.write:
            return []
        await PREFECTS.delete_owned(client, f"prefect.deployment.{deployment_id}")
        return [await client.create_automation(each) for each in wanted]

    async def _automation(self, client: PrefectClient, id_: UUID) -> Automation | None:
        if self._automations is None:
            self._automations = {each.id: each async for each in every(client.read_automations)}
        return self._automations.get(id_)

    async def _find(self, client: PrefectClient, name: str) -> DeploymentResponse | None:
        stored = (await self._read(client)).get(name)
        if stored is None:  # a page may miss what others move meanwhile
            with suppress(ObjectNotFound):
                stored = await client.read_deployment_by_name(name)
        return stored

    async def _read(self, client: PrefectClient) -> dict[str, DeploymentResponse]:
        """Return all deployments of the server, by flow and name, read once."""
        if self._stored is None:
            flows = {flow.id: flow.name async for flow in every(client.read_flows)}
            self._stored = {
                f"{flows.get(each.flow_id)}/{each.name}": each
                async for each in every(client.read_deployments)
            }
        return self._stored

    def _note(
        self,
        deployment: RunnerDeployment,
        id_: UUID,
        outcome: Outcome,
        lines: list[str],
        parts: list[str],
    ) -> None:
        self._open = Result(
            name=deployment.full_name,
            id=id_,
            outcome=outcome,
            differences=lines,
            parts=parts,
            disabled=bool(paused_by_file(deployment)),
        )
        # Recorded even if its triggers cannot be written.
        self.exchange.results.append(self._open)
        self.exchange.write_to(self._file)


def paused_by_file(deployment: RunnerDeployment) -> bool | None:
    """Return the key `paused` of the deployment; None if its file has none."""
    return deployment._paused_by_file if isinstance(deployment, FromFile) else deployment.paused


def fields(deployment: RunnerDeployment, stored: DeploymentResponse) -> dict[str, Any]:
    """Return what the deployment would have, in the shape of `_stored_fields`."""
    content = deployment.model_dump(mode="json", exclude={"storage", "schedules", "triggers"})
    options = content["concurrency_options"]
    wanted = {
        "version": content["version"],
        "description": content["description"],
        "tags": sorted(content["tags"] or []),
        "parameters": content["parameters"] or {},
        "entrypoint": content["entrypoint"],
        "job_variables": content["job_variables"] or {},
        "work_pool_name": content["work_pool_name"],
        "work_queue_name": content["work_queue_name"] or "default",
        "enforce_parameter_schema": content["enforce_parameter_schema"],
        "concurrency_limit": content["concurrency_limit"],
        "concurrency_options": options and {k: v for k, v in options.items() if v is not None},
        "pull_steps": deployment.storage.to_pull_step() if deployment.storage else None,
        "parameter_openapi_schema": deployment._parameter_openapi_schema.model_dump(
            mode="json", exclude_unset=True
        ),
        "paused": content["paused"],
    }
    if deployment._version_from_flow:  # that of each commit: no reason to update
        wanted["version"] = stored.version
    if wanted["description"] in (None, "None") and stored.description in (None, "None", ""):
        wanted["description"] = stored.description  # Prefect stores none as this text
    return wanted


def _stored_fields(stored: DeploymentResponse) -> dict[str, Any]:
    limit = stored.global_concurrency_limit
    options = stored.concurrency_options
    content = stored.model_dump(
        mode="json",
        include={
            "version",
            "description",
            "parameters",
            "entrypoint",
            "job_variables",
            "work_pool_name",
            "work_queue_name",
            "enforce_parameter_schema",
            "pull_steps",
            "parameter_openapi_schema",
            "paused",
        },
    )
    return content | {
        "tags": sorted(stored.tags),
        "concurrency_limit": limit.limit if limit else None,
        "concurrency_options": options and options.model_dump(mode="json", exclude_none=True),
    }


def _by_name(automations: Iterable[AutomationCore]) -> dict[str, list[Any]]:
    """Return the automations by their names; several may have one, and are in their order."""
    found: dict[str, list[Any]] = {}
    for each in automations:
        found.setdefault(each.name, []).append(comparable(each))
    return found


def _with_pauses(
    triggers: Iterable[tuple[AutomationCore, bool]], stored: Iterable[Automation]
) -> list[AutomationCore]:
    """Return the automations; those that people may pause are enabled if they are so already."""
    remaining = list(stored)
    wanted = []
    for automation, may_be_paused in triggers:
        identity = _identity(automation)
        same = next((each for each in remaining if _identity(each) == identity), None)
        if same is not None:
            remaining.remove(same)
            if may_be_paused:
                automation = automation.model_copy(update={"enabled": same.enabled})
        wanted.append(automation)
    return wanted


def _identity(automation: AutomationCore) -> Any:
    """Return by what the automation of a trigger is known: by its name, or else by what it does."""
    if NUMBERED.search(automation.name):  # an entry that is removed renumbers those after it
        return comparable(automation) | {"name": None, "enabled": None}
    return automation.name


def _signed(sign: str, schedules: list[Any]) -> list[str]:
    return [f"{sign} schedule {describe(each)}" for each in schedules]


class PREFECTS:
    """Prefect's own calls, which are replaced below."""

    apply = RunnerDeployment.aapply
    delete_owned = PrefectClient.delete_resource_owned_automations


def replace_calls(deploying: Deploying) -> None:
    """Replace, in this process, the calls with which `prefect deploy` writes to the server."""

    def apply(
        self: RunnerDeployment, schedules: list[Given] | None = None
    ) -> Coroutine[Any, Any, UUID]:
        return deploying.apply(self, schedules)

    async def delete_owned(self: PrefectClient, resource_id: str) -> None:
        """Leave it to `settle`."""

    async def create_triggers(
        client: PrefectClient, deployment_id: UUID, triggers: list[DeploymentTriggerTypes]
    ) -> None:
        """Leave it to `settle`, which knows what people paused."""
        for each in triggers:
            each.set_deployment_id(deployment_id)
            may_be_paused = "enabled" not in each.model_fields_set
            deploying.trigger(each.as_automation(), may_be_paused=may_be_paused)

    async def workers(self: PrefectClient, name: str, **_: Any) -> list[Any]:
        """Return none: they are read to tell a person to start one."""
        return []

    async def no_steps(*_: Any, **__: Any) -> dict[str, Any]:
        """Run neither build nor push steps: they may write to a registry or a bucket."""
        return {}

    if not deploying.exchange.write:
        setattr(_core, "run_steps", no_steps)  # noqa: B010  # an import of Prefect's
    setattr(_core, "RunnerDeployment", FromFile)  # noqa: B010  # an import of Prefect's
    setattr(_core, "_create_deployment_triggers", create_triggers)  # noqa: B010  # the same
    RunnerDeployment.apply = apply  # type: ignore[method-assign,assignment]
    PrefectClient.delete_resource_owned_automations = delete_owned  # type: ignore[method-assign,assignment]
    PrefectClient.read_workers_for_work_pool = workers  # type: ignore[method-assign,assignment]
    PrefectClient.read_work_pool = _once(  # type: ignore[method-assign,assignment]
        PrefectClient.read_work_pool, {} if deploying.exchange.write else deploying.exchange.pools
    )


def _once(
    read: Callable[[PrefectClient, str], Coroutine[Any, Any, WorkPool]], planned: dict[str, str]
) -> Callable[[PrefectClient, str], Coroutine[Any, Any, WorkPool]]:
    """Return `read`, which asks the server once for each pool; a planned one need not exist."""
    pools: dict[str, WorkPool] = {}

    @wraps(read)
    async def reading(self: PrefectClient, work_pool_name: str) -> WorkPool:
        if work_pool_name not in pools:
            try:
                pools[work_pool_name] = await read(self, work_pool_name)
            except ObjectNotFound:
                if work_pool_name not in planned:
                    raise
                pools[work_pool_name] = WorkPool(
                    name=work_pool_name, type=planned[work_pool_name], default_queue_id=NEW
                )
        return pools[work_pool_name]

    return reading


def check_names(exchange: Exchange) -> list[str]:
    """Return the names, and note which are taken, and which another deployment has, too.

    Flows are loaded to know their names. One that cannot be loaded is left to Prefect, which says
    why.
    """
    load: Callable[[str], Any] = cache(load_flow_from_entrypoint)
    setattr(_core, "load_flow_from_entrypoint", load)  # noqa: B010  # an import of Prefect's
    places: dict[str, list[str]] = {}
    for wanted in chain.from_iterable(exchange.files.values()):
        with suppress(Exception):
            filled = apply_values(wanted.model_dump(), dict(os.environ), remove_notset=True)
            name = f"{load(filled['entrypoint']).name}/{filled['name']}"
            places.setdefault(name, []).append(wanted.place)
    exchange.refused = [name for name in places if name in exchange.taken]
    exchange.repeated = {name: found for name, found in places.items() if len(found) > 1}
    return list(places)


def main(file: Path) -> int:
    """Deploy; returns the first exit code of `prefect deploy` that is not 0."""
    exchange = Exchange.model_validate_json(file.read_bytes())
    names = check_names(exchange)
    if exchange.refused or exchange.repeated:
        exchange.write_to(file)
        return 1
    _tls.share_context()
    deploying = Deploying(exchange, file)
    replace_calls(deploying)
    code = 0
    try:
        asyncio.run(deploying.announce(names))
        for path, wanted in exchange.files.items():
            options = [word for each in wanted for word in ("--name", each.selector)]
            if options and code == 0:
                code = deploy(path, options)
    finally:
        try:
            asyncio.run(deploying.settle())
        finally:
            exchange.write_to(file)
    return code


def deploy(path: str, options: list[str]) -> int:
    """Run `prefect deploy` with a file such as prefect.yaml; returns its exit code."""
    try:
        sys.argv = ["prefect", "--no-prompt", "deploy", "--prefect-file", path, *options]
        app()
        code: Any = 0
    except SystemExit as ended:
        code = ended.code
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
