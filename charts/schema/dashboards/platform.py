"""The dashboard for operators: server, workers, pods."""

from __future__ import annotations

from charts.schema.dashboards.model import LIMITS, Dashboard, Link, Panel, Query, Section, Variable
from charts.schema.dashboards.promql import NAMESPACE, POOL, increase, quantile, rate

SERVER = f'{NAMESPACE},job=~".*-server"'
FLOW_PODS = "Those of flow pods are `prefect-job`."
SERVICES = f'{NAMESPACE},job=~".*-(server|background-services)"'
ACTIVE = "Pending|Submitting|InfrastructurePending|Running|Retrying"

SERVER_SECTION = Section(
    "Prefect server",
    (
        Panel(
            "Server pods that answer",
            "stat",
            "short",
            6,
            "Pods of the server that Prometheus can scrape.",
            (Query(f"sum by (job) (up{{{SERVER}}})", "{{job}}"),),
            source="server",
            red=("below", 1),
        ),
        Panel(
            "Metrics are up to date",
            "stat",
            "bool_yes_no",
            6,
            "Whether the pod of `metrics` reads the Prefect API.",
            (Query(f"min by (namespace) (prefect_metrics_up{{{NAMESPACE}}})", "up to date"),),
        ),
        Panel(
            "Age of the metrics",
            "stat",
            "s",
            6,
            "Time since the pod of `metrics` last read the Prefect API.",
            (
                Query(
                    "time() - min(prefect_metrics_last_refresh_timestamp_seconds"
                    f"{{{NAMESPACE}}} > 0)",
                    "age",
                ),
            ),
            red=("from", LIMITS.stale_seconds),
        ),
        Panel(
            "Delay of events",
            "stat",
            "s",
            6,
            "Time from the last event of a flow run to its arrival: the backlog of the server.",
            (Query(f"max(prefect_metrics_event_delay_seconds{{{NAMESPACE}}})", "delay"),),
            red=("from", LIMITS.event_delay_seconds),
        ),
        Panel(
            "Events",
            "timeseries",
            "ops",
            12,
            "Events of flow runs, deployments and automations in a second. `stored` are those that"
            " the stream of the server had not brought.",
            (Query(rate("prefect_metrics_events_total", NAMESPACE, "source"), "{{source}}"),),
        ),
        Panel(
            "Slowest API requests",
            "timeseries",
            "s",
            12,
            "95th percentile of the ten routes that take the longest, by route.",
            (
                Query(
                    "topk(10, "
                    + quantile(0.95, "prefect_server_request_duration_seconds", SERVER, "route")
                    + ")",
                    "{{route}}",
                ),
            ),
            source="server",
        ),
        Panel(
            "API requests by status",
            "timeseries",
            "ops",
            12,
            "Requests in a second. 5xx are errors of the server; it also answers so while its"
            " database is away.",
            (
                Query(
                    rate("prefect_server_request_duration_seconds_count", SERVER, "status"),
                    "{{status}}",
                ),
            ),
            source="server",
        ),
        Panel(
            "Delay of background services",
            "timeseries",
            "s",
            12,
            "How long after it was due each service of the server began, on average: the"
            " scheduler is `schedule_recent_deployments`.",
            (
                Query(
                    rate("docket_task_punctuality_seconds_sum", SERVICES, "docket_task")
                    + " / "
                    + rate("docket_task_punctuality_seconds_count", SERVICES, "docket_task"),
                    "{{docket_task}}",
                ),
            ),
            source="server",
        ),
        Panel(
            "Failures of background services",
            "timeseries",
            "short",
            12,
            "How often each service of the server has failed. It tries again at its next time.",
            (
                Query(
                    increase("docket_tasks_failed_total", SERVICES, "docket_task")
                    # A service that has never failed has no such series.
                    + " or 0 * "
                    + increase("docket_tasks_succeeded_total", SERVICES, "docket_task"),
                    "{{docket_task}}",
                ),
            ),
            source="server",
        ),
        Panel(
            "Memory of the server",
            "timeseries",
            "bytes",
            12,
            "Resident memory of each pod of the server.",
            (Query(f"sum by (pod) (process_resident_memory_bytes{{{SERVER}}})", "{{pod}}"),),
            source="server",
        ),
        Panel(
            "CPU of the server",
            "timeseries",
            "short",
            12,
            "Cores that each pod of the server uses.",
            (Query(rate("process_cpu_seconds_total", SERVER, "pod"), "{{pod}}"),),
            source="server",
        ),
        Panel(
            "Connections and files of the server",
            "timeseries",
            "short",
            12,
            "Open connections and files of each pod of the server.",
            (Query(f"sum by (pod) (process_open_fds{{{SERVER}}})", "{{pod}}"),),
            source="server",
        ),
    ),
)

