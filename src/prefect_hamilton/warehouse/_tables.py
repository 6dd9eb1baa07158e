"""Tables: where they are, what they hold, and the names under which SQL knows them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from prefect_hamilton.warehouse._errors import WarehouseError

# Three lowercase names: then quoting and the engines' different case rules change nothing.
# PostgreSQL cuts names at 63 bytes: 48 leaves room for the companions' endings.
_NAME = "[a-z_][a-z0-9_]{0,47}"
_TARGET = rf"{_NAME}\.{_NAME}\.{_NAME}"


@dataclass(frozen=True)
class TableSpec:
    """Columns (name to SQL type both engines know), key, and the ending of the table's name."""

    suffix: str
    columns: Mapping[str, str]
    key: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """A target table's three parts; `name` gives the quoted name of it or of a companion."""

    catalog: str
    schema: str
    table: str

    @classmethod
    def parse(cls, target_table: str) -> "Target":
        """Take `catalog.schema.table` apart; raises WarehouseError when it is not that."""
        if not re.fullmatch(_TARGET, target_table):
            raise WarehouseError(
                f"target table {target_table!r} is not catalog.schema.table in lowercase letters, "
                "digits and underscores, like warehouse.prod.orders"
            )
        return cls(*target_table.split("."))

    def name(self, spec: TableSpec) -> str:
        """Return the quoted name for SQL. The parts hold no quotes: `parse` saw to it."""
        return f'"{self.catalog}"."{self.schema}"."{self.table}{spec.suffix}"'

    def shown(self, spec: TableSpec) -> str:
        """Return the name as people write it."""
        return f"{self}{spec.suffix}"

    def __str__(self) -> str:
        """Return the target table's name as people write it."""
        return f"{self.catalog}.{self.schema}.{self.table}"


def _valid_target(target_table: str) -> str:
    try:
        Target.parse(target_table)
    except WarehouseError as error:
        raise ValueError(str(error)) from None
    return target_table


# The pattern is for the run form and the API; the validator says the same in words.
TargetTable = Annotated[
    str, AfterValidator(_valid_target), Field(json_schema_extra={"pattern": f"^{_TARGET}$"})
]
