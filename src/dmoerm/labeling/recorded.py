"""Labels from verdicts that were recorded elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import DataError
from ..labels import Label, Outcome, content_digest
from ..schema import Group
from .collect import Orders
from .verdict import Verdict


def recorded(
    rows: Iterable[tuple[int, dict[str, Any] | DataError]], groups: Sequence[Group], judge: str, file: str = "verdicts"
) -> list[Label]:
    """Labels from verdicts that were recorded elsewhere; several on one question count as so many answers.

    Args:
        rows: line number and row: `id` (of a group), `order` (`given` or `swapped`), `preferred` (capability →
            index of the better response, or `tie`), optionally `pair` (two indices; the group's two responses unless
            given), `judge` and `mode`, which become part of the judge's name.
        judge: the judge's name where a row names none.
        file: what errors call the rows' source.

    Raises:
        DataError: with the line, for a row that is no verdict, and where no row is about one of the groups.
    """
    by_id = {group.id: group for group in groups}
    found: dict[Label, Orders] = {}
    for line, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            _record(row, by_id, judge, found)
        except DataError as error:
            raise error.at(file, line) from None
    if not found:
        raise DataError("no verdict is on one of the groups", field="id", hint="name the data that were judged")
    return [orders.label(about) for about, orders in found.items()]


def _record(row: Mapping[str, Any], groups: Mapping[str, Group], judge: str, found: dict[Label, Orders]) -> None:
    preferred, order = row.get("preferred"), row.get("order")
    if not isinstance(preferred, Mapping):
        raise DataError("is no mapping", field="preferred", value=preferred, hint="write capability → index or tie")
    if order not in ("given", "swapped"):
        raise DataError("is neither given nor swapped", field="order", value=order, hint="say how they were shown")
    group = groups.get(str(row.get("id")))
    if group is None:
        return
    (first, second), content = _pair(row, group), content_digest(group)
    name = "/".join(str(part) for part in (row.get("judge") or judge, row.get("mode")) if part)
    for capability, winner in preferred.items():
        outcome = {first: Outcome.FIRST, second: Outcome.SECOND, "tie": Outcome.TIE}.get(winner)
        if outcome is None:
            hint = f"write {first}, {second} or tie"
            raise DataError("is no response", field=f"preferred.{capability}", value=winner, hint=hint)
        about = Label(name, group.id, content, group.task or "", capability, first, second)
        orders = found.setdefault(about, Orders())
        (orders.given if order == "given" else orders.swapped).append(Verdict(outcome))


def _pair(row: Mapping[str, Any], group: Group) -> tuple[int, int]:
    pair = row.get("pair", [0, 1] if len(group.responses) == 2 else None)
    try:
        first, second = pair  # pyright: ignore
        if 0 <= first < second < len(group.responses):
            return first, second
    except (TypeError, ValueError):
        pass
    raise DataError("is no pair of responses", field="pair", value=pair, hint="write two indices, the lower first")
