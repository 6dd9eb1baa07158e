"""Expressions that several dashboards use."""

from collections import defaultdict
from string import Template

NAMESPACE = 'namespace=~"$namespace"'
POOL = f'{NAMESPACE},work_pool=~"$work_pool"'
FLOW = f'{NAMESPACE},flow=~"$flow"'
RATE = "$__rate_interval"


def quantile(quantile: float, metric: str, labels: str, by: str) -> str:
    """Return a quantile of a histogram, by some labels."""
    rate = f"sum by (le, {by}) (rate({metric}_bucket{{{labels}}}[{RATE}]))"
    return f"histogram_quantile({quantile}, {rate})"


def rate(metric: str, labels: str, by: str) -> str:
    """Return how much a counter increases in a second, by some labels."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[{RATE}]))"


def increase(metric: str, labels: str, by: str = "", window: str = RATE) -> str:
    """Return how much a counter increases in a window, by some labels; by none, in all."""
    added = f"(increase({metric}{{{labels}}}[{window}]))"
    return f"sum by ({by}) {added}" if by else f"sum{added}"


def count(metric: str, labels: str, by: str = "") -> str:
    """Return how many a counter counted in the time of the dashboard, by some labels."""
    return f"round({increase(metric, labels, by, '$__range')})"  # it extrapolates to 2.003 runs


def chosen(expression: str, rate_interval: str, range_: str, **choices: str) -> str:
    """Return an expression with values for Grafana's variables, such as `namespace`.

    A variable without a choice has its value for all, `.*`.
    """
    windows = {"__rate_interval": rate_interval, "__range": range_}
    return Template(expression).substitute(defaultdict(lambda: ".*", windows | choices))
