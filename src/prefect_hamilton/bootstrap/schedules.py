"""Schedules of deployments: as text, and which of those that are stored are given."""

from contextlib import suppress
from datetime import datetime
from typing import Any

from prefect._internal.schemas.validators import normalize_rrule_string
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


def stored_for(
    given: list[Given], stored: list[DeploymentSchedule]
) -> list[DeploymentSchedule | None]:
    """Return for each given schedule the one that is stored; None if there is none or no more."""
    left = list(stored)
    found: list[DeploymentSchedule | None] = [None] * len(given)
    # First those that say whether they are active: the others may be either.
    for number in sorted(range(len(given)), key=lambda each: given[each].get("active") is None):
        same = next((each for each in left if _is_same(given[number], each)), None)
        if same:
            found[number] = same
            left.remove(same)
    return found


def _is_same(given: Given, stored: DeploymentSchedule) -> bool:
    """Whether what is stored is what is given; what is not given, such as a pause, may be any."""
    return (
        _content(_started(given["schedule"], stored.schedule), given["schedule"])
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


def _started(given: Any, stored: Any) -> Any:
    """Return what is given with the start that Prefect adds to a stored rule without one.

    It depends on when the rule was stored.
    """
    if isinstance(given, RRuleSchedule) and isinstance(stored, RRuleSchedule):
        first = stored.rrule.partition("\n")[0]
        with suppress(ValueError):  # the stored rule has no start, or a person gave it one with Z
            start = datetime.strptime(first, "DTSTART:%Y%m%dT%H%M%S")
            rule = normalize_rrule_string(given.rrule, now=start)
            return given.model_copy(update={"rrule": rule})
    return given
