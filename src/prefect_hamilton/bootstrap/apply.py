"""Bring a Prefect server and a Hamilton UI to the desired state; write only what differs.

Nothing is removed, and additions of users (queues, other variables, a paused pool) are kept. With a
record of what was written last, changes that users made since are kept, too.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from uuid import UUID

import anyio
import httpx
from prefect.client.orchestration import PrefectClient, get_client
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
from prefect.exceptions import MissingFlowError, ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import get_current_settings
from prefect.utilities.callables import parameter_schema
from prefect.workers.base import BaseWorker
from pydantic import ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from prefect_hamilton._hamilton_api import HamiltonError
from prefect_hamilton.bootstrap import hamilton, prefect_schemas
from prefect_hamilton.bootstrap.desired_state import (
    Automation,
    Block,
    Deployment,
    DesiredState,
    FromEnvironment,
    GlobalConcurrencyLimit,
    HamiltonProject,
    TagConcurrencyLimit,
    Variable,
    WorkPool,
    resolve,
    unset,
)
from prefect_hamilton.bootstrap.errors import BootstrapError
from prefect_hamilton.bootstrap.record import NoRecord

DEFAULT_HAMILTON_URL = "http://localhost:8241"

Outcome = Literal["created", "updated", "unchanged", "kept", "present", "left out", "waiting"]


@dataclass(frozen=True)
class Change:
    """The outcome for one object; `note` is the reason if it was not applied."""

    outcome: Outcome
    kind: str
    name: str
    note: str = ""

    def line(self) -> str:
        """Return the change as a line of a report."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.outcome:<9}  {self.kind:<24}  {self.name}{note}"


class _NotYetThereError(Exception):
    """The server does not answer yet; a later attempt may succeed."""


async def apply(
    state: DesiredState,
    *,
    timeout: float = 60.0,
    report: Callable[[Change], None],
    record: NoRecord | None = None,
) -> list[Change]:
    """Apply the state to the server at PREFECT_API_URL and the UI at HAMILTON_API_URL.

    `timeout` is how many seconds to wait for each of them to answer. `report` is called with each
    change as it happens. An automation whose deployment is not registered yet is reported as
    `waiting`: apply again after `prefect deploy`. With a `record`, an object that differs because a
    person changed it is reported as `kept`; without one, it is updated. Raises BootstrapError.
    """
    changes: list[Change] = []
    record = record or NoRecord()

    def note(change: Change) -> None:
        changes.append(change)
        report(change)

    try:
        async with _client(timeout) as client:
            tracking: dict[str, str] = {}
            if state.hamilton is not None:
                tracking = await _hamilton_project(state.hamilton, timeout, note)
            for pool in state.work_pools:
                note(await _work_pool(client, pool, tracking, record))
            for variable in state.variables:
                note(await _variable(client, variable, record))
            for block in state.blocks:
                note(await _block(client, block, record))
            for limit in state.global_concurrency_limits:
                note(await _global_limit(client, limit, record))
            for tag_limit in state.tag_concurrency_limits:
                note(await _tag_limit(client, tag_limit, record))
            for deployment in state.deployments:
                note(await _deployment(client, deployment, record))
            for automation in state.automations:
                note(await _automation(client, automation, record))
    finally:
        record.save()
    return changes


@asynccontextmanager
async def _client(timeout: float) -> AsyncIterator[PrefectClient]:
    """Yield a client of a server that answers; its errors become one line each."""
    url = get_current_settings().api.url
    if url is None:
        raise BootstrapError(
            "PREFECT_API_URL is not set: set it to the server's address, which ends in /api."
        )
    await _wait(lambda: _probe_prefect(url), timeout)
    try:
        async with get_client() as client:
            yield client
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            raise _unauthorized(url) from error
        reason = " ".join(error.response.text.split())[:300]
        raise BootstrapError(
            f"{url} refused {error.request.method} {error.request.url.path} "
            f"({error.response.status_code}): {reason}"
        ) from error
    except httpx.TransportError as error:
        raise BootstrapError(f"{url} stopped answering ({type(error).__name__}).") from error


