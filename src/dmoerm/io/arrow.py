"""Arrow files that are written a batch of rows at a time and read by memory mapping, so that they may exceed memory.

Processes that map the same file share its pages. The format is Arrow's stream, which `datasets` reads too.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BATCH_ROWS = 1024


class ArrowWriter:
    """Write rows to a new Arrow file; a context manager that finishes the file.

    Args:
        columns: name → Arrow type.
    """

    def __init__(self, file: Path, columns: Mapping[str, Any]) -> None:
        import pyarrow as pa

        self._schema = pa.schema(list(columns.items()))
        self._stream = pa.ipc.new_stream(str(file), self._schema)
        self._rows: list[dict[str, Any]] = []

    def append(self, **row: Any) -> None:
        """Add a row: one value per column."""
        self._rows.append(row)
        if len(self._rows) == _BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def __enter__(self) -> ArrowWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._rows and error[0] is None:
            self._flush()
        self._stream.close()


class ArrowRows:
    """The rows of an Arrow file, or of all Arrow files of a folder in the order of their names.

    Raises:
        OSError: the path does not exist or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        files = sorted(path.glob("*.arrow")) if path.is_dir() else [path]
        streams = [pa.ipc.open_stream(pa.memory_map(str(file))) for file in files]
        self._batches = [batch for stream in streams for batch in stream if batch.num_rows]
        self._columns = [dict(zip(batch.schema.names, batch.columns, strict=True)) for batch in self._batches]
        self._starts = [0]
        for batch in self._batches:
            self._starts.append(self._starts[-1] + batch.num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def value(self, column: str, row: int) -> Any:
        """Return one value as a Python object."""
        return self._scalar(column, row).as_py()

    def numbers(self, column: str, row: int) -> list[int]:
        """Return one value of a column of lists of numbers; for long lists, `value` is slow."""
        return self._scalar(column, row).values.to_numpy().tolist()

    def _scalar(self, column: str, row: int) -> Any:
        batch = bisect.bisect_right(self._starts, row) - 1
        return self._columns[batch][column][row - self._starts[batch]]

    def column(self, name: str) -> list[Any]:
        """Return the whole column as Python objects."""
        return [value for columns in self._columns for value in columns[name].to_pylist()]
