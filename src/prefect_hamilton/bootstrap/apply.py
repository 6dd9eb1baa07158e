"""Bring a Prefect server and a Hamilton UI to the desired state; write only what differs.

What people add beside it (queues, other variables, a paused pool) stays. With the name of a
release, what its bootstrap created and Git no longer names is removed. With a record of what was
written last, what people changed since stays, too.
"""

import math
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import MissingFlowError
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.workers.base import BaseWorker
from pydantic import ValidationError

from prefect_hamilton._hamilton_api import HamiltonError
from prefect_hamilton.bootstrap import hamilton, prefect_schemas
from prefect_hamilton.bootstrap.changes import Change, Outcome, differences
from prefect_hamilton.bootstrap.connection import connect, naming, probe_hamilton, wait
from prefect_hamilton.bootstrap.created import FILES, Created, Entry
from prefect_hamilton.bootstrap.desired_state import (
    Automation,
    Block,
    Deployment,
    DesiredState,
    HamiltonProject,
    WorkPool,
    resolve,
    unset,
)
from prefect_hamilton.bootstrap.environment import FromEnvironment
from prefect_hamilton.bootstrap.errors import BootstrapError
from prefect_hamilton.bootstrap.objects import (
    AUTOMATION,
    Automations,
    Blocks,
    Deployments,
    Fields,
    Found,
    GlobalLimits,
    Kind,
    TagLimits,
    Variables,
    WorkPools,
    WorkQueues,
    comparable,
)
from prefect_hamilton.bootstrap.prune import Removal
from prefect_hamilton.bootstrap.record import NoRecord
from prefect_hamilton.bootstrap.register_deployments import Flows, Repository, deploy
from prefect_hamilton.bootstrap.repositories import Recorded, Registration

DEFAULT_HAMILTON_URL = "http://localhost:8241"

REFERRED: dict[str, type[Kind]] = {
    "automation": Automations,
    "deployment": Deployments,
    "work_pool": WorkPools,
    "work_queue": WorkQueues,
}
"""The kinds to which actions of automations refer by name, besides blocks."""


@dataclass(frozen=True)
class Options:
    """How to apply.

    `timeout` is how many seconds to wait for each server to answer. `release` names the record of
    what was created; without it nothing is removed. With `prune` false, nothing is removed either,
    but it is recorded. With `write` false nothing is written: the changes are those that would be.
    """

    timeout: float = 60.0
    release: str | None = None
    prune: bool = True
    write: bool = True


@dataclass(frozen=True)
class Applied:
    """What became of each object, and a line for each failure that others had to go on without."""

    changes: list[Change]
    failures: list[str]


async def apply(
    state: DesiredState | None,
    *,
    report: Callable[[Change], None],
    options: Options = Options(),  # frozen
    record: NoRecord | None = None,
    repositories: Sequence[Flows | Recorded] = (),
) -> Applied:
    """Apply the state to the server at PREFECT_API_URL and the UI at HAMILTON_API_URL.

    Without a state, only the repositories are applied. `report` is called with each change. The
    deployments and the state files of the `repositories` are applied when the work pools exist. An
    automation whose deployment does not exist is reported as `waiting`; one whose block does not
    exist is an error. With a `record`, an object
    that differs because a user changed it is reported as `kept`; without one, it is updated.
    Raises BootstrapError; the failures of repositories that have names, and of automations in the
    files, are in the answer.
    """
    record = record or NoRecord()
    async with connect(options.timeout) as client:
        created = await Created.load(client, options.release)
        known = [
            each.flows(created) if isinstance(each, Recorded) else each for each in repositories
        ]
        reconciler = Reconciler(client, record, created, options, report)
        registration = Registration(known, created, alone=state is None)
        try:
            if state is not None:
                await reconciler.bring_about(state)
                automations = (f"{AUTOMATION} {each.name}" for each in state.automations)
                registration.reserve({*reconciler.named, *automations})
            try:
                with tempfile.TemporaryDirectory() as folder:
                    clones = await registration.clones(Path(folder))
                    await registration.register(clones, reconciler)
            finally:  # also when the Git server does not answer
                await reconciler.automations(registration)
            for flows in known:
                created.set_prune(flows.source, flows.prune)
            if state is not None:  # all of them
                created.set_repositories(
                    {each.name: each.recorded for each in known if each.recorded}
                )
            if options.prune:
                in_scope = _scope(registration, alone=state is None)
                removal = Removal(client, created, record, in_scope, write=options.write)
                async for change in removal.of_all_but(reconciler.named):
                    reconciler.note(change)
        finally:
            if options.write:
                record.save()
                await created.save()
    return Applied(reconciler.changes, registration.lines())