def _unauthorized(url: str) -> BootstrapError:
    return BootstrapError(
        f"{url} requires a password (401): set PREFECT_API_AUTH_STRING to the server's "
        "user:password."
    )


async def _get(url: str, what: str, variable: str, auth: str | None = None) -> httpx.Response:
    """GET with one short try. Raises _NotYetThereError when waiting may help."""
    user, _, password = (auth or "").partition(":")
    try:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
            response = await http.get(url, auth=(user, password) if auth else None)
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise _NotYetThereError(
            f"{what} does not answer at {url} ({reason}): check that it is running and that "
            f"{variable} is right."
        ) from error
    if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise _NotYetThereError(f"{what} answers {response.status_code} at {url}: see its log.")
    return response


async def _probe_prefect(url: str) -> None:
    secret = get_current_settings().api.auth_string
    response = await _get(
        f"{url.rstrip('/')}/admin/version",
        "the Prefect server",
        "PREFECT_API_URL",
        secret.get_secret_value() if secret else None,
    )
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise _unauthorized(url)
    # The server's UI answers 200 to any path.
    if response.status_code != httpx.codes.OK or not response.text.startswith('"'):
        raise BootstrapError(
            f"{url} is not a Prefect API ({response.status_code}): set PREFECT_API_URL to the "
            "address of the API, such as http://127.0.0.1:4200/api."
        )


async def _probe_hamilton(url: str) -> None:
    response = await _get(f"{url.rstrip('/')}/api/ping", "the Hamilton UI", "HAMILTON_API_URL")
    if response.status_code != httpx.codes.OK:
        raise BootstrapError(
            f"{url} is not a Hamilton UI ({response.status_code} at /api/ping): set "
            "HAMILTON_API_URL to its address, such as http://127.0.0.1:8241."
        )


async def _wait(probe: Callable[[], Awaitable[None]], timeout: float) -> None:
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(_NotYetThereError),
            stop=stop_after_delay(timeout),
            wait=wait_fixed(0.3),
            reraise=True,
        ):
            with attempt:
                await probe()
    except _NotYetThereError as error:
        raise BootstrapError(f"After {timeout:g} s {error}") from error


async def _hamilton_project(
    project: HamiltonProject, timeout: float, note: Callable[[Change], None]
) -> dict[str, str]:
    """Ensure the project; returns the environment that turns tracking on in flow runs."""
    url = os.environ.get("HAMILTON_API_URL", DEFAULT_HAMILTON_URL)
    username = project.username.resolve(os.environ)
    if username is None:
        raise BootstrapError(
            f"{project.username.from_env} is not set: set it to a user of the Hamilton UI."
        )
    await _wait(lambda: _probe_hamilton(url), timeout)
    key = os.environ.get("HAMILTON_API_KEY")
    ensure = partial(hamilton.ensure_project, other_users=tuple(project.users))
    try:
        project_id = await anyio.to_thread.run_sync(ensure, url, username, project.name, key)
    except HamiltonError as error:
        raise BootstrapError(f"Hamilton project {project.name}: {error}") from error
    note(Change("present", "Hamilton project", project.name, f"id {project_id}, user {username}"))
    return {
        "HAMILTON_UI_USERNAME": username,
        "HAMILTON_UI_PROJECT_ID": str(project_id),
        "HAMILTON_API_URL": url,
        "HAMILTON_UI_URL": os.environ.get("HAMILTON_UI_URL", url),
    }


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


def _decide(
    record: NoRecord,
    key: str,
    desired: dict[str, Any],
    existing: dict[str, Any],
    defaults: Collection[str] = (),
) -> tuple[Outcome, dict[str, Any]]:
    """Return what becomes of an object that exists, and the fields that it then has."""
    merged = record.merge(key, desired, existing, defaults)
    if merged != existing:
        return "updated", merged
    as_desired = all(merged.get(name) == value for name, value in desired.items())
    return "unchanged" if as_desired else "kept", merged


