"""Schedules of deployments: as text, and whether two of them are the same."""

from typing import Any

from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule

Given = dict[str, Any]
"""A schedule as prefect.yaml gives it: `schedule`, and what else is written there."""


def describe(given: DeploymentSchedule | Given) -> str:
    """Return the schedule in a few words, such as `"0 9 * * *" America/Chicago`."""
    schedule = given["schedule"] if isinstance(given, dict) else given.schedule
    if isinstance(schedule, CronSchedule):
        when = f'"{schedule.cron}"'
    elif isinstance(schedule, IntervalSchedule):
        when = f"every {schedule.interval.total_seconds():g} s"
    elif isinstance(schedule, RRuleSchedule):
        when = f'"{schedule.rrule}"'
    else:
        return "none"
    return f"{when} {schedule.timezone or 'UTC'}"


def is_same(given: Given, stored: DeploymentSchedule) -> bool:
    """Whether what is stored is what is given; what is not given, such as a pause, may be any."""
    return (
        _content(given["schedule"], given["schedule"])
        == _content(stored.schedule, given["schedule"])
        and type(given["schedule"]) is type(stored.schedule)
        and given.get("slug") == stored.slug
        and given.get("parameters", {}) == stored.parameters
        and given.get("active") in (None, stored.active)
    )


def _content(schedule: Any, given: Any) -> dict[str, Any]:
    """Return a schedule's fields; the time of its creation is the anchor if none is given."""
    anchored = "anchor_date" in given.model_fields_set
    content: dict[str, Any] = schedule.model_dump(exclude=None if anchored else {"anchor_date"})
    return content | {"timezone": content.get("timezone") or "UTC"}
