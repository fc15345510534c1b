"""Import labels from verdicts that were recorded by other tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import DataError, shorten
from ..labels import CapabilityLabel, Outcome, content_digest
from ..schema import Group
from .collect import OrderVerdicts
from .verdict import Verdict


class ImportedLabels(NamedTuple):
    """Imported labels and the number of rows about groups that are not in the data."""

    labels: list[CapabilityLabel]
    unmatched: int


def import_verdicts(
    rows: Iterable[tuple[int, dict[str, Any] | DataError]], groups: Sequence[Group], judge: str, file: str = "verdicts"
) -> ImportedLabels:
    """Return labels from recorded verdicts; several verdicts on one question are repeated answers to it.

    Args:
        rows: line number and row. A row has the fields `id` (of a group), `order` (`given` or `swapped`), `preferred`
            (capability → index of the better response, or `tie`), and optionally `pair` (two indices; by default the
            group's two responses), `judge` and `mode`, which become part of the judge's name.
        groups: the data.
        judge: the judge's name for rows without one.
        file: the rows' source, for error messages.

    Raises:
        DataError: a row is not a verdict (with its line), or no row yields a label (with the cause).
    """
    by_id = {group.id: group for group in groups}
    verdicts: dict[CapabilityLabel, OrderVerdicts] = {}
    unknown: list[str] = []
    count = 0
    for line, row in rows:
        count += 1
        try:
            if isinstance(row, DataError):
                raise row
            if not _add(row, by_id, judge, verdicts):
                unknown.append(str(row.get("id")))
        except DataError as error:
            raise error.at(file, line) from None
    if not verdicts:
        raise _no_labels(file, count, unknown, by_id)
    return ImportedLabels([orders.label(key) for key, orders in verdicts.items()], len(unknown))


def _no_labels(file: str, count: int, unknown: Sequence[str], groups: Mapping[str, Group]) -> DataError:
    if not count:
        return DataError("contains no verdicts", file=file, hint="check the file, and --mode if it is set")
    if not groups:
        return DataError("the data contain no groups", hint="check the files passed with --data")
    if len(unknown) < count:
        return DataError("preferred is empty in every row", file=file, field="preferred", hint="add a capability")
    return DataError(
        f"none of the {count} verdicts is about a group in the data, whose ids are like {shorten(next(iter(groups)))}",
        file=file,
        field="id",
        value=unknown[0],
        hint="pass the data that were judged with --data",
    )


def _add(
    row: Mapping[str, Any],
    groups: Mapping[str, Group],
    judge: str,
    verdicts: dict[CapabilityLabel, OrderVerdicts],
) -> bool:
    """Add a row's verdicts. Return False if its group is not in the data."""
    preferred, order = row.get("preferred"), row.get("order")
    if not isinstance(preferred, Mapping):
        hint = "write an object: capability → index or tie"
        raise DataError("is not an object", field="preferred", value=preferred, hint=hint)
    if order not in ("given", "swapped"):
        raise DataError("is neither given nor swapped", field="order", value=order, hint="state the order shown")
    group = groups.get(str(row.get("id")))
    if group is None:
        return False
    (first, second), content = _pair(row, group), content_digest(group)
    name = "/".join(str(part) for part in (row.get("judge") or judge, row.get("mode")) if part)
    outcomes = {first: Outcome.FIRST, second: Outcome.SECOND, "tie": Outcome.TIE}
    for capability, winner in preferred.items():
        outcome = outcomes.get(winner) if isinstance(winner, int | str) else None
        if outcome is None:
            hint = f"write {first}, {second} or tie"
            raise DataError("is not one of the pair", field=f"preferred.{capability}", value=winner, hint=hint)
        key = CapabilityLabel(name, group.id, content, group.task or "", capability, first, second)
        orders = verdicts.setdefault(key, OrderVerdicts())
        (orders.given if order == "given" else orders.swapped).append(Verdict(outcome))
    return True


def _pair(row: Mapping[str, Any], group: Group) -> tuple[int, int]:
    pair = row.get("pair", [0, 1] if len(group.responses) == 2 else None)
    try:
        first, second = pair  # pyright: ignore
        if 0 <= first < second < len(group.responses):
            return first, second
    except (TypeError, ValueError):
        pass
    hint = "write two indices of responses, the lower one first"
    raise DataError("is not a pair of responses", field="pair", value=pair, hint=hint)