async def _work_pool(
    client: PrefectClient, pool: WorkPool, tracking: Mapping[str, str], record: NoRecord
) -> Change:
    kind = "work pool"
    key = f"{kind} {pool.name}"
    desired: dict[str, Any] = {
        "description": pool.description,
        "concurrency_limit": pool.concurrency_limit,
        "base_job_template": base_job_template(pool, tracking),
    }
    try:
        existing = await client.read_work_pool(pool.name)
    except ObjectNotFound:
        await client.create_work_pool(WorkPoolCreate(name=pool.name, type=pool.type, **desired))
        record.created(key, desired)
        return Change("created", kind, pool.name)
    if existing.type != pool.type:
        raise BootstrapError(
            f"Work pool {pool.name} has the type {existing.type}, not {pool.type}, and a type "
            f"cannot be changed: delete it (prefect work-pool delete {pool.name}) or rename it."
        )
    present = {name: getattr(existing, name) for name in desired}
    outcome, merged = _decide(record, key, desired, present)
    if outcome == "updated":
        await client.update_work_pool(pool.name, WorkPoolUpdate(**merged))
    return Change(outcome, kind, pool.name)


async def _variable(client: PrefectClient, variable: Variable, record: NoRecord) -> Change:
    kind = "variable"
    key = f"{kind} {variable.name}"
    desired = variable.model_dump(exclude={"name"})
    existing = await client.read_variable_by_name(variable.name)
    if existing is None:
        await client.create_variable(VariableCreate(name=variable.name, **desired))
        record.created(key, desired)
        return Change("created", kind, variable.name)
    present = {name: getattr(existing, name) for name in desired}
    outcome, merged = _decide(record, key, desired, present)
    if outcome == "updated":
        await client.update_variable(VariableUpdate(name=variable.name, **merged))
    return Change(outcome, kind, variable.name)


async def _block(client: PrefectClient, block: Block, record: NoRecord) -> Change:
    kind = f"{block.type} block"
    if missing := list(unset(block.values)):
        if block.optional:
            return Change("left out", kind, block.name, f"{', '.join(missing)} is not set")
        raise BootstrapError(
            f"{missing[0]} is not set: the {kind} {block.name} takes its value from it."
        )
    block_class = prefect_schemas.block_class(block.type)
    values = resolve(block.values)
    try:
        wanted = block_class(**values)
    except ValidationError as error:
        # Not the whole error: it quotes the value, which may be a secret.
        first = prefect_schemas.first_error(error, values)
        raise BootstrapError(f"Block {block.name}: {first}.") from None
    except KeyError as error:  # of a custom webhook: the field, a slash, Prefect's placeholder
        field = str(error.args[0]).partition("/")[0]
        raise BootstrapError(
            f"Block {block.name}: {field}: a {{{{placeholder}}}} is neither subject, body, name "
            "nor one of the block's secrets."
        ) from None
    # As the server keeps them: text from the environment may be a number there.
    stored = wanted.model_dump(mode="json", by_alias=True, context={"include_secrets": True})
    desired = {name: stored[name] for name in values}
    key = f"{kind} {block.name}"
    defaults = [
        name
        for name, value in block.values.items()
        if isinstance(value, FromEnvironment) and value.is_default(os.environ)
    ]
    try:
        document = await client.read_block_document_by_name(
            block.name, block_type_slug=block.type, include_secrets=True
        )
    except ObjectNotFound:
        await wanted.save(block.name, client=client)
        record.created(key, desired, defaults)
        return Change("created", kind, block.name)
    outcome, merged = _decide(record, key, desired, document.data, defaults)
    if outcome == "updated":
        known = block_class.model_json_schema()["properties"]
        fields = {name: merged[name] for name in merged if name in known}
        await block_class(**fields).save(block.name, overwrite=True, client=client)
    return Change(outcome, kind, block.name)


async def _global_limit(
    client: PrefectClient, limit: GlobalConcurrencyLimit, record: NoRecord
) -> Change:
    kind = "global concurrency limit"
    key = f"{kind} {limit.name}"
    desired = limit.model_dump(exclude={"name"})
    try:
        existing = await client.read_global_concurrency_limit_by_name(limit.name)
    except ObjectNotFound:
        await client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name=limit.name, **desired)
        )
        record.created(key, desired)
        return Change("created", kind, limit.name)
    present = {name: getattr(existing, name) for name in desired}
    outcome, merged = _decide(record, key, desired, present)
    if outcome == "updated":
        await client.update_global_concurrency_limit(
            limit.name, GlobalConcurrencyLimitUpdate(name=limit.name, **merged)
        )
    return Change(outcome, kind, limit.name)


