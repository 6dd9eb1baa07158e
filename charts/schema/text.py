"""Strings that must match a regular expression, with words for people who wrote another."""

from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


@dataclass(frozen=True)
class Text:
    """Marks a string that must match `pattern`; `wanted` says in words what that is."""

    pattern: str
    wanted: str

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Add the check to the schema of the string."""
        return {**handler(core_schema), **in_words(self.pattern, self.wanted)}


def in_words(pattern: str, wanted: str) -> dict[str, Any]:
    """Return keywords of JSON Schema that accept what `pattern` does.

    Helm and editors print what a schema contains: of `pattern`, the expression. Of a `const` that
    is checked where the expression does not match, they print "value must be '<wanted>'".
    """
    return {"if": {"pattern": pattern}, "else": {"const": wanted}}
