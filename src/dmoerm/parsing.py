"""Validate native rows as queries and groups, with errors that name the field, its value and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import DataError, plain_fault
from .schema import Group, Query

T = TypeVar("T", bound=BaseModel)
_HINTS = {
    "missing": "add the field",
    "too_short": "give at least two responses to a group, one to a query",
    "is empty": "give a text or leave the row out",
    "beyond": "give smaller numbers; only their differences count",
    "finite": "give a finite number, or null for a capability that was not graded",
    "both": "keep the one that people gave",
    "neither": "give scores (higher is better) or ranks (1 is best)",
    "has": "give one number for each response, in the order of responses",
    "surrogate": "write the text as valid Unicode",
}
_UNION_BRANCH = re.compile(r"str|tuple\[.*|function-.*")  # pydantic puts the branch of a union into the location
# Checks across several fields name the label at fault in their message; pydantic gives them no location.
_NAMED_LABEL = re.compile(r"((?:scores|ranks|margin|(?:capabilities|annotators)\..+?)) ((?:has|needs) .+)", re.DOTALL)


def parse_query(row: Mapping[str, Any]) -> Query:
    """Validate a native row as a `Query`; unknown fields are ignored. Raise `DataError` with field, value and hint."""
    return _parse(Query, row)


def parse_group(row: Mapping[str, Any]) -> Group:
    """Validate a native row as a `Group`; unknown fields are ignored. Raise `DataError` with field, value and hint."""
    return _parse(Group, row)


def _parse(kind: type[T], row: Mapping[str, Any]) -> T:
    try:
        return kind.model_validate({name: value for name, value in row.items() if name in kind.model_fields})
    except ValidationError as error:
        raise _data_error(_telling(error.errors(), row), row) from None


def _telling(details: Sequence[Any], row: Mapping[str, Any]) -> Any:
    """Select the first error; for a prompt that is a list, the error in the conversation."""
    whole = not isinstance(row.get("prompt"), Sequence) or isinstance(row.get("prompt"), str)
    return next((d for d in details if whole or tuple(d["loc"]) != ("prompt", "str")), details[0])


def _value_at(row: Mapping[str, Any], location: Sequence[str]) -> object:
    value = row.get(location[0])
    return value[location[1]] if isinstance(value, Mapping) and location[1:] and location[1] in value else value


def _data_error(detail: Any, row: Mapping[str, Any]) -> DataError:
    location = [str(part) for part in detail["loc"] if not _UNION_BRANCH.fullmatch(str(part))]
    message = plain_fault(detail)
    if not location and (named := _NAMED_LABEL.match(message)):
        location, message = named[1].split(".", 1), named[2]
    hint = _HINTS.get(detail["type"]) or next(
        (text for word, text in _HINTS.items() if word in message), "see docs/data.md for the format"
    )
    value = _value_at(row, location) if location and detail["type"] != "missing" else None
    return DataError(message[0].lower() + message[1:], field=".".join(location) or None, value=value, hint=hint)
