"""The desired state: what the files describe, read and checked before anything is written.

Several files may be given. Their lists are joined; an entry of a later file replaces the whole
entry of the same name in an earlier one, so that a profile adds to, or changes, what all share.
Within a file, two entries of one name are an error, and so is a key that appears twice.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from prefect.types import StrictVariableValue
from prefect.types.names import BlockDocumentName, NonEmptyishName, VariableName
from prefect.types.names import Name as PrefectName
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from prefect_hamilton.bootstrap import prefect_schemas
from prefect_hamilton.bootstrap.alerts import HEARTBEAT_SECONDS, PREFIX, Alerts
from prefect_hamilton.bootstrap.environment import FromEnvironment, Name
from prefect_hamilton.bootstrap.errors import BootstrapError

FILE = Path(__file__).with_name("desired-state.yaml")
"""The objects that every profile has."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _with_references(node: Any) -> Any:
    """Return the node with each `{from_env: NAME}` in it, at any depth, as FromEnvironment."""
    if isinstance(node, dict) and "from_env" in node:
        try:
            return FromEnvironment.model_validate(node)
        except ValidationError as error:
            raise prefect_schemas.first_error(error, node) from None
    if not isinstance(node, (dict, list)):
        return node
    read = node.copy()
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        try:
            read[key] = _with_references(value)
        except prefect_schemas.SchemaError as error:
            raise error.below(key) from None
    return read


Scalar = str | int | float | bool | FromEnvironment
Values = Annotated[dict[str, Any], AfterValidator(_with_references)]


class WorkQueue(_Closed):
    """A queue of a work pool; 1 is the highest priority. Without a priority it is the server's."""

    name: NonEmptyishName
    description: str = ""
    priority: PositiveInt | None = None
    concurrency_limit: NonNegativeInt | None = None


class PoolProject(_Closed):
    """A work pool's own project in the Hamilton UI, and who else may write to it."""

    name: Name
    users: list[Name] = []


class WorkPool(_Closed):
    """A work pool, its queues and its base job template.

    `base_job_template` is a JSON or YAML file beside the desired state, in which `{from_env: NAME}`
    may stand for a value; without it the worker type's own template is the start. `defaults` sets
    defaults of the template's variables, `env` adds to the default of its variable `env`.
    `hamilton_tracking` adds what turns tracking on: in the project of the state, or in the pool's
    own `hamilton_project`.
    """

    name: NonEmptyishName
    type: Name
    description: str | None = None
    concurrency_limit: NonNegativeInt | None = None
    base_job_template: Values | None = None
    defaults: dict[str, Any] = {}
    env: dict[str, Scalar] = {}
    hamilton_tracking: bool = False
    hamilton_project: PoolProject | None = None
    queues: list[WorkQueue] = []


class Variable(_Closed):
    """A Prefect variable."""

    name: Annotated[VariableName, Field(min_length=1)]
    value: StrictVariableValue
    tags: list[str] = []


class Block(_Closed):
    """A block document; `type` is the block type's slug, `values` are in the words of that type.

    Secrets come from the environment only. An `optional` block whose environment variables are not
    set is left out.
    """

    name: BlockDocumentName
    type: Name
    values: Values
    optional: bool = False

    @model_validator(mode="after")
    def _fits_the_type(self) -> Self:
        prefect_schemas.check_values(self.type, self.values, FromEnvironment)
        return self


class GlobalConcurrencyLimit(_Closed):
    """A global concurrency limit; `slot_decay_per_second` above 0 makes it a rate limit."""

    name: PrefectName
    limit: NonNegativeInt
    slot_decay_per_second: NonNegativeFloat = 0.0


class TagConcurrencyLimit(_Closed):
    """How many task runs with this tag may run at once."""

    tag: Name
    limit: NonNegativeInt


class Deployment(_Closed):
    """A deployment of a flow in the images, which is available to every flows repository.

    `entrypoint` is a module path, as in `package.module.flow`: there is no code to pull. A value in
    `job_variables` may come from the environment.
    """

    name: PrefectName
    entrypoint: Annotated[str, Field(pattern=r"^\w+(\.\w+)+$")]
    work_pool: NonEmptyishName
    tags: list[str] = []
    job_variables: Values = {}


