"""Any values that the schema accepts render to valid objects, or are rejected in a sentence."""

import copy
import re
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from charts.schema.generate import values_schema
from tests.chart.charts import Object, RenderError, render
from tests.chart.conftest import PROFILES, profile_values

SCHEMA = values_schema()
# Read once: a strategy must draw the same whenever it is asked again.
BASES: list[Object] = [{}, *map(profile_values, PROFILES)]
EXAMPLE = profile_values("everything")
POOLS = ("kubernetes", "GPU_pool")
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=20)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True)
# The schemas of Kubernetes do not restrict labels and annotations.
LABELS = st.dictionaries(
    st.from_regex(r"example\.org/[a-z]{1,9}", fullmatch=True),
    st.from_regex(r"[a-z0-9]{0,9}", fullmatch=True),
    max_size=2,
)


def resolved(node: Object) -> Object:
    """Follow a reference to where it is defined."""
    while "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def is_kubernetes(node: Object) -> bool:
    """Whether it is a part of a Kubernetes object, alone, in a list or by name, or perhaps null."""
    inner = [node.get(key) for key in ("items", "additionalProperties")]
    inner += [value.get("items") for value in inner if isinstance(value, dict)]
    parts = [node, node.get("then", {}), *filter(lambda part: isinstance(part, dict), inner)]
    names = [part["$ref"].rsplit("/", 1)[1] for part in parts if "$ref" in part]
    return any("." in name or name in {"ParentReference", "Rule"} for name in names)


def leaves(node: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Object]]:
    """Yield every value that can be set, with its schema: no mapping with named keys."""
    if is_kubernetes(node):
        yield path, node
        return
    node = resolved(node)
    alternative = resolved(node.get("then", {}))
    mapping = next((part for part in (node, alternative) if "properties" in part), None)
    if path == ("workers",):
        (pool,) = node["patternProperties"].values()
        for name in POOLS:
            yield from leaves(pool, (*path, name))
    elif mapping:
        for key, child in mapping["properties"].items():
            yield from leaves(child, (*path, key))
    else:
        yield path, node


LEAVES = dict(leaves(SCHEMA))


def examples(path: tuple[str, ...]) -> list[Any]:
    """Return a copy of what everything.yaml has there: its parts can exclude each other."""
    node: Any = EXAMPLE
    for key in ("global", path[-1]) if path[-1] in EXAMPLE["global"] else path:
        node = node.get(key, {}) if isinstance(node, dict) else {}
    return [copy.deepcopy(node)] if node else []


def any_value(path: tuple[str, ...], node: Object) -> st.SearchStrategy[Any]:
    """Return a strategy for the values that a schema allows."""
    if is_kubernetes(node):
        is_list = "array" in str(node.get("type"))
        return st.sampled_from([[] if is_list else {}, *examples(path)])
    node = resolved(node)
    if isinstance(node.get("type"), list):
        return st.one_of([any_value(path, {**node, "type": kind}) for kind in node["type"]])
    if node.get("type") == "object" and "then" in node:
        return any_value(path, node["then"])
    if "enum" in node:
        return st.sampled_from(node["enum"])
    match node.get("type"):
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
        case "integer":
            return st.integers(node.get("minimum", 0), node.get("maximum", 10**6))
        case "number":
            least, most = node.get("minimum", 0), node.get("maximum", 300)
            return st.sampled_from([x for x in (0.5, 1, 2.5, 300) if least <= x <= most])
        case "string" if pattern := node.get("if", {}).get("pattern"):
            matching = st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True)
            # YAML has no control characters.
            return matching.filter(
                lambda text: len(text) <= node.get("maxLength", 253) and text.isprintable()
            )
        case "string":
            return TEXT.filter(lambda text: len(text) >= node.get("minLength", 0))
        case "array" if node["items"].get("additionalProperties") is True:
            return st.sampled_from([[], *examples(path)])
        case "array":
            least = node.get("minItems", 0)
            return st.lists(any_value(path, node["items"]), min_size=least, max_size=3)
        case "object" if node.get("additionalProperties") is True:
            return st.sampled_from([{}, *examples(path)])
        case "object" if "patternProperties" in node and path[-1] == "env":
            source = {"secretKeyRef": {"name": "own", "key": "key"}}
            scalar = st.one_of(TEXT, st.integers(), st.booleans(), st.none(), st.just(source))
            return st.dictionaries(NAMES, scalar, max_size=3)
        case "object" if node["additionalProperties"] == {"type": "string"}:
            return LABELS
        case "object":
            return st.sampled_from([{}, *examples(path)])
    raise NotImplementedError(f"{'.'.join(path)}: {node}")


@st.composite
def some_values(draw: st.DrawFn) -> Object:
    """Draw a values file that sets a few values, beside those of an example."""
    values = copy.deepcopy(draw(st.sampled_from(BASES)))
    for path in draw(st.lists(st.sampled_from(sorted(LEAVES)), min_size=1, max_size=8)):
        node = values
        for key in path[:-1]:
            node[key] = node = node.get(key) or {}
        node[path[-1]] = draw(any_value(path, LEAVES[path]))
    return values


def refuses_in_sentences(error: str) -> bool:
    """Whether the chart itself refuses: each line of what it says is a sentence."""
    found = re.search(r"/validation\.yaml:1:4\): \n\n(.+?)\n\n", error, re.DOTALL)
    return found is not None and all(re.search(r"\.\)?$", x) for x in found[1].splitlines())


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(some_values())
def test_any_values_render_or_are_refused_in_one_sentence(values: Object) -> None:
    try:
        release = render(values)
    except RenderError as error:
        assert refuses_in_sentences(str(error)), error
        return
    assert release.objects
