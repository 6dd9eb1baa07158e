"""Every expression of every panel shows data after good, failed, late and killed runs."""

import re

import pytest

from charts.schema.dashboards import DASHBOARDS
from charts.schema.dashboards.model import Panel
from charts.schema.dashboards.promql import chosen
from tests.monitoring.conftest import Monitored, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900), pytest.mark.usefixtures("runs")]

EMPTY = {
    "Standby pods": "every run has a pod of its own from its beginning",
}
"""Panels without data, by reason."""

PANELS = [(name, panel) for name, board in DASHBOARDS.items() for panel in board.panels]


def parameter(name: str, panel: Panel) -> object:
    reason = EMPTY.get(panel.title)
    marks = [pytest.mark.skip(reason=reason)] if reason else []
    return pytest.param(panel, id=f"{name}: {panel.title}", marks=marks)


@pytest.mark.parametrize("panel", [parameter(*each) for each in PANELS])
def test_a_panel_shows_what_its_legend_names(panel: Panel, cluster: Monitored) -> None:
    for query in panel.queries:
        # Data, and not only the 0 of a panel that has none.
        measured = query.expr.replace(" or vector(0)", "")
        expression = chosen(measured, "1m", "30m", namespace="prefect")
        found = until(lambda expression=expression: cluster.series(expression), 60)
        labels = set(re.findall(r"{{(\w+)}}", query.legend))
        assert all(labels <= each.keys() for each in found), found
