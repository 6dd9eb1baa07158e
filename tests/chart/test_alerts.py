"""The alerts of the PrometheusRule, evaluated by Prometheus' own promtool."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.chart.charts import Object, Release, render
from tests.chart.conftest import PROFILES, profile_values

ALERTS: Object = {"prometheusRule": {"enabled": True}}
SCRAPED: Object = ALERTS | {"server": {"metrics": True}, "serviceMonitor": {"enabled": True}}
WITHOUT_RETENTION: Object = ALERTS | {"hamiltonUi": {"retention": {"enabled": False}}}


# Series as kube-state-metrics documents them, and values, one a minute.


def deployment(component: str, *, desired: str, available: str) -> dict[str, str]:
    labels = f'{{namespace="flows",deployment="demo-prefect-hamilton-{component}"}}'
    return {
        f"kube_deployment_spec_replicas{labels}": desired,
        f"kube_deployment_status_replicas_available{labels}": available,
    }


def job(name: str, *, failed_pods: str, failed: bool | None) -> dict[str, str]:
    """Return a Job that has failed, has not, or has not ended."""
    name = f"demo-prefect-hamilton-{name}"
    series = {f'kube_job_status_failed{{namespace="flows",job_name="{name}"}}': failed_pods}
    for condition in ("true", "false", "unknown") if failed is not None else ():
        labels = f'{{namespace="flows",job_name="{name}",condition="{condition}"}}'
        series[f"kube_job_failed{labels}"] = f"{int(condition == str(failed).lower())}x500"
    return series


def retention(*, scheduled: str, succeeded: str | None, due: str) -> dict[str, str]:
    """Return the CronJob; the values are in seconds since the start of the test."""
    labels = '{namespace="flows",cronjob="demo-prefect-hamilton-ui-retention"}'
    series = {
        f"kube_cronjob_created{labels}": "0x500",
        f"kube_cronjob_status_last_schedule_time{labels}": scheduled,
        f"kube_cronjob_next_schedule_time{labels}": due,
    }
    if succeeded is not None:
        series[f"kube_cronjob_status_last_successful_time{labels}"] = succeeded
    return series


UP = 'up{namespace="flows",job="demo-prefect-hamilton-server"}'
HEALTHY = (
    deployment("server", desired="1x500", available="1x500")
    | job("bootstrap-1a2b3c4d", failed_pods="0x500", failed=False)
    | retention(scheduled="60x500", succeeded="_ _ 120x500", due="86400x500")
    | {UP: "1x500"}
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
        job("ui-retention-29000000", failed_pods="3x500", failed=True)
        | retention(scheduled="60x59 3660x500", succeeded="0x61 3720x500", due="86400x500"),
        "4h",
        set(),
    ),
    "no retention Job has ever succeeded": (
        ALERTS,
        retention(scheduled="60x500", succeeded=None, due="86400x500"),
        "2h2m",
        {"PrefectRetentionFailing"},
    ),
    "the last retention Job did not succeed": (
        ALERTS,
        retention(scheduled="60x59 3660x500", succeeded="120x500", due="86400x500"),
        "3h2m",
        {"PrefectRetentionFailing"},
    ),
    "a retention Job is running": (
        ALERTS,
        retention(scheduled="60x59 3660x500", succeeded="120x500", due="86400x500"),
        "2h",
        set(),
    ),
    "the retention Job was due and not created": (
        ALERTS,
        retention(scheduled="60x500", succeeded="120x500", due="3600x500"),
        "3h2m",
        {"PrefectRetentionFailing"},
    ),
    "there is no retention": (
        WITHOUT_RETENTION,
        retention(scheduled="60x500", succeeded=None, due="3600x500"),
        "8h",
        set(),
    ),
}


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
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in expected]
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": each} for name, each in series.items()],
        "promql_expr_test": [{"expr": firing, "eval_time": at, "exp_samples": samples}],
    }
    content = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(content))
    run(promtool, "test", "rules", "tests.yaml", folder=tmp_path)


@pytest.mark.parametrize("name", PROFILES)
def test_prometheus_accepts_the_rules(name: str, promtool: str, tmp_path: Path) -> None:
    values = profile_values(name)
    enabled = {**values.get("prometheusRule", {}), "enabled": True}
    write_rules(render(values | {"prometheusRule": enabled}), tmp_path)
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", folder=tmp_path)
