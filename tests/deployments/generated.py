"""What the tests of generated desired states share: values that Prefect's own schemas allow."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_hamilton.bootstrap import desired_state
from prefect_hamilton.bootstrap.apply import Options, apply
from prefect_hamilton.bootstrap.changes import Change
from prefect_hamilton.bootstrap.register_deployments import Flows

Object = dict[str, Any]
Objects = st.SearchStrategy[Object]

SECRET = "https://example.org/secret"
WORDS = st.text("abcdefghij", min_size=1, max_size=3)
# PostgreSQL stores no character 0, and UTF-8 has no surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**31), 2**31) | st.floats(-1e9, 1e9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)

# Of one name after the other: most examples update what an earlier one has created.
examples = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

OF_THE_SERVER = {
    "id",
    "created",
    "updated",
    "block_schema",
    "block_type",
    "priority",
    "last_polled",
}
"""What two objects with the same content may differ in; a new queue has the lowest priority."""


def from_schema(schema: Object, definitions: Object) -> st.SearchStrategy[Any]:
    """Return values that a JSON Schema allows, as far as Prefect's models use its keywords."""
    if reference := schema.get("$ref"):
        return from_schema(definitions[reference.rpartition("/")[2]], definitions)
    if choices := schema.get("anyOf"):
        return st.one_of(from_schema(each, definitions) for each in choices)
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "string":
            return st.just(SECRET) if "format" in schema else TEXT
        case "integer":
            return st.integers(1, 60000)
        case "number":
            return st.floats(1, 60)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "array":
            return st.lists(from_schema(schema["items"], definitions), max_size=3)
        case "object":
            inner = schema.get("additionalProperties")
            values = from_schema(inner, definitions) if isinstance(inner, dict) else VALUES
            return st.dictionaries(WORDS, values, max_size=2)
    return VALUES


def from_model(schema: Object, **instead: st.SearchStrategy[Any]) -> Objects:
    """Return what the schema of a model allows; these fields get values of their own."""
    definitions = schema.get("$defs", {}) | schema.get("definitions", {})
    fields = {
        name: instead[name] if name in instead else from_schema(each, definitions)
        for name, each in schema["properties"].items()
    }
    required = {name: fields.pop(name) for name in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=fields)


def several(objects: Objects, key: str = "name") -> st.SearchStrategy[list[Object]]:
    return st.lists(objects, max_size=3, unique_by=lambda each: each[key])


def bring_about(
    api: str, file: Path, repositories: Sequence[Flows] = (), **options: Any
) -> list[Change]:
    """Apply the state in a file, and the repositories; returns the changes."""
    done = apply(
        desired_state.load([file]),
        report=lambda change: None,
        options=Options(**options),
        repositories=repositories,
    )
    with temporary_settings({PREFECT_API_URL: api}):
        return asyncio.run(done).changes


def content(node: Any) -> Any:
    """Return the node without ids, and with each list sorted: Prefect's sets are lists in JSON."""
    if isinstance(node, dict):
        kept = {name for name in node if not name.endswith("_id")} - OF_THE_SERVER
        return {name: content(node[name]) for name in sorted(kept)}
    if isinstance(node, list):
        return sorted(map(content, node), key=json.dumps)
    return node