WORKERS = Section(
    "Work pools and workers",
    (
        Panel(
            "Work pools with a worker",
            "stat",
            "bool_yes_no",
            12,
            "Whether a worker of the pool is online. A paused pool is not shown.",
            (
                Query(
                    f"min by (work_pool) (prefect_work_pool_ready{{{POOL}}})",
                    "{{work_pool}}",
                ),
            ),
            link=Link("Work pool", "/work-pools/work-pool/${__field.labels.work_pool}"),
        ),
        Panel(
            "Pending for",
            "stat",
            "s",
            12,
            "How long the flow run of a work pool waits that was due first.",
            (
                Query(
                    f"max by (work_pool) (prefect_flow_run_oldest_pending_seconds{{{POOL}}})",
                    "{{work_pool}}",
                ),
            ),
            link=Link("Pending flow runs", "/runs?state=Pending"),
            red=("from", LIMITS.pending_seconds),
        ),
        Panel(
            "Time since the last heartbeat",
            "timeseries",
            "s",
            12,
            "Time since the last heartbeat of any worker of a work pool. A worker sends one every"
            " 30 seconds.",
            (
                Query(
                    f"max by (work_pool) (prefect_worker_heartbeat_age_seconds{{{POOL}}})",
                    "{{work_pool}}",
                ),
            ),
            link=Link("Work pool", "/work-pools/work-pool/${__field.labels.work_pool}"),
        ),
        Panel(
            "Time since the last poll",
            "timeseries",
            "s",
            12,
            "Time since the API last told a pod of the worker which flow runs are due; of several"
            " pods, the longest. By default, a worker polls every 5 seconds.",
            (
                Query(
                    "time() - min by (work_pool)"
                    f" (prefect_worker_last_poll_timestamp_seconds{{{POOL}}} > 0)",
                    "{{work_pool}}",
                ),
            ),
            source="worker",
            link=Link("Work pool", "/work-pools/work-pool/${__field.labels.work_pool}"),
        ),
        Panel(
            "Submissions",
            "timeseries",
            "short",
            12,
            "Flow runs that a worker has taken up: submitted, or failed because no Job could be"
            " made.",
            (
                Query(
                    increase("prefect_worker_submissions_total", POOL, "work_pool, result"),
                    "{{work_pool}} {{result}}",
                ),
            ),
            source="worker",
            link=Link("Crashed flow runs", "/runs?state=Crashed"),
        ),
        Panel(
            "Time from due to submitted",
            "timeseries",
            "s",
            12,
            "95th percentile: from the scheduled time of a flow run to its submission.",
            (
                Query(
                    quantile(0.95, "prefect_worker_submission_delay_seconds", POOL, "work_pool"),
                    "{{work_pool}}",
                ),
            ),
            source="worker",
        ),
        Panel(
            "Standby pods",
            "timeseries",
            "short",
            12,
            "Standby pods that are idle, that are starting, and that a flow run has claimed. Needs"
            " `flows.standby`.",
            (
                Query(
                    f"max by (work_pool, state) (prefect_worker_standby_pods{{{POOL}}})",
                    "{{work_pool}} {{state}}",
                ),
            ),
            source="worker",
        ),
        Panel(
            "Use of the concurrency limit",
            "timeseries",
            "percentunit",
            12,
            "Flow runs that are pending or running, as a share of the limit of their work pool.",
            (
                Query(
                    f'sum by (work_pool) (prefect_flow_runs{{{POOL},state=~"{ACTIVE}"}}) / on'
                    " (work_pool)"
                    f" sum by (work_pool) (prefect_work_pool_concurrency_limit{{{POOL}}} > 0)",
                    "{{work_pool}}",
                ),
            ),
        ),
        Panel(
            "Causes of pods that failed",
            "timeseries",
            "short",
            12,
            "Flow pods by the problem that the worker has diagnosed, such as OOMKilled.",
            (
                Query(
                    increase("prefect_pod_diagnoses_total", NAMESPACE, "diagnosis"),
                    "{{diagnosis}}",
                ),
            ),
            link=Link("Crashed flow runs", "/runs?state=Crashed"),
        ),
        Panel(
            "Actions of automations",
            "timeseries",
            "short",
            12,
            "Actions, such as messages, that were executed or failed.",
            (
                Query(
                    increase("prefect_automation_actions_total", NAMESPACE, "automation, result"),
                    "{{automation}} {{result}}",
                ),
            ),
            link=Link("Automations", "/automations"),
        ),
    ),
)

