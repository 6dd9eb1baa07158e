"""What all chart tests share."""

import shutil

import pytest
import yaml

from tests.chart.charts import CHART, Object, Release, render

PROFILES = tuple(sorted(path.parent.name for path in (CHART / "examples").glob("*/values.yaml")))


@pytest.fixture(autouse=True, scope="session")
def _helm() -> None:
    if not shutil.which("helm"):
        pytest.skip("helm is not on PATH")


def profile_values(name: str) -> Object:
    """Return the values of one of the chart's example files."""
    return dict(yaml.safe_load((CHART / "examples" / name / "values.yaml").read_text()))


@pytest.fixture(scope="session")
def default() -> Release:
    """Render without any value."""
    return render()


@pytest.fixture(scope="session")
def profiles() -> dict[str, Release]:
    """Render each example file once."""
    return {name: render(profile_values(name)) for name in PROFILES}
