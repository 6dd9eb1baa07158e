"""Models in which every field is optional, for the settings of one work pool."""

from __future__ import annotations

import copy
import functools
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, GetCoreSchemaHandler, create_model
from pydantic_core import CoreSchema


class Partial:
    """Annotation: the value is a partial() of the annotated model."""

    def __get_pydantic_core_schema__(
        self, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Validate, and describe, the partial model instead of `source`."""
        return handler.generate_schema(partial(source))


@functools.cache
def partial(model: type[BaseModel]) -> type[BaseModel]:
    """Return a model with the fields of `model`, each optional and null by default.

    A field that is itself a model becomes partial, too, if it is annotated so or has
    required fields.
    """
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        optional = copy.copy(field)
        optional.default, optional.default_factory = None, None
        inner = field.annotation
        nested = any(isinstance(part, Partial) for part in field.metadata)
        optional.metadata = [part for part in field.metadata if not isinstance(part, Partial)]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            inner = partial(inner) if nested or _has_required(inner) else inner
        nullable = inner if NoneType in get_args(inner) else inner | None  # type: ignore[operator]
        fields[name] = (nullable, optional)
    return create_model(f"Partial{model.__name__}", __base__=model, __doc__=model.__doc__, **fields)


def _has_required(model: type[BaseModel]) -> bool:
    return any(field.is_required() for field in model.model_fields.values())
