"""SQL that both engines take."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from prefect_hamilton.warehouse._errors import TableConflictError
from prefect_hamilton.warehouse._tables import TableSpec, Target

if TYPE_CHECKING:
    import pandas as pd


def create_statements(target: Target, specs: Sequence[TableSpec]) -> list[str]:
    # PostgreSQL takes no catalog here; the connection is to the right one in any case.
    statements = [f'CREATE SCHEMA IF NOT EXISTS "{target.schema}"']
    for spec in specs:
        columns = [
            f'"{name}" {kind}{" NOT NULL" if name in spec.key else ""}'
            for name, kind in spec.columns.items()
        ]
        key = f"PRIMARY KEY ({names(spec.key)})"
        statements.append(
            f"CREATE TABLE IF NOT EXISTS {target.name(spec)} ({', '.join([*columns, key])})"
        )
    return statements


def upsert_statement(target: Target, spec: TableSpec, source: str) -> str:
    updates = ", ".join(
        f'"{name}" = excluded."{name}"' for name in spec.columns if name not in spec.key
    )
    return (
        f"INSERT INTO {target.name(spec)} ({names(spec.columns)}) {source} "
        f"ON CONFLICT ({names(spec.key)}) DO UPDATE SET {updates}"
    )


def trial_statement(target: Target, spec: TableSpec) -> str:
    """Return what lets the engine say, without writing, whether it could upsert such rows."""
    nulls = ", ".join(f"CAST(NULL AS {kind})" for kind in spec.columns.values())
    # WHERE, for without it PostgreSQL's parser takes ON CONFLICT for the ON of a join.
    return f"EXPLAIN {upsert_statement(target, spec, f'SELECT {nulls} WHERE false')}"


def conflict(target: Target, spec: TableSpec) -> TableConflictError:
    return TableConflictError(
        f"{target.shown(spec)} exists with other columns: choose another target table"
    )


def cannot_create(target: Target, error: Exception) -> TableConflictError:
    reason = str(error).splitlines()[0]
    return TableConflictError(
        f"Cannot create {target} and its companions: {reason}; choose another target table"
    )


def names(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def has_table(
    read: "Callable[[str, Sequence[Any]], pd.DataFrame]", target: Target, spec: TableSpec
) -> bool:
    """Tell whether a table is there."""
    found = read(
        "SELECT 1 FROM information_schema.tables "
        "WHERE table_catalog = ? AND table_schema = ? AND table_name = ?",
        (target.catalog, target.schema, target.table + spec.suffix),
    )
    return not found.empty
