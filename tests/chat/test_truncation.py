"""What is cut is counted, and so are the pairs that the cut makes identical."""

from __future__ import annotations

import pytest
from tiny import tiny_tokenizer

from dmoerm.chat.encoding import Encoder
from dmoerm.chat.truncation import TruncationCounts, count_truncation
from dmoerm.config import EncodingConfig
from dmoerm.schema import Query

LONG = "because " * 60
RAIN, SNOW = LONG + "it rains.", LONG + "it snows."


@pytest.mark.parametrize("truncation", ["keep_both", "keep_end", "keep_beginning"])
def test_truncated_responses_and_pairs_that_become_identical_are_counted(truncation: str) -> None:
    encoder = Encoder(tiny_tokenizer(), EncodingConfig(max_length=60, truncation=truncation))

    def counts(*queries: Query) -> TruncationCounts:
        return count_truncation((query, encoder.encode(query)) for query in queries)

    assert counts(Query(prompt="Why?", responses=("No.", "Yes."))) == TruncationCounts(2, 0, 0)
    assert counts(Query(prompt="Why?", responses=("No.", RAIN, SNOW))) == TruncationCounts(3, 2, 1)
    assert counts(Query(prompt="Why?", responses=(RAIN, RAIN, SNOW))) == TruncationCounts(3, 3, 2)
    assert counts(Query(prompt=LONG, responses=("No.", "Yes."))) == TruncationCounts(2, 2, 0)


def test_the_description_names_the_counts() -> None:
    assert TruncationCounts(9, 0, 0).description("of the test") is None
    said = TruncationCounts(4000, 12, 1).description("to train on")
    assert said is not None
    assert said.startswith("12 of 4,000 responses to train on are truncated")
    assert "1 pairs of them differ only in what is cut" in said
