"""What `make kind MONITORING=1` installs beside the chart."""

import re
from typing import Any

import yaml

from charts.schema.dashboards import DASHBOARDS
from scripts import back_ends
from tests.chart.charts import ROOT, render
from tests.exported import EXPORTED


def manifests() -> list[Any]:
    files = sorted(back_ends.MANIFESTS.glob("*.yaml"))
    return [each for file in files for each in yaml.safe_load_all(file.read_text())]


def test_the_addresses_that_are_printed_lead_to_the_back_ends() -> None:
    node_ports = {
        port["nodePort"]: each["metadata"]["name"]
        for each in manifests()
        if each.get("kind") == "Service"
        for port in each["spec"]["ports"]
        if "nodePort" in port
    }
    assert node_ports == {each.node_port: name for name, each in back_ends.BACK_ENDS.items()}
    printed = "\n".join(back_ends.addresses())
    assert all(f"http://localhost:{each.port}" in printed for each in back_ends.BACK_ENDS.values())


def test_the_values_turn_on_what_the_back_ends_show() -> None:
    release = render(yaml.safe_load(back_ends.VALUES.read_text()))
    (rule,) = release.of("PrometheusRule")
    assert {"runs", "stores"} <= {
        each["name"].rpartition("-")[2] for each in rule["spec"]["groups"]
    }
    assert len(release.of("ServiceMonitor")) >= 3
    boards = [each for each in release.of("ConfigMap") if "grafana_dashboard" in str(each)]
    assert len(boards) == len(DASHBOARDS)


def test_the_stand_in_for_kube_state_metrics_invents_no_names() -> None:
    program = (ROOT / "tests" / "monitoring" / "state_metrics.py").read_text()
    assert set(re.findall(r'"(kube_\w+)"', program)) <= EXPORTED["kube-state-metrics"]
