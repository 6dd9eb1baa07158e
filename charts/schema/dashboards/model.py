"""What a dashboard is made of, and its JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from charts.schema.values.observability import Thresholds

WIDTH = 24  # of a dashboard, in Grafana's columns
HEIGHT = {"row": 1, "stat": 4, "timeseries": 8, "bargauge": 8}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
PREFECT_URL = "http://localhost:4200"
"""Where links lead, unless the chart knows the address of the Prefect UI."""

LIMITS = Thresholds()
"""Where alerts fire by default."""

GREEN, RED, BLUE, ORANGE = "#56a64b", "#e02f44", "#3274d9", "#ff780a"
STATES = {
    "Scheduled": "#b0b0b0",
    "Late": ORANGE,
    "Submitting": "#8ab8ff",
    "InfrastructurePending": "#00a3a3",
    "Pending": "#e0b400",
    "Running": BLUE,
    "Completed": GREEN,
    "Failed": RED,
    "Crashed": "#8f3bb8",
    "TimedOut": "#ad0317",
    "Cancelled": "#808080",
}
"""Colours of states of flow runs. Without them, Grafana colours series by their order."""

NEEDS = {
    "metrics": "",
    "worker": "",
    "server": " Needs `server.metrics`.",
    "hamilton-ui": " Needs `hamiltonUi.metrics`.",
    "kube-state-metrics": " Needs kube-state-metrics.",
    "kubelet": " Needs the metrics of the kubelet.",
    "postgres": " Needs `monitoring.postgresExporter`.",
    "valkey": " Needs `monitoring.valkeyExporter`.",
}
"""Sources of metrics, and what a panel says of each."""

OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "none"},
    "bargauge": {
        "reduceOptions": {"calcs": ["lastNotNull"]},
        "orientation": "horizontal",
        "displayMode": "basic",
    },
    "timeseries": {"tooltip": {"mode": "multi", "sort": "desc"}},
}
"""Options of each kind of panel. Bars lie, so that long names fit beside them."""

Source = Literal[
    "metrics",
    "worker",
    "server",
    "hamilton-ui",
    "kube-state-metrics",
    "kubelet",
    "postgres",
    "valkey",
]
Unit = Literal["short", "s", "percentunit", "bytes", "ops", "bool_yes_no"]


@dataclass(frozen=True)
class Query:
    """An expression of PromQL and the legend of its series."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Link:
    """Where a click on a value leads: a path of the Prefect UI."""

    title: str
    path: str


@dataclass(frozen=True)
class Panel:
    """A panel; its width is a number of columns.

    `red` is where a number is not as it should be: from a value on, or below one. Grafana shows a
    number in green otherwise, and in blue if the panel does not judge it.
    """

    title: str
    kind: Literal["stat", "timeseries", "bargauge"]
    unit: Unit
    width: int
    description: str
    queries: tuple[Query, ...]
    source: Source = "metrics"
    link: Link | None = None
    red: tuple[Literal["from", "below"], float] | None = None


@dataclass(frozen=True)
class Section:
    """A title, and panels that fill one row after the other."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice of values of a label; several or all of them."""

    name: str
    metric: str


@dataclass(frozen=True)
class Dashboard:
    """A dashboard."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    sections: tuple[Section, ...]

    @property
    def panels(self) -> list[Panel]:
        """The panels of all sections."""
        return [panel for section in self.sections for panel in section.panels]

    def json(self) -> dict[str, Any]:
        """Return the model that Grafana imports."""
        choices = [_datasource(), *map(_variable, self.variables), _prefect()]
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["prefect"],
            "schemaVersion": 39,
            "editable": True,
            "refresh": "1m",
            "time": {"from": "now-24h", "to": "now"},
            "templating": {"list": choices},
            "links": _links(),
            "panels": list(self._placed()),
        }

    def _placed(self) -> Iterator[dict[str, Any]]:
        number, y = 0, 0
        for section in self.sections:
            number += 1
            yield _row(number, section.title, y)
            x, y, height = 0, y + HEIGHT["row"], 0
            for panel in section.panels:
                if x + panel.width > WIDTH:
                    x, y, height = 0, y + height, 0
                number += 1
                yield _panel(number, panel, x, y)
                x, height = x + panel.width, max(height, HEIGHT[panel.kind])
            y += height


def _row(number: int, title: str, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": HEIGHT["row"]},
        "panels": [],
    }


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    links = [_url(panel.link)] if panel.link else []
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description + NEEDS[panel.source],
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT[panel.kind]},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "links": links} | _look(panel),
            "overrides": list(_colours(panel)),
        },
        "options": OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "instant": panel.kind != "timeseries",
                "range": panel.kind == "timeseries",
            }
            for position, query in enumerate(panel.queries)
        ],
    }


def _look(panel: Panel) -> dict[str, Any]:
    """Return what replaces Grafana's defaults, by which any number is red from 80 on."""
    look: dict[str, Any] = {"max": 1} if panel.unit == "percentunit" else {}
    if panel.kind == "timeseries":
        return look
    red = ("below", 1) if panel.unit == "bool_yes_no" else panel.red
    if red is None:
        return look | {"color": {"mode": "fixed", "fixedColor": BLUE}}
    side, value = red
    low, high = (GREEN, RED) if side == "from" else (RED, GREEN)
    steps = [{"color": low}, {"color": high, "value": value}]
    return look | {
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": steps},
    }


def _colours(panel: Panel) -> Iterator[dict[str, Any]]:
    """Yield the colours of states, if the legend names them."""
    if any(query.legend == "{{state}}" for query in panel.queries):
        for state, colour in STATES.items():
            yield {
                "matcher": {"id": "byName", "options": state},
                "properties": [
                    {"id": "color", "value": {"mode": "fixed", "fixedColor": colour}},
                ],
            }


def _url(link: Link) -> dict[str, Any]:
    # Raw: Grafana encodes the values of variables in links otherwise.
    return {"title": link.title, "url": f"${{prefect:raw}}{link.path}", "targetBlank": True}


def _links() -> list[dict[str, Any]]:
    """Links above the panels: to Prefect, and to the other dashboards."""
    to_prefect = {**_url(Link("Flow runs in Prefect", "/runs")), "type": "link"}
    others = {"title": "Dashboards", "type": "dashboards", "tags": ["prefect"], "asDropdown": True}
    return [to_prefect, others]


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
    }


def _prefect() -> dict[str, Any]:
    return {
        "name": "prefect",
        "label": "Prefect UI",
        "type": "textbox",
        "query": PREFECT_URL,
        "current": {"text": PREFECT_URL, "value": PREFECT_URL},
    }


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "label": variable.name.replace("_", " ").capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": f"label_values({variable.metric}, {variable.name})",
        "refresh": 2,  # when the range of time changes
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
