"""
Write what follows from the chart's values: values.yaml, values.schema.json, README table.

Usage: python -m scripts.chart_schema [--check]

With --check nothing is written; the exit code is 1 when a file is not current.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from annotated_types import MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from scripts.chart_values import (
    ChartValues,
    Component,
    Global,
    PodDisruptionBudget,
    PodSettings,
    Resources,
)

CHART = Path(__file__).parent.parent / "charts" / "prefect-hamilton"
MARKS = ("<!-- values -->", "<!-- /values -->")
COLUMNS = 100


def main() -> None:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    stale = []
    for path, text in files().items():
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.name)
        if not check:
            path.write_text(text)
    if stale and check:
        sys.exit(f"Not current: {', '.join(stale)}. Run: python -m scripts.chart_schema")
    print(f"Written: {', '.join(stale)}" if stale else "All current.")


def files() -> dict[Path, str]:
    """Return the generated files: path and text."""
    readme = CHART / "README.md"
    before, _, rest = readme.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    table = f"{before}{MARKS[0]}\n{values_table()}{MARKS[1]}{after}"
    return {
        CHART / "values.yaml": values_yaml(),
        CHART / "values.schema.json": json.dumps(values_schema(), indent=2) + "\n",
        readme: table,
    }


def values_schema() -> dict[str, Any]:
    """Return the JSON schema of the values; Helm checks against it before it renders."""
    schema = ChartValues.model_json_schema(by_alias=True)
    _strip(schema)
    # Not beside a `$ref`, where older Helm 3 does not look.
    needed = _require(ChartValues, ChartValues(), yaml.safe_load(values_yaml()))
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, **schema, "allOf": [needed]}


def _require(model: type[BaseModel], instance: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that refuses null where it takes a default away that templates need.

    That is a section, a switch or a list that may not be empty; a key with nothing under it is such
    a null. Other values may be null: Kubernetes takes that for nothing said.
    """
    required = []
    properties = {}
    for alias, field, default in _fields(model, instance):
        if alias not in defaults or isinstance(default, Resources | PodDisruptionBudget):
            continue
        if isinstance(default, BaseModel):
            required.append(alias)
            if inner := _require(type(default), default, defaults[alias]):
                properties[alias] = inner
        elif isinstance(default, bool) or any(isinstance(m, MinLen) for m in field.metadata):
            required.append(alias)
    found = {"required": required, "properties": properties}
    return {key: part for key, part in found.items() if part}


def _strip(node: Any) -> None:
    """Remove titles and defaults, which values.yaml has; close mappings with named keys."""
    if isinstance(node, dict):
        for name, child in node.items():
            if name in {"properties", "$defs"}:
                for grandchild in child.values():
                    _strip(grandchild)
            else:
                _strip(child)
        if "patternProperties" in node:
            node["additionalProperties"] = False
        node.pop("title", None)
        node.pop("default", None)
    elif isinstance(node, list):
        for child in node:
            _strip(child)


def values_yaml() -> str:
    """values.yaml: every default with its sentence; what recurs is explained where it is first."""
    lines = [
        "# Generated from scripts/chart_values.py by scripts/chart_schema.py; edit that.",
        "#",
        "# Every component (server, backgroundServices, worker, gitServer, hamiltonUi, postgres,",
        "# valkey, bootstrap, secrets) also takes the pod settings that `global` shows. What is",
        "# explained once (image, storage, service, ...) has the same keys everywhere; the README",
        "# has the whole table.",
    ]
    explained: set[type[BaseModel]] = {PodSettings}
    for alias, field, default in _fields(ChartValues, ChartValues()):
        lines.append("")
        lines += _entry(alias, field, default, 0, explained)
    return "\n".join(lines) + "\n"


def _entry(
    alias: str, field: FieldInfo, default: Any, depth: int, explained: set[type[BaseModel]]
) -> Iterator[str]:
    indent = "  " * depth
    if not isinstance(default, BaseModel):
        yield from _comment(field.description or "", depth)
        yield from _dump({alias: _plain(default)}, indent)
        return
    model = type(default)
    if model in explained:
        yield from _dump({alias: _plain(default)}, indent)
        return
    explained.add(model)
    yield from _comment(field.description or model.__doc__ or "", depth)
    yield f"{indent}{alias}:"
    for child_alias, child, value in _fields(model, default):
        if not _is_inherited(model, child_alias):
            yield from _entry(child_alias, child, value, depth + 1, explained)


def _dump(mapping: dict[str, Any], indent: str) -> Iterator[str]:
    text = yaml.safe_dump(mapping, sort_keys=False, width=1000)
    return (f"{indent}{line}" for line in text.splitlines())


def _comment(text: str, depth: int) -> list[str]:
    indent = "  " * depth + "# "
    sentence = " ".join(text.split())
    return textwrap.wrap(
        sentence,
        COLUMNS,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def values_table() -> str:
    """Return the README's table of all values."""
    rows = ["| Value | Default | What it does |", "|---|---|---|"]
    rows += [
        f"| `{path}` | {f'`{default}`' if default else ''} | {text} |"
        for path, default, text in documented()
    ]
    return "\n".join(rows) + "\n"


def documented() -> Iterator[tuple[str, str, str]]:
    """Every value: its path, default as JSON and sentence."""
    yield from _documented(ChartValues, ChartValues(), "")


def _documented(
    model: type[BaseModel], instance: Any, prefix: str
) -> Iterator[tuple[str, str, str]]:
    for alias, field, default in _fields(model, instance):
        path = f"{prefix}{alias}"
        if isinstance(default, BaseModel):
            yield from _documented(type(default), default, f"{path}.")
            continue
        if (
            model is not Global
            and alias in _aliases(PodSettings)
            and issubclass(model, PodSettings)
        ):
            continue
        value = json.dumps(_plain(default)) if default not in (None, "", {}, []) else ""
        yield path, value, " ".join((field.description or "").split())


def _is_inherited(model: type[BaseModel], alias: str) -> bool:
    """Whether it is a pod setting, which `global` alone explains."""
    inherits = issubclass(model, PodSettings) and model is not Global
    return inherits and alias in _aliases(PodSettings)


def _aliases(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def _fields(model: type[BaseModel], instance: Any) -> Iterator[tuple[str, FieldInfo, Any]]:
    own = list(model.model_fields.items())
    # What a class adds comes before what it inherits.
    bases = [base for base in (Component, PodSettings) if issubclass(model, base)]
    order = {name: index for index, base in enumerate(bases, start=1) for name in base.model_fields}
    for name, field in sorted(own, key=lambda item: order.get(item[0], 0)):
        yield field.alias or name, field, getattr(instance, name)


def _plain(value: Any) -> Any:
    """Return a default as YAML has it; what is empty in a model is left out."""
    if isinstance(value, BaseModel):
        fields = value.model_dump(by_alias=True)
        return {key: item for key, item in fields.items() if item not in (None, "", {}, [])}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


if __name__ == "__main__":
    main()
