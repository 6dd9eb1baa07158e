"""The desired state: what the files describe, read and checked before anything is written.

Several files may be given. Their lists are joined; an entry of a later file replaces the whole
entry of the same name in an earlier one, so that a profile adds to, or changes, what all share.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from bootstrap.errors import BootstrapError

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

    name: Name
    type: Name
    description: str | None = None
    concurrency_limit: NonNegativeInt | None = None
    base_job_template: dict[str, Any] | None = None
    defaults: dict[str, Any] = {}
    env: dict[str, Value] = {}
    hamilton_tracking: bool = False


class Variable(_Closed):
    """A Prefect variable."""

    name: Name
    value: str | int | float | bool | list[Any] | dict[str, Any] | None
    tags: list[str] = []


class Block(_Closed):
    """A block document; `type` is the block type's slug. Secrets come from the environment only.

    An `optional` block whose environment variables are not set is left out.
    """

    name: Name
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

    name: Name
    limit: NonNegativeInt
    slot_decay_per_second: NonNegativeFloat = 0.0


class TagConcurrencyLimit(_Closed):
    """How many task runs with this tag may run at once."""

    tag: Name
    limit: NonNegativeInt


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
    automations: list[Automation] = []
    hamilton: HamiltonProject | None = None


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
    if isinstance(content, dict):
        for pool in content.get("work_pools") or []:
            if isinstance(pool, dict) and isinstance(
                template := pool.get("base_job_template"), str
            ):
                pool["base_job_template"] = _read(path.parent / template)
    try:
        return DesiredState.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BootstrapError(f"{path}: {place}: {first['msg']}.") from error


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise BootstrapError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise BootstrapError(f"{path} is not valid: {' '.join(str(error).split())}.") from error