def _scope(registration: Registration, *, alone: bool) -> Callable[[Entry], bool]:
    """Return what may be removed: only objects of registered repositories if one has failed.

    Other objects may be those of the repository that failed, under the name that it had before.
    """
    registered = set(registration.succeeded())
    limited = alone or bool(registration.failed)
    return lambda entry: entry.prune and (not limited or entry.source in registered)


class Reconciler:
    """One pass over the desired state."""

    def __init__(
        self,
        client: PrefectClient,
        record: NoRecord,
        created: Created,
        options: Options,
        report: Callable[[Change], None],
    ) -> None:
        self.client = client
        self.changes: list[Change] = []
        self.named: set[str] = set()
        """Keys of the objects that were named so far."""
        self._record = record
        self._created = created
        self._options = options
        self._report = report
        self._planned: set[prefect_schemas.Reference] = set()
        self._left_out: set[prefect_schemas.Reference] = set()
        self._pools: dict[str, str] = {}
        self._automations: list[tuple[Automation, str]] = []

    def note(self, change: Change) -> None:
        """Report a change."""
        self.changes.append(change)
        self._report(change)

    async def bring_about(self, state: DesiredState, source: str = FILES) -> None:
        """Reconcile all objects but the automations, which refer to others and come last."""
        client = self.client
        tracking = {
            project.name: await self._hamilton_project(project)
            for project in state.hamilton_projects()
        }
        for pool in state.work_pools:
            project = pool.hamilton_project or state.hamilton
            await self._work_pool(pool, tracking.get(project.name, {}) if project else {}, source)
        for variable in state.variables:
            desired = variable.model_dump(exclude={"name"})
            await self._reconcile(Variables(client), variable.name, desired, source)
        for block in state.blocks:
            await self._block(block, source)
        for limit in state.global_concurrency_limits:
            desired = limit.model_dump(exclude={"name"})
            await self._reconcile(GlobalLimits(client), limit.name, desired, source)
        for tag in state.tag_concurrency_limits:
            await self._reconcile(TagLimits(client), tag.tag, {"limit": tag.limit}, source)
        for deployment in state.deployments:
            await self._deployment(deployment, source)
        self._automations += [(automation, source) for automation in state.automations]

    async def bring_about_repository(
        self, repository: Repository, taken: Collection[str] = ()
    ) -> None:
        """Reconcile what the repository's files name. Raises NameTakenError as `deploy` does."""
        await self.bring_about(repository.state, repository.source)
        deployed = await deploy(
            repository, self._created, self._pools, taken, write=self._options.write
        )
        for change, entry in deployed:
            self.named.add(f"{change.kind} {change.name}")
            if self._options.write:
                self._created.put(entry)
            elif change.outcome == "created":
                self._planned.add(("deployment", change.name))
            self.note(change)

    async def automations(self, registration: Registration) -> None:
        """Reconcile the automations: what they refer to is there by now, or it is missing.

        Those of a repository that failed are left as they are.
        """
        failed = set(registration.failed)
        failures: list[tuple[str, BootstrapError]] = []
        for automation, source in self._automations:
            if source in failed:
                continue
            try:
                with naming(f"{AUTOMATION} {automation.name}"):
                    await self._automation(automation, source)
            except BootstrapError as error:  # no reason to leave out the other ones
                failures.append((source, error))
        for source, failure in failures:
            registration.fail(source, failure)

    async def _reconcile(
        self,
        kind: Kind,
        name: str,
        desired: Fields,
        source: str,
        defaults: Collection[str] = (),
        found: Any = ...,
        note: str = "",
    ) -> None:
        """Create the object, or update it where it differs, and report which.

        `note` is said of it if it is created.
        """
        key = f"{kind.label} {name}"
        self.named.add(key)
        write = self._options.write
        if found is ...:
            with naming(key):
                found = await kind.find(name)
        if found is None:
            if write:
                with naming(key):
                    id_ = await kind.create(name, desired)
                self._record.created(key, desired, defaults)
                if kind.removable:
                    self._created.put(Entry(kind=kind.label, name=name, id=id_, source=source))
                    await self._created.save()  # what is created is recorded even if this ends here
            self.note(Change("created", kind.label, name, note))
            return
        if entry := self._created.of_id(key, found.id):
            if entry.ending and write:
                await self.client.resume_deployment(found.id)
            self._created.put(entry.model_copy(update={"source": source, "ending": False}))
        present = kind.present(found, desired)
        outcome, merged = self._decide(key, desired, present, defaults)
        if outcome == "updated" and write:
            with naming(key):
                await kind.update(name, found, merged)
        lines = differences(present, merged, kind.public)
        self.note(Change(outcome, kind.label, name, differences=lines))

    def _decide(
        self, key: str, desired: Fields, existing: Fields, defaults: Collection[str]
    ) -> tuple[Outcome, Fields]:
        """Return what becomes of an object that exists, and the fields that it then has."""
        merged = self._record.merge(key, desired, existing, defaults)
        if merged != existing:
            return "updated", merged
        as_desired = all(merged.get(name) == value for name, value in desired.items())
        return "unchanged" if as_desired else "kept", merged

    async def _hamilton_project(self, project: HamiltonProject) -> dict[str, str]:
        """Ensure the project; returns the environment that turns tracking on in flow runs."""
        url = os.environ.get("HAMILTON_API_URL", DEFAULT_HAMILTON_URL)
        username = project.username.resolve(os.environ)
        if username is None:
            raise BootstrapError(f"{project.username.from_env} is not set: the Hamilton UI's user.")
        await wait(lambda: probe_hamilton(url), self._options.timeout)
        key = os.environ.get("HAMILTON_API_KEY")
        call = partial(hamilton.ensure_project, other_users=tuple(project.users))
        ensure = call if self._options.write else hamilton.find_project
        try:
            id_ = await anyio.to_thread.run_sync(ensure, url, username, project.name, key)
        except HamiltonError as error:
            raise BootstrapError(f"Hamilton project {project.name}: {error}") from error
        outcome: Outcome = "created" if id_ is None else "present"
        note = "" if id_ is None else f"id {id_}, user {username}"
        self.note(Change(outcome, "Hamilton project", project.name, note))
        return {
            "HAMILTON_UI_USERNAME": username,
            "HAMILTON_UI_PROJECT_ID": str(id_ or ""),
            "HAMILTON_API_URL": url,
            "HAMILTON_UI_URL": os.environ.get("HAMILTON_UI_URL", url),
        }

    async def _work_pool(self, pool: WorkPool, tracking: Mapping[str, str], source: str) -> None:
        desired: Fields = {
            "description": pool.description,
            "concurrency_limit": pool.concurrency_limit,
            "base_job_template": base_job_template(pool, tracking),
        }
        kind = WorkPools(self.client, pool.type)
        self._pools[pool.name] = pool.type
        self._planned.add(("work_pool", pool.name))
        found = await kind.find(pool.name)
        if found is not None and found.more != pool.type:
            raise BootstrapError(
                f"Work pool {pool.name} has the type {found.more}, not {pool.type}, and a type "
                f"cannot be changed: delete it (prefect work-pool delete {pool.name}) or rename it."
            )
        await self._reconcile(kind, pool.name, desired, source, found=found)
        # The server moves the queues from a priority downwards: the highest priority comes first.
        for queue in sorted(pool.queues, key=lambda queue: queue.priority or math.inf):
            name = f"{pool.name}/{queue.name}"
            self._planned.add(("work_queue", name))
            desired = queue.model_dump(exclude={"name"})
            if queue.priority is None:
                del desired["priority"]
            await self._reconcile(WorkQueues(self.client), name, desired, source)

    async def _block(self, block: Block, source: str) -> None:
        kind = Blocks(self.client, block.type)
        if missing := list(unset(block.values)):
            if block.optional:
                self.named.add(f"{kind.label} {block.name}")
                self._left_out.add(("block_document", f"{block.type}/{block.name}"))
                note = f"{', '.join(missing)} is not set"
                self.note(Change("left out", kind.label, block.name, note))
                return
            raise BootstrapError(
                f"{missing[0]} is not set: the {kind.label} {block.name} takes its value from it."
            )
        desired = stored_values(block)
        defaults = [
            name
            for name, value in block.values.items()
            if isinstance(value, FromEnvironment) and value.is_default(os.environ)
        ]
        self._planned.add(("block_document", f"{block.type}/{block.name}"))
        await self._reconcile(kind, block.name, desired, source, defaults)

    async def _deployment(self, deployment: Deployment, source: str) -> None:
        try:
            flow: Flow[..., Any] = load_flow_from_entrypoint(
                deployment.entrypoint, use_placeholder_flow=False
            )
        except (ImportError, MissingFlowError) as error:
            raise BootstrapError(
                f"Deployment {deployment.name}: {deployment.entrypoint} is not a flow in this "
                f"image ({error})."
            ) from None
        name = f"{flow.name}/{deployment.name}"
        desired: Fields = {
            "entrypoint": deployment.entrypoint,
            "work_pool_name": deployment.work_pool,
            "description": flow.description,
            "tags": deployment.tags,
            "job_variables": resolve(deployment.job_variables),
            "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
            # Settings of a deployment of this name that was registered from a flows repository.
            "pull_steps": [],
            "path": None,
        }
        self._planned.add(("deployment", name))
        await self._reconcile(Deployments(self.client), name, desired, source)

    async def _automation(self, automation: Automation, source: str) -> None:
        kind = Automations(self.client)
        self.named.add(f"{kind.label} {automation.name}")
        content = await self._without_what_is_left_out(automation.in_prefects_words())
        ids = {}
        for place, reference in prefect_schemas.referred(content):
            found = await self._find(*reference)
            if found is None and reference in self._planned and not self._options.write:
                found = prefect_schemas.ANY_ID
            if found is None:
                if reference[0] == "block_document" and reference not in self._left_out:
                    # Unlike a deployment, a block that is not there now has no one to create it.
                    raise BootstrapError(
                        f"Automation {automation.name}: {'.'.join(map(str, place))}: there is no "
                        f"block {reference[1]}, neither in the files nor on the server: correct "
                        "the name, or add the block to the state."
                    )
                what, name = reference[0].removesuffix("_document").replace("_", " "), reference[1]
                note = f"{what} {name} is not registered yet"
                self.note(Change("waiting", kind.label, automation.name, note))
                return
            ids[reference] = found
        core = prefect_schemas.automation_core(content, ids)
        desired = comparable(core)
        key = f"{kind.label} {automation.name}"
        may_be_paused = "enabled" not in automation.model_fields_set
        existing, others = await self._existing_automation(kind, desired, may_be_paused)
        if existing and may_be_paused:
            entry = self._created.of_id(key, existing.id)
            if not (entry and entry.disabled):  # else Git no longer disables it
                desired["enabled"] = existing.fields["enabled"]
        self._planned.add(("automation", automation.name))
        await self._reconcile(
            kind, automation.name, desired, source, found=existing, note=beside(others)
        )
        if entry := self._created.get(key):
            self._created.put(entry.model_copy(update={"disabled": not automation.enabled}))

    async def _existing_automation(
        self, kind: Automations, desired: Fields, may_be_paused: bool
    ) -> tuple[Found | None, int]:
        """Return the automation that is to be as desired, and how many others have its name.

        With the record of a release it is the recorded one. Of those that a person or another
        release made, one that is as desired is taken over, and the rest is left as it is.
        """
        name = desired["name"]
        key = f"{kind.label} {name}"
        named = [each for each in await kind.named(name) if not each.more]
        entry = self._created.get(key)
        existing = await kind.find_recorded(name, entry.id) if entry else None
        if existing is None and not self._created.kept:
            existing = next(iter(named), None)
        elif existing is None:
            recorded = {each.id for each in self._created}
            any_ = {"enabled": True} if may_be_paused else {}
            for each in named:
                if each.id not in recorded and each.fields | any_ == desired | any_:
                    existing = each
                    new = Entry(kind=kind.label, name=name, id=each.id, created=False)
                    self._created.put(new)
                    break
        return existing, sum(existing is None or each.id != existing.id for each in named)

    async def _find(self, kind: str, name: str) -> UUID | None:
        """Return the id of what an action refers to; None where there is none."""
        if kind == "block_document":
            slug, _, own = name.rpartition("/")
            found = await Blocks(self.client, slug).find(own)
        else:
            refers = REFERRED[kind](self.client)
            entry = self._created.get(f"{refers.label} {name}")
            found = await refers.find_recorded(name, entry.id) if entry else None
            found = found or await refers.find(name)
        return found.id if found else None

    async def _without_what_is_left_out(self, content: Fields) -> Fields:
        """Return an automation without the actions whose block is left out and not on the server.

        If none would be left, return it as it is: it waits for a block.
        """
        blocks = {reference for _, reference in prefect_schemas.referred(content)} & self._left_out
        absent = {each for each in blocks if await self._find(*each) is None}
        kind = "block_document"
        kept = {
            key: [each for each in content[key] if (kind, each.get(kind)) not in absent]
            for key in prefect_schemas.LISTS_OF_ACTIONS
        }
        return content | kept if any(kept.values()) else content


