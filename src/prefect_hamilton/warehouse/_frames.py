"""Conversion of rows between pandas and an engine."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prefect_hamilton.warehouse._tables import TableSpec

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

Wanted = Callable[["pd.DataFrame"], "np.ndarray"]

# How many rows of a result are looked at together.
READ_ROWS = 100_000


def _arrow_schema(spec: TableSpec) -> "pa.Schema":
    import pyarrow as pa

    types = {
        "TEXT": pa.string(),
        "TIMESTAMP": pa.timestamp("us"),
        "DOUBLE PRECISION": pa.float64(),
        "BIGINT": pa.int64(),
        "BOOLEAN": pa.bool_(),
    }
    return pa.schema([(name, types[kind]) for name, kind in spec.columns.items()])


def arrow_table(spec: TableSpec, frame: "pd.DataFrame") -> "pa.Table":
    """Return a frame's rows in the types of the table; NaN and NaT become null."""
    import pyarrow as pa

    return pa.Table.from_pandas(frame, schema=_arrow_schema(spec), preserve_index=False)


def read_schema(found: "pa.Schema") -> "pa.Schema":
    """Return the types in which a result is read: one for whole numbers, one for all others."""
    import pyarrow as pa

    def of(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_integer(kind) and kind != pa.uint64():
            return pa.int64()
        is_number = pa.types.is_floating(kind) or pa.types.is_decimal(kind) or kind == pa.uint64()
        return pa.float64() if is_number else kind

    return pa.schema([(column.name, of(column.type)) for column in found])


def wanted_of(
    tables: "Iterable[pa.Table]", schema: "pa.Schema", wanted: Wanted | None
) -> "pd.DataFrame":
    import pyarrow as pa

    if wanted:
        tables = (table.filter(pa.array(wanted(table.to_pandas()))) for table in tables)
    frame: pd.DataFrame = pa.concat_tables([schema.empty_table(), *tables]).to_pandas()
    return frame
