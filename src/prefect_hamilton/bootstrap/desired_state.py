"""The desired state: what the files describe, read and checked before anything is written.

Several files may be given. Their lists are joined; an entry of a later file replaces the whole
entry of the same name in an earlier one, so that a profile adds to, or changes, what all share.
Within a file, two entries of one name are an error, and so is a key that is there twice.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Annotated, Any, Self

import yaml
from prefect.types import StrictVariableValue
from prefect.types.names import BlockDocumentName, NonEmptyishName, VariableName
from prefect.types.names import Name as PrefectName
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from prefect_hamilton.bootstrap.errors import BootstrapError

FILE = Path(__file__).with_name("desired-state.yaml")
"""What the servers hold in every profile."""

Name = Annotated[str, Field(min_length=1)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FromEnvironment(_Closed):
    """A value that is not in the file: that of an environment variable.

    `default` may name other variables, as in `duckdb:///${PREFECT_HAMILTON_STATE}/x.duckdb`. In a
    block it is for a new one: a value that somebody gave is never replaced by a default.
    """

    from_env: Name
    default: str | None = None

    def is_default(self, environment: Mapping[str, str]) -> bool:
        """Whether the value is only the default."""
        return not environment.get(self.from_env)

    def resolve(self, environment: Mapping[str, str]) -> str | None:
        """Return the value; None when neither the variable nor all in the default are set."""
        if value := environment.get(self.from_env):
            return value
        if self.default is None:
            return None
        try:
            return Template(self.default).substitute(environment)
        except KeyError:
            return None


Value = str | int | float | bool | FromEnvironment


class WorkPool(_Closed):
    """A work pool and its base job template.

    `base_job_template` is a JSON or YAML file beside the desired state, in which `{from_env: NAME}`
    may stand for a value; without it the worker type's own template is the start. `defaults` sets
    defaults of the template's variables, `env` adds to the default of its variable `env`.
    `hamilton_tracking` adds what turns tracking on.
    """

    name: NonEmptyishName
    type: Name
    description: str | None = None
    concurrency_limit: NonNegativeInt | None = None
    base_job_template: dict[str, Any] | None = None
    defaults: dict[str, Any] = {}
    env: dict[str, Value] = {}
    hamilton_tracking: bool = False


class Variable(_Closed):
    """A Prefect variable."""

    name: Annotated[VariableName, Field(min_length=1)]
    value: StrictVariableValue
    tags: list[str] = []


class Block(_Closed):
    """A block document; `type` is the block type's slug. Secrets come from the environment only.

    An `optional` block whose environment variables are not set is left out.
    """

    name: BlockDocumentName
    type: Name
    values: dict[str, Value]
    optional: bool = False

    @model_validator(mode="after")
    def _no_secret_in_the_file(self) -> Self:
        if self.type == "secret" and not all(
            isinstance(value, FromEnvironment) for value in self.values.values()
        ):
            raise ValueError("a secret's value must come from the environment: use from_env")
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
    """A deployment of a flow that is in the images, so that every repository of flows has it.

    `entrypoint` is a module path, as in `package.module.flow`: there is no code to pull. A value in
    `job_variables` may come from the environment.
    """

    name: PrefectName
    entrypoint: Annotated[str, Field(pattern=r"^\w+(\.\w+)+$")]
    work_pool: NonEmptyishName
    tags: list[str] = []
    job_variables: dict[str, Value] = {}


class Automation(_Closed):
    """An automation that runs a deployment (`flow name/deployment name`) on an event.

    `trigger` is an event trigger in Prefect's own words; `parameters` may hold Jinja templates.
    """

    name: Name
    description: str = ""
    trigger: dict[str, Any]
    run_deployment: Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")]
    parameters: dict[str, str] = {}


class HamiltonProject(_Closed):
    """The project in the Hamilton UI, the user who owns it, and who else may write to it."""

    name: Name
    username: FromEnvironment
    users: list[Name] = []


class DesiredState(_Closed):
    """Everything that the bootstrap brings about."""

    work_pools: list[WorkPool] = []
    variables: list[Variable] = []
    blocks: list[Block] = []
    global_concurrency_limits: list[GlobalConcurrencyLimit] = []
    tag_concurrency_limits: list[TagConcurrencyLimit] = []
    deployments: list[Deployment] = []
    automations: list[Automation] = []
    hamilton: HamiltonProject | None = None


REPOSITORY_MAY_HAVE = (
    "variables",
    "global_concurrency_limits",
    "tag_concurrency_limits",
    "automations",
)
"""What a repository of flows may ask for: nothing that reads the bootstrap's environment."""


