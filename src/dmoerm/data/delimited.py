"""Read comma- and tab-separated text: one row a record, under the names of the header.

A cell is text, and an empty cell is null. A cell that holds a conversation as JSON becomes that conversation. A record
of empty cells, which spreadsheets write after the last row, is a `SkippedRow`.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import DataError
from .raw_example import SkippedRow

_DELIMITERS = ",;\t"
_LONGEST_CELL = 2**31 - 1
_BYTE_ORDER_MARK = "\ufeff"


def delimited_rows(lines: Iterable[bytes], delimiter: str | None = None) -> Iterator[tuple[int, dict | DataError]]:
    """Yield each record with its first line, from 1.

    Args:
        delimiter: the character between cells; None: the comma, semicolon or tab that the header has most often.

    Raises:
        DataError: the text is not UTF-8, or the header names a column twice.
    """
    csv.field_size_limit(_LONGEST_CELL)
    text = _decoded(lines)
    first = next(text, "").removeprefix(_BYTE_ORDER_MARK)
    delimiter = delimiter or max(_DELIMITERS, key=first.count)
    reader = csv.reader(itertools.chain([first], text), delimiter=delimiter, strict=True)
    header = _header(reader)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            hint = 'put a cell with line breaks in double quotes, and write a double quote in it as ""'
            yield line, DataError(f"is not a valid record: {error}", hint=hint)
            continue
        if cells:
            yield line, _row(header, cells)


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            near = line[max(0, error.start - 10) : error.start + 10]
            raise DataError("is not UTF-8", line=number, value=near, hint="save the file as UTF-8") from None


def _header(reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"the header is not a valid record: {error}", line=1, hint="name the columns there") from None
    twice = [name for name, count in Counter(header).items() if count > 1 and name]
    if twice:
        raise DataError("the header names a column twice", line=1, value=twice[0], hint="rename one of them")
    return header


def _row(header: list[str], cells: list[str]) -> dict[str, Any] | DataError:
    if not any(cells):
        return SkippedRow("all cells are empty")
    if len(cells) != len(header):
        message = f"has {len(cells)} cells where the header has {len(header)}"
        return DataError(message, value=cells, hint="put a cell that holds the delimiter in double quotes")
    return {name: _value(cell) for name, cell in zip(header, cells, strict=True) if name}


def _value(cell: str) -> Any:
    """Return null for an empty cell, and the conversation that a cell holds as JSON."""
    if cell.startswith("[") and '{"' in cell:
        try:
            turns = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        if turns and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns):
            return turns
    return cell or None
