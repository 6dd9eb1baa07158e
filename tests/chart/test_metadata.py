"""Chart.yaml: Helm's lint has no remark, and the annotations for Artifact Hub match the chart."""

import base64
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import chart_images
from tests.chart.charts import CHART, ROOT, template_text
from tests.chart.conftest import PROFILES

METADATA: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text())


def annotation(name: str) -> Any:
    return yaml.safe_load(METADATA["annotations"][f"artifacthub.io/{name}"])


@pytest.mark.parametrize("name", [None, *PROFILES])
def test_lint_has_no_remark(name: str | None) -> None:
    values = [f"--values={CHART}/examples/{name}/values.yaml"] if name else []
    command = ["helm", "lint", "--strict", str(CHART), *values]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^\[.*", done.stdout, re.MULTILINE) == []


def test_build_metadata_of_the_version_changes_neither_images_nor_versions(tmp_path: Path) -> None:
    """Flux appends the digest of the chart to its version."""
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    version = METADATA["version"]
    text = (chart / "Chart.yaml").read_text()
    suffixed = text.replace(f"\nversion: {version}\n", f"\nversion: {version}+4fda46fd8c4e\n")
    assert suffixed != text
    (chart / "Chart.yaml").write_text(suffixed)
    without = re.compile(r"\n +helm\.sh/chart: .*")
    assert without.sub("", template_text(chart=chart)) == without.sub("", template_text())


def test_the_annotated_images_are_those_of_the_default_values() -> None:
    images = annotation("images")
    assert sorted(image["image"] for image in images) == chart_images.images()
    built = {image for image in chart_images.images() if image.startswith("prefect-hamilton/")}
    assert {image["image"] for image in images if image.get("whitelisted")} == built
    assert {image.partition(":")[2] for image in built} == {METADATA["version"]}


def test_the_annotated_changes_stand_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    section = changelog.partition(f"## [{METADATA['version']}]")[2].partition("\n## ")[0]
    plain = " ".join(section.replace("`", "").split())
    changes = annotation("changes")
    assert changes
    for change in changes:
        assert f"### {change['kind'].title()}" in section
        assert change["description"] in plain


def test_the_icon_is_the_picture_in_docs() -> None:
    """The project has no address of its own from which Helm clients could load it."""
    picture = METADATA["icon"].removeprefix("data:image/svg+xml;base64,")
    assert base64.b64decode(picture).decode() == (ROOT / "docs" / "icon.svg").read_text()
