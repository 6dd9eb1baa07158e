"""Dashboards of Grafana: `make generate` writes them as JSON into files/dashboards/."""

from charts.schema.dashboards.data_stores import DATA_STORES
from charts.schema.dashboards.flow_runs import FLOW_RUNS
from charts.schema.dashboards.hamilton import HAMILTON
from charts.schema.dashboards.platform import PLATFORM

DASHBOARDS = {
    "flow-runs": FLOW_RUNS,
    "platform": PLATFORM,
    "data-stores": DATA_STORES,
    "hamilton": HAMILTON,
}
"""All dashboards, by name of their file."""
