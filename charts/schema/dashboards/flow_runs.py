"""The dashboard for data engineers."""

from __future__ import annotations

from charts.schema.dashboards.model import LIMITS, Dashboard, Link, Panel, Query, Section, Variable
from charts.schema.dashboards.promql import FLOW, NAMESPACE, POOL, count, increase, quantile

ENDED = "Completed|Failed|TimedOut|Crashed|Cancelled"
TRANSITIONS = "prefect_flow_run_transitions_total"
BAD = "Failed|TimedOut|Crashed"


def _now(state: str, states: str, description: str) -> Panel:
    expr = f'sum(prefect_flow_runs{{{POOL},state=~"{states}"}}) or vector(0)'
    link = Link(f"{state} flow runs", f"/runs?state={state}")
    return Panel(
        state,
        "stat",
        "short",
        6,
        description,
        (Query(expr, state),),
        link=link,
        red=("from", 1) if state == "Late" else None,
    )


def _ended(states: str) -> tuple[str, str]:
    return TRANSITIONS, f'{FLOW},work_pool=~"$work_pool",state=~"{states}"'


def _duration(share: float) -> Query:
    metric, by = "prefect_flow_run_duration_seconds", "flow, deployment"
    legend = f"p{round(100 * share)} {{{{flow}}}}/{{{{deployment}}}}"
    return Query(quantile(share, metric, FLOW, by), legend)


def _waiting(part: str, name: str) -> Query:
    metric = f"prefect_flow_run_{part}_seconds"
    return Query(quantile(0.95, metric, POOL, "work_pool"), f"{name} {{{{work_pool}}}}")


def _rows(kind: str, description: str) -> Panel:
    expr = increase(f"flows_task_rows_{kind}_total", FLOW, "flow, task")
    query = Query(expr, "{{flow}} {{task}}")
    return Panel(f"Rows {kind}", "timeseries", "short", 12, description, (query,))


NOW = Section(
    "Now",
    (
        _now("Running", "Running|Retrying", "Flow runs that are running."),
        _now(
            "Pending",
            "Pending|Submitting|InfrastructurePending",
            "Flow runs that wait for their pod.",
        ),
        _now("Late", "Late", "Flow runs that should have started."),
        Panel(
            "Success",
            "stat",
            "percentunit",
            6,
            "Share of the flow runs that ended in this time and completed.",
            (
                Query(
                    # Where no flow run has completed, there is no series of it.
                    f"({count(*_ended('Completed'))} or vector(0)) / ({count(*_ended(ENDED))} > 0)",
                    "completed",
                ),
            ),
            link=Link("Failed flow runs", "/runs?state=Failed"),
        ),
    ),
)

RUNS = Section(
    "Flow runs",
    (
        Panel(
            "Ended flow runs",
            "timeseries",
            "short",
            12,
            "Flow runs that ended, by state.",
            (Query(increase(*_ended(ENDED), "state"), "{{state}}"),),
            link=Link(
                "Flow runs in state ${__field.labels.state}",
                "/runs?state=${__field.labels.state}",
            ),
        ),
        Panel(
            "Flow runs in progress",
            "timeseries",
            "short",
            12,
            "Flow runs that are due and have not ended, by state.",
            (Query(f"sum by (state) (prefect_flow_runs{{{POOL}}})", "{{state}}"),),
            link=Link(
                "Flow runs in state ${__field.labels.state}",
                "/runs?state=${__field.labels.state}",
            ),
        ),
        Panel(
            "Duration",
            "timeseries",
            "s",
            24,
            "From the start of a flow run to its end: median and 95th percentile.",
            (_duration(0.5), _duration(0.95)),
        ),
        Panel(
            "Waiting",
            "timeseries",
            "s",
            12,
            "95th percentile: from the expected start to the start, and the part of it in which the"
            " pod started.",
            (_waiting("start_delay", "delay"), _waiting("pending", "pod")),
        ),
        Panel(
            "Failures",
            "bargauge",
            "short",
            12,
            "The ten deployments with the most flow runs that failed or crashed in this time.",
            (
                Query(
                    f"topk(10, {count(*_ended(BAD), 'flow, deployment')} > 0)",
                    "{{flow}}/{{deployment}}",
                ),
            ),
            link=Link("Failed flow runs", "/runs?state=Failed"),
            red=("from", 0),
        ),
        Panel(
            "Time since the last success",
            "bargauge",
            "s",
            24,
            "The twenty deployments whose last success was longest ago.",
            (
                Query(
                    "topk(20, time() - prefect_deployment_last_success_timestamp_seconds"
                    f"{{{FLOW}}})",
                    "{{flow}}/{{deployment}}",
                ),
            ),
            link=Link("Completed flow runs", "/runs?state=Completed"),
        ),
        Panel(
            "Schedules that are off",
            "stat",
            "short",
            12,
            "Deployments whose schedules are all off, or that are paused.",
            (
                Query(
                    f"count(prefect_deployment_schedule_active{{{FLOW}}} == 0) or vector(0)",
                    "deployments",
                ),
            ),
            link=Link("Deployments", "/deployments"),
        ),
        Panel(
            "Late for",
            "stat",
            "s",
            12,
            "Time since the expected start of the flow run that waits for a worker the longest.",
            (
                Query(
                    f"max by (work_pool) (prefect_flow_run_oldest_late_seconds{{{POOL}}})",
                    "{{work_pool}}",
                ),
            ),
            link=Link("Late flow runs", "/runs?state=Late"),
            red=("from", LIMITS.late_seconds),
        ),
    ),
)

TASKS = Section(
    "Tasks",
    (
        _rows("read", "Rows that measured tasks have read."),
        _rows("written", "Rows that measured tasks have written."),
        _rows("rejected", "Rows that measured tasks have read and rejected."),
        Panel(
            "Concurrency slots",
            "timeseries",
            "short",
            12,
            "Slots of global concurrency limits: used, and the limit.",
            (Query(f"prefect_concurrency_slots{{{NAMESPACE}}}", "{{limit}} {{kind}}"),),
            link=Link("Concurrency limits", "/concurrency-limits"),
        ),
    ),
)

FLOW_RUNS = Dashboard(
    uid="prefect-flow-runs",
    title="Prefect: flow runs",
    description="Flow runs, deployments and measured tasks, for those who write flows.",
    variables=(
        Variable("namespace", "prefect_metrics_up"),
        Variable("work_pool", "prefect_work_pool_ready"),
        Variable("flow", "prefect_flow_run_transitions_total"),
    ),
    sections=(NOW, RUNS, TASKS),
)
