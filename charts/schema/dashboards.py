"""Dashboards of Grafana: `make generate` writes them as JSON into files/dashboards/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

WIDTH = 24  # of a dashboard, in Grafana's columns
HEIGHT = {"stat": 4, "timeseries": 8, "bargauge": 8}
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

POOL = 'namespace=~"$namespace",work_pool=~"$work_pool"'
FLOW = 'namespace=~"$namespace",flow=~"$flow"'
ENDED = "Completed|Failed|TimedOut|Crashed|Cancelled"
BAD = "Failed|TimedOut|Crashed"


@dataclass(frozen=True)
class Query:
    """An expression of PromQL and the legend of its series."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A panel; its width is a number of columns."""

    title: str
    kind: Literal["stat", "timeseries", "bargauge"]
    unit: Literal["short", "s", "percentunit"]
    width: int
    description: str
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Variable:
    """A choice of values of a label; several or all of them."""

    name: str
    metric: str


@dataclass(frozen=True)
class Dashboard:
    """A dashboard, whose panels fill one row after the other."""

    uid: str
    title: str
    variables: tuple[Variable, ...]
    panels: tuple[Panel, ...]

    def json(self) -> dict[str, Any]:
        """Return the model that Grafana imports."""
        return {
            "uid": self.uid,
            "title": self.title,
            "tags": ["prefect"],
            "schemaVersion": 39,
            "editable": True,
            "refresh": "1m",
            "time": {"from": "now-24h", "to": "now"},
            "templating": {"list": [_datasource(), *map(_variable, self.variables)]},
            "panels": list(self._panels()),
        }

    def _panels(self) -> list[dict[str, Any]]:
        found, x, y, height = [], 0, 0, 0
        for number, panel in enumerate(self.panels, start=1):
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            found.append(_panel(number, panel, x, y))
            x, height = x + panel.width, max(height, HEIGHT[panel.kind])
        return found


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT[panel.kind]},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
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


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
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


def _now(state: str, description: str) -> Panel:
    expr = f'sum(prefect_flow_runs{{{POOL},state="{state}"}}) or vector(0)'
    return Panel(state, "stat", "short", 6, description, (Query(expr, state),))


def _ended(states: str, by: str, window: str) -> str:
    labels = f'{FLOW},work_pool=~"$work_pool",state=~"{states}"'
    return f"sum{by} (increase(prefect_flow_run_transitions_total{{{labels}}}[{window}]))"


def _quantile(quantile: float, metric: str, labels: str, by: str) -> str:
    rate = f"sum by (le, {by}) (rate({metric}_bucket{{{labels}}}[$__rate_interval]))"
    return f"histogram_quantile({quantile}, {rate})"


FLOW_RUNS = Dashboard(
    uid="prefect-flow-runs",
    title="Prefect: flow runs",
    variables=(
        Variable("namespace", "prefect_metrics_up"),
        Variable("work_pool", "prefect_work_pool_ready"),
        Variable("flow", "prefect_flow_run_transitions_total"),
    ),
    panels=(
        _now("Running", "Flow runs that are running."),
        _now("Pending", "Flow runs that wait for their pod."),
        _now("Late", "Flow runs that should have started."),
        Panel(
            "Success",
            "stat",
            "percentunit",
            6,
            "Share of the flow runs that ended in this time and completed.",
            (
                Query(
                    f"{_ended('Completed', '', '$__range')} / {_ended(ENDED, '', '$__range')}",
                    "completed",
                ),
            ),
        ),
        Panel(
            "Ended flow runs",
            "timeseries",
            "short",
            12,
            "Flow runs that ended, by state.",
            (Query(_ended(ENDED, " by (state)", "$__rate_interval"), "{{state}}"),),
        ),
        Panel(
            "Flow runs in progress",
            "timeseries",
            "short",
            12,
            "Flow runs that are due and have not ended, by state.",
            (Query(f"sum by (state) (prefect_flow_runs{{{POOL}}})", "{{state}}"),),
        ),
        Panel(
            "Duration",
            "timeseries",
            "s",
            12,
            "From the start of a flow run to its end: median and 95th percentile.",
            tuple(
                Query(
                    _quantile(
                        quantile, "prefect_flow_run_duration_seconds", FLOW, "flow, deployment"
                    ),
                    f"p{round(100 * quantile)} {{{{flow}}}}/{{{{deployment}}}}",
                )
                for quantile in (0.5, 0.95)
            ),
        ),
        Panel(
            "Waiting",
            "timeseries",
            "s",
            12,
            "95th percentile: from the expected start to the start, and the part of it in which the"
            " pod started.",
            tuple(
                Query(
                    _quantile(0.95, f"prefect_flow_run_{part}_seconds", POOL, "work_pool"),
                    f"{name} {{{{work_pool}}}}",
                )
                for part, name in (("start_delay", "delay"), ("pending", "pod"))
            ),
        ),
        Panel(
            "Failures",
            "bargauge",
            "short",
            12,
            "The ten deployments with the most flow runs that failed or crashed in this time.",
            (
                Query(
                    f"topk(10, {_ended(BAD, ' by (flow, deployment)', '$__range')} > 0)",
                    "{{flow}}/{{deployment}}",
                ),
            ),
        ),
        Panel(
            "Time since the last success",
            "bargauge",
            "s",
            12,
            "The twenty deployments whose last success was longest ago.",
            (
                Query(
                    "topk(20, time() - prefect_deployment_last_success_timestamp_seconds"
                    f"{{{FLOW}}})",
                    "{{flow}}/{{deployment}}",
                ),
            ),
        ),
        Panel(
            "Rows",
            "timeseries",
            "short",
            12,
            "Rows that measured tasks have read, rejected and written.",
            tuple(
                Query(
                    "sum by (flow) (increase("
                    f"flows_task_rows_{kind}_total{{{FLOW}}}[$__rate_interval]))",
                    f"{kind} {{{{flow}}}}",
                )
                for kind in ("read", "rejected", "written")
            ),
        ),
        Panel(
            "Concurrency slots",
            "timeseries",
            "short",
            12,
            "Slots of global concurrency limits: used, and the limit.",
            (
                Query(
                    'prefect_concurrency_slots{namespace=~"$namespace"}',
                    "{{limit}} {{kind}}",
                ),
            ),
        ),
    ),
)

DASHBOARDS = {"flow-runs": FLOW_RUNS}
"""All dashboards, by name of their file."""
