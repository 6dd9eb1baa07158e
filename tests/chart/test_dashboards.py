"""The dashboards of Grafana: their expressions, their layout, where they lead."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.schema.dashboards import DASHBOARDS
from charts.schema.dashboards.model import GREEN, PREFECT_URL, RED, Panel
from charts.schema.dashboards.promql import chosen
from tests.chart.charts import render
from tests.exported import EXPORTED, names

PANELS = [(name, panel) for name, board in DASHBOARDS.items() for panel in board.panels]

panels = pytest.mark.parametrize(
    "panel", [pytest.param(panel, id=f"{name}: {panel.title}") for name, panel in PANELS]
)


def test_promtool_accepts_every_expression(tmp_path: Path) -> None:
    if not shutil.which("promtool"):
        pytest.skip("promtool is not on PATH: install Debian's package prometheus")
    rules = []
    for number, (_, panel) in enumerate(PANELS):
        for position, query in enumerate(panel.queries):
            expression = chosen(query.expr, "5m", "1h")
            rules.append({"record": f"panel:{number}:{position}", "expr": expression})
    content = {"groups": [{"name": "panels", "rules": rules}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(
        ["promtool", "check", "rules", "rules.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@panels
def test_a_panel_uses_metrics_that_are_exported(panel: Panel) -> None:
    used = set().union(*(names(query.expr) for query in panel.queries))
    assert used & EXPORTED[panel.source]
    assert used <= set().union(*EXPORTED.values())
    others = {"kube-state-metrics": {"kubelet"}}.get(panel.source, set())
    for source, exported in EXPORTED.items():
        if source not in {panel.source} | others:
            assert not used & exported, source


@panels
def test_a_panel_explains_itself(panel: Panel) -> None:
    assert panel.description.endswith(".")
    assert panel.title[0].isupper()
    assert all(query.legend for query in panel.queries)
    for query in panel.queries:
        grouped = re.search(r"by \(([\w, ]+)\)", query.expr)
        labels = set(re.findall(r"{{(\w+)}}", query.legend))
        if grouped:
            assert labels <= set(grouped[1].split(", ")), query.legend


def test_a_number_is_red_only_if_it_is_bad() -> None:
    """Without thresholds of their own, Grafana shows all numbers from 80 on in red."""
    for board in DASHBOARDS.values():
        for panel in board.json()["panels"]:
            if panel["type"] not in {"stat", "bargauge"}:
                continue
            look = panel["fieldConfig"]["defaults"]
            if look["color"]["mode"] == "fixed":
                assert look["color"]["fixedColor"] != RED
                assert look["unit"] != "bool_yes_no", panel["title"]
                continue
            assert look["color"]["mode"] == "thresholds"
            low, high = look["thresholds"]["steps"]
            assert "value" not in low
            assert [low["color"], high["color"]].count(RED) == 1, panel["title"]
            if look["unit"] == "bool_yes_no":
                assert (low["color"], high["value"]) == (RED, 1)


def test_states_have_colours_that_fit_them() -> None:
    content = DASHBOARDS["flow-runs"].json()["panels"]
    (ended,) = [panel for panel in content if panel["title"] == "Ended flow runs"]
    colours = {
        each["matcher"]["options"]: each["properties"][0]["value"]["fixedColor"]
        for each in ended["fieldConfig"]["overrides"]
    }
    assert colours["Completed"] == GREEN
    assert colours["Failed"] == RED


def test_titles_are_unique() -> None:
    for board in DASHBOARDS.values():
        titles = [panel.title for panel in board.panels]
        assert len(titles) == len(set(titles)), board.title
    ids = {board.uid for board in DASHBOARDS.values()}
    assert len(ids) == len(DASHBOARDS) == 4


def places(panel: dict[str, Any]) -> set[tuple[int, int]]:
    at = panel["gridPos"]
    return {
        (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    }


def test_panels_do_not_overlap_and_leave_no_gap() -> None:
    for board in DASHBOARDS.values():
        content = board.json()["panels"]
        taken = [place for panel in content for place in places(panel)]
        assert len(taken) == len(set(taken)), board.title
        assert {x for x, _ in taken} == set(range(24))
        assert len(taken) == 24 * (1 + max(y for _, y in taken)), board.title
        numbers = [panel["id"] for panel in content]
        assert len(numbers) == len(set(numbers))


def test_variables_of_expressions_are_those_of_the_dashboard() -> None:
    for board in DASHBOARDS.values():
        content = board.json()
        known = {each["name"] for each in content["templating"]["list"]}
        text = json.dumps(content["panels"])
        used = set(re.findall(r"\$\{?([a-z]\w+)", text)) - {"__rate_interval", "__range"}
        assert {name for name in used if not name.startswith("__")} <= known
        chosen = {each.name for each in board.variables}
        assert chosen <= used, board.title


def test_links_lead_to_prefect() -> None:
    for board in DASHBOARDS.values():
        content = board.json()
        links = [link for link in content["links"] if link["type"] == "link"]
        assert [link["url"] for link in links] == ["${prefect:raw}/runs"]
        for panel in content["panels"]:
            for link in panel.get("fieldConfig", {"defaults": {"links": []}})["defaults"]["links"]:
                assert link["url"].startswith("${prefect:raw}/"), panel["title"]
    linked = {panel.title for panel in DASHBOARDS["flow-runs"].panels if panel.link}
    assert {"Running", "Late", "Failures", "Ended flow runs"} <= linked


@pytest.mark.parametrize(
    ("server", "expected"),
    [({}, PREFECT_URL), ({"url": "https://prefect.example.org"}, "https://prefect.example.org")],
    ids=["unknown", "known"],
)
def test_the_release_knows_where_its_prefect_is(server: dict[str, str], expected: str) -> None:
    enabled = {"enabled": True}
    release = render({"dashboards": enabled, "metrics": enabled, "server": server})
    for name in DASHBOARDS:
        (content,) = release.get("ConfigMap", f"-hamilton-{name}")["data"].values()
        variables = {each["name"]: each for each in json.loads(content)["templating"]["list"]}
        assert variables["prefect"]["query"] == expected
        assert variables["prefect"]["current"] == {"text": expected, "value": expected}