class Automation(_Closed):
    """An automation in Prefect's own words, but with names instead of ids (`prefect_schemas`).

    Instead of `actions` it may have `run_deployment` and `parameters`, which may hold Jinja
    templates. A field that is omitted has its default, but people may pause one without `enabled`.
    """

    name: Name
    description: str = ""
    enabled: bool = True
    tags: list[str] = []
    trigger: dict[str, Any]
    actions: list[Any] = []
    actions_on_trigger: list[Any] = []
    actions_on_resolve: list[Any] = []
    run_deployment: Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")] | None = None
    parameters: dict[str, str] = {}

    @model_validator(mode="after")
    def _fits_prefect(self) -> Self:
        if (self.run_deployment is None) == (not self._has_actions()):
            raise ValueError("an automation has either actions or run_deployment")
        prefect_schemas.automation_core(self.in_prefects_words())
        return self

    def _has_actions(self) -> bool:
        return bool(self.actions or self.actions_on_trigger or self.actions_on_resolve)

    def in_prefects_words(self) -> dict[str, Any]:
        """Return what Prefect's AutomationCore takes, with names in the place of ids."""
        content = self.model_dump(exclude={"run_deployment", "parameters"})
        if self.run_deployment is not None:
            content["actions"] = [
                {
                    "type": "run-deployment",
                    "deployment": self.run_deployment,
                    "parameters": self.parameters,
                }
            ]
        return content


class HamiltonProject(_Closed):
    """The project in the Hamilton UI, the user who owns it, and who else may write to it."""

    name: Name
    username: FromEnvironment
    users: list[Name] = []


class DesiredState(_Closed):
    """Everything that the bootstrap applies."""

    work_pools: list[WorkPool] = []
    variables: list[Variable] = []
    blocks: list[Block] = []
    global_concurrency_limits: list[GlobalConcurrencyLimit] = []
    tag_concurrency_limits: list[TagConcurrencyLimit] = []
    deployments: list[Deployment] = []
    automations: list[Automation] = []
    alerts: Alerts = Alerts()
    hamilton: HamiltonProject | None = None

    def hamilton_projects(self) -> list[HamiltonProject]:
        """Return the common project and those of work pools, with the users of all their pools."""
        if self.hamilton is None:
            return []
        found = {self.hamilton.name: self.hamilton}
        for own in (each.hamilton_project for each in self.work_pools):
            if own is not None:
                known = found[own.name].users if own.name in found else []
                users = list(dict.fromkeys([*known, *own.users]))
                found[own.name] = self.hamilton.model_copy(
                    update={"name": own.name, "users": users}
                )
        return list(found.values())


REPOSITORY_MAY_HAVE = (
    "variables",
    "global_concurrency_limits",
    "tag_concurrency_limits",
    "automations",
)
"""Sections that a flows repository may have: none of them reads the bootstrap's environment."""


def load_repository(path: Path) -> DesiredState:
    """Read the state file of a repository. Raises BootstrapError as `load` does."""
    state = load([path])
    for field in sorted(state.model_fields_set.difference(REPOSITORY_MAY_HAVE)):
        raise BootstrapError(
            f"{path.name}: {field}: a flows repository may only have "
            f"{', '.join(REPOSITORY_MAY_HAVE)}: move the rest to the chart's bootstrap.state."
        )
    return state


def load(paths: Sequence[Path], release: str | None = None) -> DesiredState:
    """Read and join the files, which are those of a release.

    Raises BootstrapError naming file, place and what is wrong.
    """
    states = [_load_one(path) for path in paths]
    joined: dict[str, Any] = {}
    for state in states:
        for field in state.model_fields_set:
            value = getattr(state, field)
            if isinstance(value, list):
                entries = [*joined.get(field, []), *value]
                value = list({_key(entry): entry for entry in entries}.values())
            joined[field] = value
    return _with_alerts(DesiredState(**joined), release)


