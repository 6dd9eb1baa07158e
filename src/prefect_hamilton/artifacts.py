"""Artifacts that accompany the work of a run: pictures, progress, previews, summaries, links.

They never make a run fail or repeat work that has succeeded: an artifact that cannot be published
causes a warning. If the artifact is the result of the work, such as a report, publish it with
Prefect's functions.
"""

import re
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast
from uuid import UUID

from prefect import artifacts

from prefect_hamilton._run_logger import run_logger

P = ParamSpec("P")
R = TypeVar("R")


def slug(name: str) -> str:
    """Return a name as an artifact's key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def best_effort(what: str) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
    """Make a function log a warning that `what` is missing, and return None, instead of raising.

    For the synchronous code of a flow or task run, whose logger is used.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R | None]:
        @wraps(function)
        def attempt(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                run_logger().warning("The run continues without %s (%s)", what, reason)
                return None

        return attempt

    return decorate


create_link_artifact = best_effort("a link artifact")(artifacts.create_link_artifact)
create_markdown_artifact = best_effort("a markdown artifact")(artifacts.create_markdown_artifact)
create_table_artifact = best_effort("a table artifact")(artifacts.create_table_artifact)


@best_effort("its progress")
def create_progress_artifact(progress: float, key: str, description: str) -> UUID:
    """Create a progress artifact as Prefect does; None, with a warning, when that fails."""
    return cast(UUID, artifacts.create_progress_artifact(progress, key, description))


@best_effort("an update of its progress")
def update_progress_artifact(
    artifact_id: UUID | None, progress: float, description: str | None = None
) -> None:
    """Update a progress artifact; nothing for one that could not be created."""
    if artifact_id is not None:
        artifacts.update_progress_artifact(artifact_id, progress, description)