def base_job_template(pool: WorkPool, tracking: Mapping[str, str]) -> dict[str, Any]:
    """Return the file's template or the worker type's own, with the pool's overrides."""
    if pool.base_job_template is not None:
        for name in unset(pool.base_job_template):
            raise BootstrapError(f"{name} is not set, but a base job template refers to it.")
        template: dict[str, Any] = resolve(pool.base_job_template)
    else:
        worker = BaseWorker.get_worker_class_from_type(pool.type)
        if worker is None:
            raise BootstrapError(
                f"Work pool {pool.name}: no worker of type {pool.type} is installed here; "
                "give a base_job_template or install its package."
            )
        template = deepcopy(worker.get_default_base_job_template())
    try:
        properties = template["variables"]["properties"]
        for name, default in pool.defaults.items():
            properties[name]["default"] = default
        env = resolve(pool.env) | (dict(tracking) if pool.hamilton_tracking else {})
        if env:
            properties["env"]["default"] = (properties["env"].get("default") or {}) | env
    except KeyError as error:
        raise BootstrapError(
            f"Work pool {pool.name}: its base job template has no variable {error}."
        ) from error
    return template


def stored_values(block: Block) -> Fields:
    """Return all fields of the block as the server keeps them: text may be a number there.

    Fields without a value have the defaults of the type, so that one that leaves the file goes.
    Raises BootstrapError, which does not quote a value: it may be a secret.
    """
    values = resolve(block.values)
    try:
        wanted = prefect_schemas.block_class(block.type)(**values)
    except ValidationError as error:
        first = prefect_schemas.first_error(error, values)
        raise BootstrapError(f"Block {block.name}: {first}.") from None
    except KeyError as error:  # of a custom webhook: the field, a slash, Prefect's placeholder
        field = str(error.args[0]).partition("/")[0]
        raise BootstrapError(
            f"Block {block.name}: {field}: a {{{{placeholder}}}} is neither subject, body, name "
            "nor one of the block's secrets."
        ) from None
    except TypeError:  # of the package that sends notifications, which quotes the value
        raise BootstrapError(
            f"Block {block.name}: the values are not valid for a {block.type} block."
        ) from None
    stored = wanted.model_dump(mode="json", by_alias=True, context={"include_secrets": True})
    properties = prefect_schemas.block_class(block.type).model_json_schema()["properties"]
    return {name: stored[name] for name in properties}


def beside(others: int) -> str:
    """Return what is said of an automation that is created while others have its name."""
    if not others:
        return ""
    return "beside another one of this name, which the bootstrap did not create and leaves as it is"
