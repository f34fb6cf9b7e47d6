"""Predictions on disk: small enough to commit, exact enough to recompute every metric."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gliznet.lab import LabError

LARGEST = 65504  # of float16


def write(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet, every float in it, also in lists, as float16.

    Raises LabError for a number that float16 would turn into infinity.
    """
    table = pa.Table.from_pandas(frame, preserve_index=False)
    for column in table.itercolumns():
        _check(column.combine_chunks())
    fields = [pa.field(field.name, _half(field.type)) for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), path, compression="zstd")


def _check(values: pa.Array) -> None:
    if pa.types.is_list(values.type):
        _check(values.flatten())
    elif pa.types.is_floating(values.type):
        largest = pc.max(pc.abs(values)).as_py()
        if largest is not None and largest > LARGEST:
            raise LabError(f"{largest} does not fit float16 (at most {LARGEST})")


def _half(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_half(kind.value_type))
    return pa.float16() if pa.types.is_floating(kind) else kind
