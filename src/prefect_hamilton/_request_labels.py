"""What metrics of HTTP requests have in common; nothing that a client invents is a label."""

LABELS = ("route", "method", "status")
BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper limits of durations in seconds."""

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
OTHER = "other"
"""Stands for all other methods, and for paths without a route."""


def values(route: str | None, method: str, status: int) -> tuple[str, str, str]:
    """Return the values of LABELS: the template of the path, the method, the status' class."""
    return route or OTHER, method if method in METHODS else OTHER, f"{status // 100}xx"
