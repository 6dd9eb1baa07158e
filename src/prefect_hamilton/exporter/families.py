"""The metrics: names, types, labels. No label ever holds the id or the name of a run."""

from prefect_hamilton.exporter.series import Family

FLOW = ("flow", "deployment")
DURATIONS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
DELAYS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

TRANSITIONS = Family(
    "prefect_flow_run_transitions",
    "counter",
    "States that flow runs have entered.",
    (*FLOW, "work_pool", "work_queue", "state"),
)
DURATION = Family(
    "prefect_flow_run_duration_seconds",
    "histogram",
    "Time from the start of a flow run to its end, by the state in which it ended.",
    (*FLOW, "state"),
    DURATIONS,
)
START_DELAY = Family(
    "prefect_flow_run_start_delay_seconds",
    "histogram",
    "Time from the expected start of a flow run to its start.",
    ("work_pool",),
    DELAYS,
)
PENDING = Family(
    "prefect_flow_run_pending_seconds",
    "histogram",
    "Time that a flow run was pending before it started: the start of its pod.",
    ("work_pool",),
    DELAYS,
)
LAST_SUCCESS = Family(
    "prefect_deployment_last_success_timestamp_seconds",
    "gauge",
    "Time at which a run of the deployment last completed.",
    FLOW,
)
ROWS = {
    kind: Family(
        f"flows_task_rows_{kind}",
        "counter",
        f"Rows that tasks have {kind}.",
        (*FLOW, "task"),
    )
    for kind in ("read", "rejected", "written")
}
TASK_SECONDS = Family(
    "flows_task_seconds",
    "histogram",
    "Duration of measured tasks.",
    (*FLOW, "task"),
    DURATIONS,
)
TRACKING_FAILURES = Family(
    "flows_tracking_failures",
    "counter",
    "Flow runs whose dataflows the Hamilton UI has not, or only in part.",
    FLOW,
)
AUTOMATION_ACTIONS = Family(
    "prefect_automation_actions",
    "counter",
    "Actions of automations, by result: executed or failed.",
    ("automation", "result"),
)
POD_DIAGNOSES = Family(
    "prefect_pod_diagnoses",
    "counter",
    "Problems of flow pods that the worker has diagnosed.",
    ("diagnosis",),
)

FLOW_RUNS = Family(
    "prefect_flow_runs",
    "gauge",
    "Flow runs that are due and have not ended, by state.",
    ("work_pool", "state"),
)
OLDEST_LATE = Family(
    "prefect_flow_run_oldest_late_seconds",
    "gauge",
    "Time since the expected start of the flow run that waits for a worker the longest.",
    ("work_pool",),
)
OLDEST_PENDING = Family(
    "prefect_flow_run_oldest_pending_seconds",
    "gauge",
    "Longest time in state Pending, of the 200 runs that were due first; 0 if none is pending.",
    ("work_pool",),
)
POOL_READY = Family(
    "prefect_work_pool_ready",
    "gauge",
    "1 if the work pool has an online worker, 0 if not; none for a paused pool.",
    ("work_pool",),
)
POOL_LIMIT = Family(
    "prefect_work_pool_concurrency_limit",
    "gauge",
    "Concurrency limit of the work pool, if it has one.",
    ("work_pool",),
)
HEARTBEAT_AGE = Family(
    "prefect_worker_heartbeat_age_seconds",
    "gauge",
    "Time since the last heartbeat of any worker of the work pool.",
    ("work_pool",),
)
SLOTS = Family(
    "prefect_concurrency_slots",
    "gauge",
    "Slots of global concurrency limits: used, and max.",
    ("limit", "kind"),
)
SCHEDULE_ACTIVE = Family(
    "prefect_deployment_schedule_active",
    "gauge",
    "1 if the deployment is not paused and has an active schedule, 0 if its schedules are off.",
    FLOW,
)

UP = Family("prefect_metrics_up", "gauge", "1 if the last refresh from the Prefect API succeeded.")
REFRESHED = Family(
    "prefect_metrics_last_refresh_timestamp_seconds",
    "gauge",
    "Time of the last refresh that succeeded: no event before it is missing.",
)
EVENT_DELAY = Family(
    "prefect_metrics_event_delay_seconds",
    "gauge",
    "Time from the last state of a flow run to the arrival of its event here.",
)
EVENTS = Family(
    "prefect_metrics_events",
    "counter",
    "Events by source: the stream, or stored events that the stream had not brought.",
    ("source",),
)

ALL = (
    TRANSITIONS,
    DURATION,
    START_DELAY,
    PENDING,
    LAST_SUCCESS,
    *ROWS.values(),
    TASK_SECONDS,
    TRACKING_FAILURES,
    AUTOMATION_ACTIONS,
    POD_DIAGNOSES,
    FLOW_RUNS,
    OLDEST_LATE,
    OLDEST_PENDING,
    POOL_READY,
    POOL_LIMIT,
    HEARTBEAT_AGE,
    SLOTS,
    SCHEDULE_ACTIVE,
    UP,
    REFRESHED,
    EVENT_DELAY,
    EVENTS,
)
