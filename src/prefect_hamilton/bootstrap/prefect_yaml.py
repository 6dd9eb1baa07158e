"""Keys of a deployment in prefect.yaml that Prefect does not know, and passes over."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from prefect.cli.deploy._models import DeploymentConfig
from prefect.events import DeploymentTriggerTypes
from pydantic import BaseModel, RootModel

from prefect_hamilton.bootstrap.prefect_schemas import Place

DeploymentConfig.model_rebuild()  # it names models that are defined after it

TRIGGERS = "triggers"
"""Prefect's model leaves the content of this key to a later check, which ignores unknown keys."""


def unknown_keys(deployment: Mapping[str, Any]) -> list[Place]:
    """Return the places of unknown keys, those in schedules, triggers and the like included."""
    return list(_unknown(deployment, [DeploymentConfig], ()))


def _unknown(content: Any, models: list[type[BaseModel]], place: Place) -> Iterator[Place]:
    if isinstance(content, list):
        for number, each in enumerate(content):
            yield from _unknown(each, models, (*place, number))
    elif isinstance(content, dict) and models:
        model = min(models, key=lambda each: _misfit(each, content))
        for key, value in content.items():
            if key not in model.model_fields:
                yield (*place, key)
            elif model is DeploymentConfig and key == TRIGGERS:
                yield from _unknown(value, _models(DeploymentTriggerTypes), (*place, key))
            else:
                below = _models(model.model_fields[key].annotation)
                yield from _unknown(value, below, (*place, key))


def _misfit(model: type[BaseModel], content: Mapping[str, Any]) -> tuple[bool, int]:
    """Return how badly a model fits: its `type` is another one, and how many keys are unknown."""
    type_ = model.model_fields["type"].default if "type" in model.model_fields else None
    return content.get("type", type_) != type_, len(content.keys() - model.model_fields.keys())


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models in a type such as `list[A | B] | None`; none where any keys are allowed."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if issubclass(annotation, RootModel) else [annotation]
    return [model for each in get_args(annotation) for model in _models(each)]