PODS = Section(
    "Pods",
    (
        Panel(
            "Missing pods",
            "bargauge",
            "short",
            12,
            "Pods that a Deployment should have and that are not available.",
            (
                Query(
                    f"kube_deployment_spec_replicas{{{NAMESPACE}}} - on (namespace, deployment)"
                    f" kube_deployment_status_replicas_available{{{NAMESPACE}}}",
                    "{{deployment}}",
                ),
            ),
            source="kube-state-metrics",
            red=("from", 1),
        ),
        Panel(
            "Restarts",
            "timeseries",
            "short",
            12,
            "Restarts of containers, by name of the container.",
            (
                Query(
                    increase("kube_pod_container_status_restarts_total", NAMESPACE, "container"),
                    "{{container}}",
                ),
            ),
            source="kube-state-metrics",
        ),
        Panel(
            "CPU by container",
            "timeseries",
            "short",
            12,
            f"Cores that all containers of a name use. {FLOW_PODS}",
            (
                Query(
                    rate(
                        "container_cpu_usage_seconds_total",
                        f'{NAMESPACE},container!=""',
                        "container",
                    ),
                    "{{container}}",
                ),
            ),
            source="kubelet",
        ),
        Panel(
            "Memory by container",
            "timeseries",
            "percentunit",
            12,
            "Memory as a share of the limit: the largest of all containers of a name."
            f" {FLOW_PODS} Also needs the metrics of the kubelet.",
            (
                Query(
                    "max by (container) (max by (pod, container) ("
                    f'container_memory_working_set_bytes{{{NAMESPACE},container!=""}})'
                    " / on (pod, container)"
                    " max by (pod, container) (kube_pod_container_resource_limits"
                    f'{{{NAMESPACE},resource="memory"}}))',
                    "{{container}}",
                ),
            ),
            source="kube-state-metrics",
        ),
        Panel(
            "Failed Jobs",
            "stat",
            "short",
            12,
            "Jobs that failed after all attempts, those of flow runs included.",
            (
                Query(
                    f'sum(kube_job_failed{{{NAMESPACE},condition="true"}}) or vector(0)',
                    "Jobs",
                ),
            ),
            source="kube-state-metrics",
            red=("from", 1),
        ),
        Panel(
            "Pods that wait",
            "stat",
            "short",
            12,
            "Pods that are not scheduled, or whose image or volume is missing.",
            (
                Query(
                    f'sum(kube_pod_status_phase{{{NAMESPACE},phase="Pending"}}) or vector(0)',
                    "pods",
                ),
            ),
            source="kube-state-metrics",
            red=("from", 1),
        ),
    ),
)

PLATFORM = Dashboard(
    uid="prefect-platform",
    title="Prefect: platform",
    description="Server, work pools, workers and pods, for those who operate them.",
    variables=(
        Variable("namespace", "prefect_metrics_up"),
        Variable("work_pool", "prefect_work_pool_ready"),
    ),
    sections=(SERVER_SECTION, WORKERS, PODS),
)
