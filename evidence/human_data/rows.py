"""Read the publishers' files, and choose the rows of a set: what the mappings of all sets share."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import pickle
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from dmoerm.schema import prompt_key

Row = dict[str, Any]
Mapping = Callable[[Path], Iterable[Row]]  # a checkout of the source's repository → the rows of a set, in its order
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
LONGEST = 700  # words of a response in the sets of `all_rows`

# Prompts of tulu that PandaLM or LLMBar has with other white space, by the first digits of their digests. They stay
# with those sets: the digest of that form decides whether they are kept, and it decides otherwise than theirs.
MOVED = """
00595eb5 047b963a 0653f1b1 066785bd 06a3f154 07dc512b 08a4cb61 0953e1bb 0ea2d0c9 0ec83142 108208a2 126a686f 1ac70ae3
1b3f3257 1d8475e4 1fc01f56 21d72d70 227f498f 22aa8cb8 24f0631b 324c021e 352db23d 3bc69ab6 3cb6d2cf 3e7314f6 4004d261
4a8191fc 4e8b53ec 4ef741cd 4f41faa3 519719f5 5a243e09 5a984275 5dd4295d 61ae323a 664bd531 75905d5d 80516bda 89e59555
98520a1e 985d197d 9d5e6478 9f42a11c a0487bb7 ad6ecbe1 ae0703a9 b3833f81 b6d995ec bc29fe66 ce0ae737 d744a8e4 d8aab38a
d93253d6 dd5cf03a f85742f6
"""


def read_json(file: Path) -> Any:
    """Read a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def read_lines(file: Path) -> list[Any]:
    """Read JSON Lines, compressed if the name ends in `.gz`."""
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_table(file: Path, **options: Any) -> list[dict[str, str]]:
    """Read a table with a header; the options are those of the `csv` module."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines, **options))


class PlainUnpickler(pickle.Unpickler):
    """Read pickled dictionaries, lists, texts and numbers. A pickle that names anything else could run code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Refuse every name."""
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is not plain data")


def read_pickle(file: Path) -> Any:
    """Read a pickle of plain data. Raises `UnpicklingError` on anything else."""
    return PlainUnpickler(io.BytesIO(file.read_bytes())).load()


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None, to six places; None without any."""
    given = [value for value in values if value is not None]
    return round(sum(given) / len(given), 6) if given else None


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return key → its items; keys and items keep their order."""
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def columns(rows: list[dict[str, T]]) -> dict[str, list[T]]:
    """Return name → the values of all rows, for the names of the first row."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def transposed(rows: Iterable[Iterable[T]]) -> list[list[T]]:
    """Return the columns of rows of equal length."""
    return [list(column) for column in zip(*rows, strict=True)]


def clean(text: str) -> str:
    """Return a text with Unix line ends and plain spaces, stripped."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ").strip()


def published_rows(name: str, mapping: Mapping, folder: Path) -> Iterator[Row]:
    """Yield the kept rows of a set with their texts as published, except those with a blank or missing response."""
    rows = (row for row in mapping(folder) if all(isinstance(t, str) and t.strip() for t in row["responses"]))
    return _numbered(name, rows, str)


def cleaned_rows(name: str, mapping: Mapping, folder: Path) -> Iterator[Row]:
    """Yield the kept rows of a set with clean texts; repeated rows and rows of a single text are left out."""
    return _numbered(name, _distinct(mapping(folder)), prompt_key, MOVED if name == "tulu" else "")


def all_rows(name: str, mapping: Mapping, folder: Path) -> Iterator[Row]:
    """Yield the rows of a set, of all prompts, as `cleaned_rows` does, if some grades order a pair of responses.

    A response of more than `LONGEST` words is left out.
    """

    def shorter(row: Row) -> Row:
        return {**row, "responses": [text if len(text.split()) <= LONGEST else "" for text in row["responses"]]}

    for i, row in enumerate(_distinct(map(shorter, mapping(folder)))):
        grades = [row.get("scores", []), *row.get("capabilities", {}).values()]
        if any(len({value for value in values if value is not None}) > 1 for values in grades):
            yield {"id": f"{name}-{i}", **row, "source": name}


def _distinct(mapped: Iterable[Row]) -> Iterable[Row]:
    """Return the rows with clean texts, without repeated rows and rows of a single text."""
    rows: dict[tuple[str, ...], Row] = {}
    for row in filter(None, map(_cleaned, mapped)):
        key = row["task"], prompt_key(row["prompt"]), *sorted(map(prompt_key, row["responses"]))
        rows.setdefault(key, row)
    return rows.values()


def _cleaned(row: Row) -> Row | None:
    """Clean the texts, and join equal responses, with the means of their grades; None if fewer than two remain."""
    responses = [clean(text) for text in row["responses"]]
    filled = (i for i, text in enumerate(responses) if text)
    equal = list(grouped(filled, lambda i: prompt_key(responses[i])).values())

    def joined(values: list[Any]) -> list[Any]:
        return [_joined([values[i] for i in positions]) for positions in equal]

    fields = {**row, "prompt": clean(row["prompt"]), "responses": responses}
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = joined(value)
        elif isinstance(value, dict):
            fields[name] = {key: joined(v) for key, v in value.items() if any(x is not None for x in v)}
    return fields if len(equal) > 1 else None


def _joined(values: list[Any]) -> Any:
    """Return the first of some texts, the mean of some grades, or the mean grade of each person."""
    if len(values) == 1 or isinstance(values[0], str):
        return values[0]
    return [mean(grades) for grades in transposed(values)] if isinstance(values[0], list) else mean(values)


def _numbered(name: str, rows: Iterable[Row], key: Callable[[str], str], moved: str = "") -> Iterator[Row]:
    """Number the rows, and yield the 70 % whose prompts are kept, by the first byte of a digest."""
    for i, row in enumerate(rows):
        digest = hashlib.sha256(key(row["prompt"]).encode()).hexdigest()
        if (int(digest[:2], 16) >= 77) != (digest[:8] in moved):
            yield {"id": f"{name}-{i}", **row, "source": name}
