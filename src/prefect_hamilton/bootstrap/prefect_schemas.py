"""What Prefect's own models say of a block's values and of an automation, with the place at fault.

An automation is in Prefect's words, but for names where Prefect wants ids: `deployment` instead of
`deployment_id`, and so on for each of REFERENCES.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_args
from uuid import UUID

from prefect.blocks.core import Block
from prefect.events.actions import Action, ActionTypes
from prefect.events.schemas.automations import AutomationCore
from prefect.plugins import load_prefect_collections
from prefect.utilities.dispatch import get_registry_for_type
from pydantic import BaseModel, RootModel, ValidationError

Place = tuple[str | int, ...]
"""Where in a file something is: keys, and positions in lists from 0."""

Reference = tuple[str, str]
"""A kind of object, one of REFERENCES, and its name."""

REFERENCES = {
    "deployment": "flow name/deployment name",
    "block_document": "type/name",
    "work_pool": "name",
    "work_queue": "work pool/name",
    "automation": "name",
}
"""What an action may refer to by name, and how the name is written."""

LISTS_OF_ACTIONS = ("actions", "actions_on_trigger", "actions_on_resolve")

ACTIONS: dict[str, type[Action]] = {
    action.model_fields["type"].default: action for action in get_args(ActionTypes)
}

ANY_ID = UUID(int=0)


class SchemaError(ValueError):
    """The place of what is wrong, below the object, and why; never a value."""

    def __init__(self, place: Place, reason: str) -> None:
        super().__init__(f"{'.'.join(map(str, place))}: {reason}" if place else reason)
        self.place = place
        self.reason = reason

    def below(self, *place: str | int) -> "SchemaError":
        """Return the same of an object that is at this place of another."""
        return SchemaError((*place, *self.place), self.reason)


def first_error(error: ValidationError, content: Any) -> SchemaError:
    """Return what is wrong first; a mistyped key before the one that is missing for that."""
    errors = error.errors(include_input=False, include_url=False)
    unknown = (each for each in errors if each["type"] == "extra_forbidden")
    first = next(unknown, errors[0])
    inner = first.get("ctx", {}).get("error")
    place = tuple(_written(first["loc"], content))
    if isinstance(inner, SchemaError):
        return inner.below(*place)
    return SchemaError(place, first["msg"].removeprefix("Value error, "))


def _written(place: Place, content: Any) -> Iterator[str | int]:
    """Yield the parts of a place that are in the file, and the last, which may be what is missing.

    The others name one of several models.
    """
    for number, part in enumerate(place, 1):
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            if number < len(place):
                continue
        yield part


def block_class(slug: str) -> type[Block]:
    """Return the class of a block type. Raises SchemaError if no package here has it."""
    registry = get_registry_for_type(Block) or {}
    if slug not in registry:
        load_prefect_collections()
        registry = get_registry_for_type(Block) or {}
    if slug not in registry:
        raise SchemaError(
            ("type",),
            f"{slug} is not a block type of a package that is installed here: "
            f"{', '.join(sorted(registry))}",
        )
    return registry[slug]


def check_values(slug: str, values: Mapping[str, Any], reference: type) -> None:
    """Check a block's keys, and that its secrets are instances of `reference`.

    Raises SchemaError.
    """
    schema = block_class(slug).model_json_schema()
    for key in values:
        if key not in schema["properties"]:
            raise SchemaError(
                ("values", key), f"a {slug} block has only {', '.join(schema['properties'])}"
            )
    for secret in schema["secret_fields"]:
        for place in _plain(values, secret.split("."), reference):
            raise SchemaError(
                ("values", *place),
                "a secret's value must come from the environment: use from_env",
            )


def _plain(node: Any, below: list[str], reference: type) -> Iterator[Place]:
    """Yield the places of plain values in a secret; `below` leads to it, `*` is any key."""
    if node is None or isinstance(node, reference):
        return
    if isinstance(node, (dict, list)):
        key = below[0] if below else "*"
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for name, value in items:
            if key in ("*", name):
                yield from ((name, *place) for place in _plain(value, below[1:], reference))
    elif not below or below == ["*"]:
        yield ()


def referred(automation: Mapping[str, Any]) -> Iterator[tuple[Place, Reference]]:
    """Yield what the actions of an automation refer to by name, and where they do."""
    for key in LISTS_OF_ACTIONS:
        for number, action in enumerate(automation.get(key, ())):
            for kind in REFERENCES:
                if kind in action:
                    yield (key, number, kind), (kind, action[kind])


def automation_core(
    automation: Mapping[str, Any], ids: Mapping[Reference, UUID] | None = None
) -> AutomationCore:
    """Return the automation as Prefect takes it.

    `ids` are those of what it refers to; without them any id stands for each. Raises SchemaError.
    """
    content = dict(automation)
    for key in LISTS_OF_ACTIONS:
        if key in content:
            content[key] = [
                _action((key, number), action, ids) for number, action in enumerate(content[key])
            ]
    try:
        core = AutomationCore.model_validate(content)
    except ValidationError as error:
        raise first_error(error, content) from None
    _refuse_unknown_keys(core, content, ())
    return core


def _action(place: Place, content: Any, ids: Mapping[Reference, UUID] | None) -> Action:
    kinds = ", ".join(sorted(ACTIONS))
    if not isinstance(content, dict) or "type" not in content:
        raise SchemaError((*place, "type"), f"an action needs one of {kinds}")
    if (model := ACTIONS.get(str(content["type"]))) is None:
        raise SchemaError((*place, "type"), f"{content['type']} is not one of {kinds}")
    content = dict(content)
    for kind, form in REFERENCES.items():
        if kind in content and f"{kind}_id" in model.model_fields.keys() - content.keys():
            name = content.pop(kind)
            if not isinstance(name, str) or name.count("/") != form.count("/"):
                raise SchemaError((*place, kind), f"must be written as {form}")
            content[f"{kind}_id"] = ids[kind, name] if ids else ANY_ID
    try:
        action = model.model_validate(content)
    except ValidationError as error:
        raise first_error(error, content).below(*place) from None
    _refuse_unknown_keys(action, content, place)
    return action


def _refuse_unknown_keys(model: BaseModel, content: Mapping[str, Any], place: Place) -> None:
    """Prefect's models ignore a key that they do not know."""
    for key, value in content.items():
        if key not in type(model).model_fields:
            known = (name.removesuffix("_id") for name in type(model).model_fields)
            raise SchemaError((*place, key), f"is not one of {', '.join(known)}")
        parts = getattr(model, key)
        for number, part in enumerate(parts) if isinstance(value, list) else [(None, parts)]:
            below = value if number is None else value[number]
            if isinstance(part, BaseModel) and not isinstance(part, RootModel):
                inner = (key,) if number is None else (key, number)
                if isinstance(below, dict):
                    _refuse_unknown_keys(part, below, (*place, *inner))