async def _tag_limit(client: PrefectClient, limit: TagConcurrencyLimit, record: NoRecord) -> Change:
    kind = "tag concurrency limit"
    key = f"{kind} {limit.tag}"
    desired = {"limit": limit.limit}
    try:
        existing = await client.read_concurrency_limit_by_tag(limit.tag)
    except ObjectNotFound:
        await client.create_concurrency_limit(limit.tag, limit.limit)
        record.created(key, desired)
        return Change("created", kind, limit.tag)
    outcome, merged = _decide(record, key, desired, {"limit": existing.concurrency_limit})
    if outcome == "updated":
        # The server updates a limit that exists.
        await client.create_concurrency_limit(limit.tag, merged["limit"])
    return Change(outcome, kind, limit.tag)


async def _deployment(client: PrefectClient, deployment: Deployment, record: NoRecord) -> Change:
    kind = "deployment"
    try:
        flow: Flow[..., Any] = load_flow_from_entrypoint(
            deployment.entrypoint, use_placeholder_flow=False
        )
    except (ImportError, MissingFlowError) as error:
        raise BootstrapError(
            f"Deployment {deployment.name}: {deployment.entrypoint} is not a flow in this image "
            f"({error})."
        ) from None
    name = f"{flow.name}/{deployment.name}"
    key = f"{kind} {name}"
    desired: dict[str, Any] = {
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
    try:
        existing = await client.read_deployment_by_name(name)
    except ObjectNotFound:
        flow_id = await client.create_flow(flow)
        await client.create_deployment(flow_id, deployment.name, **desired)
        record.created(key, desired)
        return Change("created", kind, name)
    present = {field: getattr(existing, field) for field in desired}
    outcome, merged = _decide(record, key, desired, present)
    if outcome == "updated":
        await client.update_deployment(existing.id, DeploymentUpdate(**merged))
    return Change(outcome, kind, name)


async def _automation(client: PrefectClient, automation: Automation, record: NoRecord) -> Change:
    kind = "automation"
    key = f"{kind} {automation.name}"
    content = automation.in_prefects_words()
    ids = {}
    for reference in prefect_schemas.referred(content):
        found = await _find(client, *reference)
        if found is None:
            what, name = reference[0].removesuffix("_document").replace("_", " "), reference[1]
            note = f"{what} {name} is not registered yet"
            return Change("waiting", kind, automation.name, note)
        ids[reference] = found
    desired = prefect_schemas.automation_core(content, ids)
    fields = automation.reconciled()
    wanted = {name: value for name, value in _comparable(desired).items() if name in fields}
    named = await client.read_automations_by_name(automation.name)
    if not named:
        await client.create_automation(desired)
        record.created(key, wanted)
        return Change("created", kind, automation.name)
    existing = _comparable(named[0])
    outcome, merged = _decide(record, key, wanted, {name: existing[name] for name in fields})
    if outcome == "updated":
        await client.update_automation(
            named[0].id, AutomationCore.model_validate(existing | merged)
        )
    return Change(outcome, kind, automation.name)


async def _find(client: PrefectClient, kind: str, name: str) -> UUID | None:
    """Return the id of what an action refers to; None where there is none."""
    parent, _, own = name.rpartition("/")
    try:
        match kind:
            case "deployment":
                return (await client.read_deployment_by_name(name)).id
            case "block_document":
                return (await client.read_block_document_by_name(own, parent)).id
            case "work_pool":
                return (await client.read_work_pool(name)).id
            case "work_queue":
                return (await client.read_work_queue_by_name(own, parent)).id
            case _:
                named = await client.read_automations_by_name(name)
                return named[0].id if named else None
    except ObjectNotFound:
        return None


def _comparable(automation: AutomationCore) -> dict[str, Any]:
    """Return an automation without what the server adds; sets stay sets, which have no order."""
    return AutomationCore.model_validate(automation.model_dump()).model_dump(
        exclude={"owner_resource"}
    )
