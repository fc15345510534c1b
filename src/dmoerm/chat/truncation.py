"""How much of the data a model does not read because its texts are too long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from ..schema import Query

if TYPE_CHECKING:
    from .encoding import Encoded


@dataclass(frozen=True)
class TruncationCounts:
    """Counts over the groups of some data.

    Attributes:
        responses: all responses.
        truncated: responses of which a part is not read, because they or their prompts are too long.
        identical_pairs: pairs of different responses to one prompt that are the same as far as they are read, so that
            they have the same score.
    """

    responses: int = 0
    truncated: int = 0
    identical_pairs: int = 0

    def description(self, data: str) -> str | None:
        """Return a sentence about these counts, or None if nothing is truncated."""
        if not self.truncated:
            return None
        sentence = f"{self.truncated:,} of {self.responses:,} responses {data} are truncated (they or their prompts)"
        if self.identical_pairs:
            sentence += f"; {self.identical_pairs:,} pairs of them differ only in what is cut, so they tie"
        return f"{sentence}. Raise encoding.max_length to read more."


def count_truncation(queries: Iterable[tuple[Query, Encoded]]) -> TruncationCounts:
    """Count what is truncated in queries with their token ids."""
    responses = truncated = identical = 0
    for query, encoded in queries:
        responses += len(query.responses)
        truncated += len(encoded.truncated_at)
        for first, second in combinations(sorted(encoded.truncated_at), 2):
            same = encoded.responses[first] == encoded.responses[second]
            identical += same and query.responses[first] != query.responses[second]
    return TruncationCounts(responses, truncated, identical)