def load_repository(path: Path) -> DesiredState:
    """Read the state file of a repository. Raises BootstrapError as `load` does."""
    state = load([path])
    for field in sorted(state.model_fields_set.difference(REPOSITORY_MAY_HAVE)):
        raise BootstrapError(
            f"{path.name}: {field}: a repository of flows may have "
            f"{', '.join(REPOSITORY_MAY_HAVE)}; move the rest to the chart's bootstrap.state."
        )
    return state


def load(paths: Sequence[Path]) -> DesiredState:
    """Read and join the files. Raises BootstrapError naming file, place and what is wrong."""
    states = [_load_one(path) for path in paths]
    joined: dict[str, Any] = {}
    for state in states:
        for field in state.model_fields_set:
            value = getattr(state, field)
            if isinstance(value, list):
                entries = [*joined.get(field, []), *value]
                value = list({_key(entry): entry for entry in entries}.values())
            joined[field] = value
    return DesiredState(**joined)


def resolve(
    values: Mapping[str, Value], environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """Return the values, those from the environment put in; leaves out what is not set there."""
    resolved = {
        key: value.resolve(environment) if isinstance(value, FromEnvironment) else value
        for key, value in values.items()
    }
    return {key: value for key, value in resolved.items() if value is not None}


def resolve_nested(node: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """Return the node with each `{from_env: NAME}` in it replaced. Raises BootstrapError."""
    if isinstance(node, list):
        return [resolve_nested(item, environment) for item in node]
    if not isinstance(node, dict):
        return node
    if "from_env" not in node:
        return {key: resolve_nested(value, environment) for key, value in node.items()}
    value = FromEnvironment.model_validate(node).resolve(environment)
    if value is None:
        raise BootstrapError(f"{node['from_env']} is not set: a base job template names it.")
    return value


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
        raise BootstrapError(f"{path}: {_first(error)}.") from error
    for field in state.model_fields_set:
        _refuse_two_of_one_name(path, field, getattr(state, field))
    return state


def _first(error: ValidationError) -> str:
    """Return what is wrong first; a mistyped key before the one that is missing for that."""
    errors = error.errors(include_input=False, include_context=False)
    unknown = (each for each in errors if each["type"] == "extra_forbidden")
    first = next(unknown, errors[0])
    return f"{'.'.join(str(part) for part in first['loc']) or 'the file'}: {first['msg']}"


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
    """YAML, in which a key that is there twice is an error instead of the last one's value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Look at the keys as they are written, before `<<` adds others."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} is there twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value))
        return node


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, number in Counter(key for key, _ in pairs).items():
        if number > 1:
            raise ValueError(f"the key {key} is there twice")
    return dict(pairs)


_json = TypeAdapter[JsonValue](JsonValue, config=ConfigDict(allow_inf_nan=False))
"""What the API takes: no dates, no infinite numbers, no other keys than text."""


def _read(path: Path) -> Any:
    """Return the file's content. Raises BootstrapError naming the file and what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = json.loads(text, object_pairs_hook=_json_object)
        else:
            content = yaml.load(text, _YamlLoader)  # noqa: S506  # a SafeLoader
        return _json.validate_python(content)
    except OSError as error:
        raise BootstrapError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        # Every other part names a type.
        place = ".".join(str(part) for part in first["loc"][1::2]) or "the file"
        raise BootstrapError(f"{path}: {place}: {first['msg']}.") from error
    except RecursionError as error:
        raise BootstrapError(f"{path} is not valid: it is nested too deeply.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise BootstrapError(f"{path} is not valid: {' '.join(str(error).split())}.") from error