def _with_alerts(state: DesiredState, release: str | None) -> DesiredState:
    """Return the state with the blocks and automations that its alerts stand for."""
    added: dict[str, list[Any]] = {
        "blocks": [_of_alerts(Block, each) for each in state.alerts.blocks()],
        "automations": [_of_alerts(Automation, each) for each in state.alerts.automations(release)],
    }
    update: dict[str, Any] = {}
    for field, entries in added.items():
        others = getattr(state, field)
        taken = {_key(entry) for entry in others}
        for entry in entries:
            if _key(entry) in taken:
                raise BootstrapError(
                    f"{field}: {'/'.join(_key(entry))} is the name of an alert: choose another one."
                )
        if entries:
            update[field] = [*others, *entries]
    if state.alerts.needs_heartbeats:
        variable = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
        update["work_pools"] = [
            pool.model_copy(update={"env": variable | pool.env}) for pool in state.work_pools
        ]
    return state.model_copy(update=update)


def _of_alerts(model: type[Any], content: dict[str, Any]) -> Any:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = prefect_schemas.first_error(error, content)
        place = f"channels.{content['name'].removeprefix(PREFIX)}"
        raise BootstrapError(f"alerts.{place}.{first}.") from error


def resolve(node: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """Return the node, values from the environment put in; leaves out the keys of unset ones."""
    match node:
        case FromEnvironment():
            return node.resolve(environment)
        case list():
            return [resolve(item, environment) for item in node]
        case dict():
            return {
                key: resolve(value, environment)
                for key, value in node.items()
                if not (isinstance(value, FromEnvironment) and value.resolve(environment) is None)
            }
        case _:
            return node


def unset(node: Any, environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Yield the names of the environment's variables that the node needs and that are not set."""
    match node:
        case FromEnvironment() if node.resolve(environment) is None:
            yield node.from_env
        case list():
            for item in node:
                yield from unset(item, environment)
        case dict():
            yield from unset(list(node.values()), environment)


def _key(entry: Any) -> tuple[str, ...]:
    match entry:
        case Block():
            return (entry.type, entry.name)
        case TagConcurrencyLimit():
            return (entry.tag,)
        case _:
            return (entry.name,)


def _load_one(path: Path) -> DesiredState:
    content = _read(path)
    if content is None:
        content = {}
    pools = content.get("work_pools") if isinstance(content, dict) else None
    for pool in pools if isinstance(pools, list) else []:
        if isinstance(pool, dict) and isinstance(template := pool.get("base_job_template"), str):
            pool["base_job_template"] = _read(path.parent / template)
    try:
        state = DesiredState.model_validate(content)
    except ValidationError as error:
        first = prefect_schemas.first_error(error, content)
        raise BootstrapError(f"{path}: {first}.") from error
    for field in state.model_fields_set:
        _refuse_two_of_one_name(path, field, getattr(state, field))
    return state


def _refuse_two_of_one_name(path: Path, field: str, entries: Any) -> None:
    if not isinstance(entries, list):
        return
    times = Counter(_key(entry) for entry in entries)
    for key, number in times.items():
        if number > 1:
            raise BootstrapError(
                f"{path}: {field}: {number} entries are named {'/'.join(key)}: keep one of them."
            )


class _YamlLoader(yaml.SafeLoader):
    """YAML, in which a key that appears twice is an error instead of the last one's value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Look at the keys as they are written, before `<<` adds others."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} appears twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value))
        return node


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, number in Counter(key for key, _ in pairs).items():
        if number > 1:
            raise ValueError(f"the key {key} appears twice")
    return dict(pairs)


_json = TypeAdapter[JsonValue](JsonValue, config=ConfigDict(allow_inf_nan=False))
"""Values that the API accepts: no dates, no infinite numbers, only text as keys."""


def _read(path: Path) -> Any:
    """Return the file's content. Raises BootstrapError naming the file and what is wrong."""
    try:
        return _json.validate_python(read_file(path))
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        # Every other part names a type.
        place = ".".join(str(part) for part in first["loc"][1::2]) or "the file"
        raise BootstrapError(f"{path}: {place}: {first['msg']}.") from error
    except RecursionError as error:
        raise BootstrapError(f"{path} is not valid: it is nested too deeply.") from error


def read_file(path: Path) -> Any:
    """Return the content of a YAML or JSON file without double keys. Raises BootstrapError."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_json_object)
        return yaml.load(text, _YamlLoader)  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise BootstrapError(f"{path} cannot be read: {error.strerror}.") from error
    except RecursionError as error:
        raise BootstrapError(f"{path} is not valid: it is nested too deeply.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise BootstrapError(f"{path} is not valid: {' '.join(str(error).split())}.") from error
