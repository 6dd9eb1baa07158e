"""The alerts of the PrometheusRule, evaluated by Prometheus' own promtool."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.chart.charts import ROOT, Object, Release, render
from tests.chart.conftest import PROFILES, profile_values
from tests.exported import EXPORTED, names

ALERTS: Object = {"prometheusRule": {"enabled": True}}
SCRAPED: Object = ALERTS | {"server": {"metrics": True}, "serviceMonitor": {"enabled": True}}
SCHEDULED_BOOTSTRAP: Object = ALERTS | {"bootstrap": {"schedule": "0 * * * *"}}
MONITORED: Object = SCRAPED | {
    "bootstrap": SCHEDULED_BOOTSTRAP["bootstrap"],
    "metrics": {"enabled": True},
    "valkey": {"enabled": True},
    "monitoring": {"postgresExporter": {"enabled": True}, "valkeyExporter": {"enabled": True}},
    "prometheusRule": {"enabled": True, "thresholds": {"successSeconds": {"load/daily": 3600}}},
}
WITHOUT_RETENTION: Object = ALERTS | {"hamiltonUi": {"retention": {"enabled": False}}}


# Series as kube-state-metrics documents them, and values, one a minute.


def deployment(component: str, *, desired: str, available: str) -> dict[str, str]:
    labels = f'{{namespace="flows",deployment="demo-prefect-hamilton-{component}"}}'
    return {
        f"kube_deployment_spec_replicas{labels}": desired,
        f"kube_deployment_status_replicas_available{labels}": available,
    }


def job(name: str, *, failed_pods: str, failed: bool | None, cron_job: str = "") -> dict[str, str]:
    """Return a Job that has failed, has not, or has not ended; a CronJob may have created it."""
    name = f"demo-prefect-hamilton-{name}"
    of_it = f'namespace="flows",job_name="{name}"'
    kind, owner = ("CronJob", f"demo-prefect-hamilton-{cron_job}") if cron_job else ("", "")
    series = {
        f"kube_job_status_failed{{{of_it}}}": failed_pods,
        f'kube_job_owner{{{of_it},owner_kind="{kind}",owner_name="{owner}"}}': "1x500",
    }
    for condition in ("true", "false", "unknown") if failed is not None else ():
        labels = f'{{namespace="flows",job_name="{name}",condition="{condition}"}}'
        series[f"kube_job_failed{labels}"] = f"{int(condition == str(failed).lower())}x500"
    return series


def cron_job(component: str, *, scheduled: str, succeeded: str | None, due: str) -> dict[str, str]:
    """Return a CronJob; the values are in seconds since the start of the test."""
    labels = f'{{namespace="flows",cronjob="demo-prefect-hamilton-{component}"}}'
    series = {
        f"kube_cronjob_created{labels}": "0x500",
        f"kube_cronjob_status_last_schedule_time{labels}": scheduled,
        f"kube_cronjob_next_schedule_time{labels}": due,
    }
    if succeeded is not None:
        series[f"kube_cronjob_status_last_successful_time{labels}"] = succeeded
    return series


OF_SERVER = 'namespace="flows",job="demo-prefect-hamilton-server"'
UP = f"up{{{OF_SERVER}}}"
SCHEDULED = f'docket_tasks_succeeded_total{{{OF_SERVER},docket_task="schedule_recent_deployments"}}'
HEALTHY = (
    deployment("server", desired="1x500", available="1x500")
    | job("bootstrap-1a2b3c4d", failed_pods="0x500", failed=False)
    | cron_job("ui-retention", scheduled="60x500", succeeded="_ _ 120x500", due="86400x500")
    | {UP: "1x500", SCHEDULED: "0+12x500"}
)

CASES: dict[str, tuple[Object, dict[str, str], str, set[str]]] = {
    "all components are healthy": (SCRAPED, HEALTHY, "8h", set()),
    "all components are healthy, without a scrape": (ALERTS, HEALTHY, "8h", set()),
    "the server cannot be scraped": (SCRAPED, HEALTHY | {UP: "0x500"}, "6m", {"PrefectServerDown"}),
    "the server is unavailable for a moment": (
        ALERTS,
        deployment("server", desired="1x500", available="1 0x3 1x500"),
        "6m",
        set(),
    ),
    "the server is down and is not scraped": (
        ALERTS,
        deployment("server", desired="1x500", available="0x500"),
        "6m",
        {"PrefectServerDown"},
    ),
    "the server was scaled to 0": (
        ALERTS,
        deployment("server", desired="0x500", available="0x500"),
        "6m",
        {"PrefectServerDown"},
    ),
    "a worker has no ready pod": (
        ALERTS,
        deployment("worker-kubernetes", desired="2x500", available="0x500"),
        "11m",
        {"PrefectComponentUnavailable"},
    ),
    "a worker was scaled to 0": (
        ALERTS,
        deployment("worker-kubernetes", desired="0x500", available="0x500"),
        "1h",
        set(),
    ),
    "a Job has failed": (
        ALERTS,
        job("bootstrap-1a2b3c4d", failed_pods="7x500", failed=True),
        "1m",
        {"PrefectJobFailed"},
    ),
    "a Job of another CronJob has failed": (
        ALERTS,
        job("backup-29000000", failed_pods="7x500", failed=True, cron_job="backup"),
        "1m",
        {"PrefectJobFailed"},
    ),
    "a flow run in a standby pod has failed": (
        ALERTS,
        job("worker-kubernetes-standby-0-1a2b3c4d", failed_pods="1x500", failed=True),
        "1h",
        set(),
    ),
    "a Job succeeded with its second pod": (
        ALERTS,
        job("bootstrap-1a2b3c4d", failed_pods="1x500", failed=False),
        "1h",
        set(),
    ),
    "a Job has a failed pod and goes on": (
        ALERTS,
        job("bootstrap-1a2b3c4d", failed_pods="1x500", failed=None),
        "1h",
        set(),
    ),
    "a retention Job failed and the next one succeeded": (
        ALERTS,
        job("ui-retention-29000000", failed_pods="3x500", failed=True, cron_job="ui-retention")
        | cron_job(
            "ui-retention", scheduled="60x59 3660x500", succeeded="0x61 3720x500", due="86400x500"
        ),
        "4h",
        set(),
    ),
    "no retention Job has ever succeeded": (
        ALERTS,
        cron_job("ui-retention", scheduled="60x500", succeeded=None, due="86400x500"),
        "2h2m",
        {"PrefectRetentionFailing"},
    ),
    "the last retention Job did not succeed": (
        ALERTS,
        cron_job("ui-retention", scheduled="60x59 3660x500", succeeded="120x500", due="86400x500"),
        "3h2m",
        {"PrefectRetentionFailing"},
    ),
    "a retention Job is running": (
        ALERTS,
        cron_job("ui-retention", scheduled="60x59 3660x500", succeeded="120x500", due="86400x500"),
        "2h",
        set(),
    ),
    "the retention Job was due and not created": (
        ALERTS,
        cron_job("ui-retention", scheduled="60x500", succeeded="120x500", due="3600x500"),
        "3h2m",
        {"PrefectRetentionFailing"},
    ),
    "a bootstrap Job of the schedule failed and the next one succeeded": (
        SCHEDULED_BOOTSTRAP,
        job("bootstrap-29000000", failed_pods="7x500", failed=True, cron_job="bootstrap")
        | cron_job("bootstrap", scheduled="60x5 360x500", succeeded="0x6 420x500", due="86400x500"),
        "4h",
        set(),
    ),
    "no bootstrap Job of the schedule has ever succeeded": (
        SCHEDULED_BOOTSTRAP,
        cron_job("bootstrap", scheduled="60x500", succeeded=None, due="86400x500"),
        "32m",
        {"PrefectBootstrapFailing"},
    ),
    "there is no retention": (
        WITHOUT_RETENTION,
        cron_job("ui-retention", scheduled="60x500", succeeded=None, due="3600x500"),
        "8h",
        set(),
    ),
}


def metric(name: str, values: str, **labels: str) -> dict[str, str]:
    """Return a series of the exporter, as its ServiceMonitor labels it."""
    labels = {"namespace": "flows", "job": "demo-prefect-hamilton-metrics"} | labels
    text = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return {f"{name}{{{text}}}": values}


def transitions(state: str, values: str) -> dict[str, str]:
    of = {"flow": "load", "deployment": "daily", "work_pool": "kubernetes"}
    return metric("prefect_flow_run_transitions_total", values, **of, state=state)


def store(name: str, component: str, values: str, **labels: str) -> dict[str, str]:
    """Return a series of the exporter beside PostgreSQL or Valkey."""
    own = {"job": f"demo-prefect-hamilton-{component}", "pod": f"{component}-0"}
    return metric(name, values, **own, **labels)


def requests(status: str, values: str) -> dict[str, str]:
    """Return a series of the server."""
    own = {"job": "demo-prefect-hamilton-server", "route": "/flow_runs/filter", "method": "POST"}
    return metric("prefect_server_request_duration_seconds_count", values, **own, status=status)


def services(name: str, values: str) -> dict[str, str]:
    """Return a series of background services in pods of their own."""
    job = "demo-prefect-hamilton-background-services"
    return metric(f"docket_{name}", values, job=job, docket_task="schedule_recent_deployments")


def volume(name: str, values: str) -> dict[str, str]:
    claim = "data-demo-prefect-hamilton-postgres-0"
    labels = f'{{namespace="flows",persistentvolumeclaim="{claim}"}}'
    return {f"kubelet_volume_stats_{name}_bytes{labels}": values}


POOL = {"work_pool": "kubernetes"}
LIMIT = {"limit": "warehouse-writes"}
LIVES: dict[str, tuple[dict[str, str], str, str]] = {
    "PrefectServerDown": ({UP: "1x5 0x10 1x30"}, "12m", "20m"),
    "PrefectServerErrors": (
        requests("2xx", "0+90x5 450+90x60") | requests("5xx", "0x5 0+10x20 200x40"),
        "20m",
        "40m",
    ),
    "PrefectSchedulerStalled": (
        {UP: "1x60"} | services("tasks_succeeded_total", "0+12x5 60x20 60+12x30"),
        "22m",
        "30m",
    ),
    "PrefectServicesLate": (
        services("task_punctuality_seconds_sum", "0+1x5 5+900x25 22505+1x30")
        | services("task_punctuality_seconds_count", "0+12x60"),
        "25m",
        "45m",
    ),
    "PrefectComponentUnavailable": (
        deployment("worker-kubernetes", desired="1x50", available="1x5 0x15 1x30"),
        "17m",
        "25m",
    ),
    "PrefectJobFailed": (
        {
            'kube_job_failed{namespace="flows",condition="true",'
            'job_name="demo-prefect-hamilton-bootstrap-1a2b3c4d"}': "1x10 _x30"
        },
        "5m",
        "20m",
    ),
    "PrefectBootstrapFailing": (
        cron_job(
            "bootstrap", scheduled="60x5 360x500", succeeded="120x45 2820x500", due="86400x500"
        ),
        "40m",
        "50m",
    ),
    "PrefectRetentionFailing": (
        cron_job(
            "ui-retention",
            scheduled="60x59 3660x500",
            succeeded="120x199 3720x300",
            due="86400x500",
        ),
        "3h2m",
        "3h30m",
    ),
    "PrefectVolumeFilling": (
        volume("available", "50x10 5x20 50x20") | volume("capacity", "100x60"),
        "28m",
        "35m",
    ),
    "PrefectVolumeGrowing": (
        volume("available", "45-0.1x150 30+0x600") | volume("capacity", "100x750"),
        "2h10m",
        "9h",
    ),
    "PrefectPostgresDown": (store("pg_up", "postgres", "1x5 0x10 1x30"), "12m", "20m"),
    "PrefectPostgresConnectionsHigh": (
        store("pg_stat_activity_count", "postgres", "10x5 60x20 10x30", state="idle")
        | store("pg_stat_activity_count", "postgres", "10x5 30x20 10x30", state="active")
        | store("pg_settings_max_connections", "postgres", "100x60"),
        "20m",
        "30m",
    ),
    "PrefectPostgresTransactionLong": (
        store(
            "pg_stat_activity_max_tx_duration", "postgres", "0x5 4000x10 0x30", datname="prefect"
        ),
        "12m",
        "20m",
    ),
    "PrefectValkeyDown": (store("redis_up", "valkey", "1x5 stale _x10 1x30"), "15m", "25m"),
    "PrefectValkeyMemoryHigh": (
        store("redis_memory_used_bytes", "valkey", "10x5 95x20 10x30")
        | metric(
            "kube_pod_container_resource_limits",
            "100x60",
            job="kube-state-metrics",
            pod="valkey-0",
            container="valkey",
            resource="memory",
        ),
        "20m",
        "30m",
    ),
    "PrefectValkeyBacklog": (
        store(
            "redis_stream_group_lag",
            "valkey",
            "0x5 5000x20 0x30",
            stream="events",
            group="persister",
        ),
        "20m",
        "30m",
    ),
    "PrefectRunsLate": (
        metric("prefect_flow_run_oldest_late_seconds", "0x5 600x10 0x20", **POOL),
        "8m",
        "20m",
    ),
    "PrefectRunsStuckPending": (
        metric("prefect_flow_run_oldest_pending_seconds", "0x5 900x10 0x20", **POOL),
        "8m",
        "20m",
    ),
    "PrefectRunsFailing": (
        transitions("Failed", "0x5 10x80") | transitions("Completed", "0x5 2x80"),
        "8m",
        "45m",
    ),
    "PrefectRunsCrashed": (transitions("Crashed", "0x5 3x80"), "8m", "30m"),
    "PrefectPodsFailing": (
        metric("prefect_pod_diagnoses_total", "0x5 1x80", diagnosis="OOMKilled"),
        "8m",
        "30m",
    ),
    "PrefectDeploymentNotSucceeding": (
        metric(
            "prefect_deployment_last_success_timestamp_seconds",
            "0x70 4200x40",
            flow="load",
            deployment="daily",
        ),
        "65m",
        "80m",
    ),
    "PrefectWorkPoolNotReady": (
        metric("prefect_work_pool_ready", "1x5 0x10 1x20", **POOL),
        "12m",
        "20m",
    ),
    "PrefectSubmissionsFailing": (
        metric(
            "prefect_worker_submissions_total",
            "0x5 5x80",
            job="demo-prefect-hamilton-worker",
            **POOL,
            result="failed",
        ),
        "8m",
        "30m",
    ),
    "PrefectWorkPoolFull": (
        metric("prefect_flow_runs", "4x80", **POOL, state="Running")
        | metric("prefect_flow_runs", "6x80", **POOL, state="InfrastructurePending")
        | metric("prefect_flow_runs", "1x40 stale _x30", **POOL, state="Late")
        | metric("prefect_work_pool_concurrency_limit", "10x80", **POOL),
        "35m",
        "45m",
    ),
    "PrefectSlotsExhausted": (
        metric("prefect_concurrency_slots", "3x40 0x30", **LIMIT, kind="used")
        | metric("prefect_concurrency_slots", "3x40 0x40", **LIMIT, kind="max"),
        "35m",
        "45m",
    ),
    "PrefectAutomationActionFailing": (
        metric("prefect_automation_actions_total", "0x5 1x80", automation="a", result="failed"),
        "8m",
        "30m",
    ),
    "PrefectEventsDelayed": (
        metric("prefect_metrics_event_delay_seconds", "1x5 90x20 1x30")
        | transitions("Running", "0+5x60"),
        "20m",
        "30m",
    ),
    "PrefectTrackingFailing": (
        metric("flows_tracking_failures_total", "0x5 1x80", flow="load", deployment="daily"),
        "8m",
        "45m",
    ),
    "PrefectMetricsStale": (
        metric("prefect_metrics_last_refresh_timestamp_seconds", "0+60x10 600x20 1920+60x30"),
        "22m",
        "40m",
    ),
}
"""Series of a cause and its cure, when the alert fires, and when it no longer does."""


def alerts(release: Release) -> dict[str, Object]:
    (rule,) = release.of("PrometheusRule")
    return {each["alert"]: each for group in rule["spec"]["groups"] for each in group["rules"]}


@pytest.fixture(scope="module")
def promtool() -> str:
    command = shutil.which("promtool")
    if command is None:
        pytest.skip("promtool is not on PATH: install Debian's package prometheus")
    return command


def write_rules(release: Release, folder: Path) -> None:
    """Write rules.yaml as Prometheus reads it."""
    (rule,) = release.of("PrometheusRule")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))


def run(promtool: str, *arguments: str, folder: Path) -> None:
    done = subprocess.run(
        [promtool, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES)
def test_an_alert_fires_for_its_cause_only(case: str, promtool: str, tmp_path: Path) -> None:
    values, series, at, expected = CASES[case]
    write_rules(render(values), tmp_path)
    check_firing("", series, {at: expected}, promtool, tmp_path)


def check_firing(
    of: str, series: dict[str, str], expected: dict[str, set[str]], promtool: str, folder: Path
) -> None:
    """Check which alerts fire at which time: all, or only whether one does."""
    selector = f',alertname="{of}"' if of else ""
    firing = f'count by (alertname) (ALERTS{{alertstate="firing"{selector}}})'
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": each} for name, each in series.items()],
        "promql_expr_test": [
            {
                "expr": firing,
                "eval_time": at,
                "exp_samples": [
                    {"labels": f'{{alertname="{name}"}}', "value": 1} for name in names
                ],
            }
            for at, names in expected.items()
        ],
    }
    content = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "tests.yaml").write_text(yaml.safe_dump(content))
    run(promtool, "test", "rules", "tests.yaml", folder=folder)


@pytest.fixture(scope="module")
def monitored() -> Release:
    return render(MONITORED)


@pytest.mark.parametrize("alert", LIVES)
def test_an_alert_fires_and_resolves(
    alert: str, monitored: Release, promtool: str, tmp_path: Path
) -> None:
    series, fires, resolved = LIVES[alert]
    write_rules(monitored, tmp_path)
    check_firing(alert, series, {fires: {alert}, resolved: set()}, promtool, tmp_path)


def test_every_alert_has_such_a_test(monitored: Release) -> None:
    assert set(alerts(monitored)) == set(LIVES)


def test_every_alert_says_what_to_do() -> None:
    url = {"runbookUrl": "https://example.org/runbooks"}
    page = (ROOT / "docs" / "runbooks.md").read_text()
    found = alerts(render(MONITORED | {"prometheusRule": MONITORED["prometheusRule"] | url}))
    assert re.findall(r"^## (Prefect\w+)$", page, re.MULTILINE) == list(found)
    for name, alert in found.items():
        assert alert["for"]
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        assert alert["annotations"]["runbook_url"] == f"{url['runbookUrl']}#{name.lower()}"


def test_every_metric_of_an_alert_is_exported(monitored: Release) -> None:
    exported = set().union(*EXPORTED.values())
    for name, alert in alerts(monitored).items():
        used = names(alert["expr"])
        assert used, name
        assert used <= exported, name


def test_thresholds_are_values() -> None:
    late = {"prometheusRule": {"enabled": True, "thresholds": {"lateSeconds": 1234567}}}
    assert alerts(render(MONITORED | late))["PrefectRunsLate"]["expr"].endswith("> 1234567")


@pytest.mark.parametrize("name", PROFILES)
def test_prometheus_accepts_the_rules(name: str, promtool: str, tmp_path: Path) -> None:
    values = profile_values(name)
    enabled = {**values.get("prometheusRule", {}), "enabled": True}
    write_rules(render(values | {"prometheusRule": enabled}), tmp_path)
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", folder=tmp_path)
