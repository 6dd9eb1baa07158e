"""Templates read like what they render: short lines, and YAML that is written as YAML."""

import importlib.util
import re
from collections.abc import Iterator

import pytest

from tests.chart.charts import CHART, Release, containers, pod_template
from tests.chart.conftest import PROFILES

TEMPLATES = sorted(path for path in (CHART / "templates").rglob("*") if path.is_file())
LONGEST = 140
# Line breaks, keys and indentation that a template makes in a string or changes in a rendered text.
IN_STRINGS = (
    re.compile(r"\bprintf\s+\"[^\"]*\\n"),
    re.compile(r"\b(?:replace|regexReplaceAll\w*)\s+\"[^\"]*(?:\\n|: | \+)"),
)


def lines() -> Iterator[tuple[str, str]]:
    """Yield place and text of each line of the templates."""
    for path in TEMPLATES:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            yield f"{path.relative_to(CHART)}:{number}", line


def test_lines_are_short() -> None:
    assert [place for place, line in lines() if len(line) > LONGEST] == []


def test_lines_do_not_end_with_spaces() -> None:
    assert [place for place, line in lines() if line != line.rstrip()] == []


def test_yaml_is_not_made_in_strings() -> None:
    actions = {
        f"{path.relative_to(CHART)}: {action[:80]}"
        for path in TEMPLATES
        for action in re.findall(r"\{\{.*?\}\}", path.read_text(), re.DOTALL)
        if any(pattern.search(action) for pattern in IN_STRINGS)
    }
    assert actions == set()


@pytest.mark.parametrize("name", PROFILES)
def test_rendered_manifests_have_no_trailing_spaces(
    name: str, profiles: dict[str, Release]
) -> None:
    text = profiles[name].text
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


def modules(release: Release) -> Iterator[str]:
    """Yield the Python modules that containers and their probes run."""
    templates = [t for o in release.objects if (t := pod_template(o)) is not None]
    for container in (c for template in templates for c in containers(template)):
        probe = container.get("livenessProbe", {}).get("exec", {}).get("command", [])
        for command in (container.get("args", []), probe):
            yield from re.findall(r"-m (prefect_hamilton\S*)", " ".join(map(str, command)))


@pytest.mark.parametrize("name", PROFILES)
def test_pods_run_modules_that_exist(name: str, profiles: dict[str, Release]) -> None:
    found = set(modules(profiles[name]))
    assert "prefect_hamilton.server.check_release" in found
    assert [module for module in sorted(found) if not importlib.util.find_spec(module)] == []
