"""What a reward model is asked, before it is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmoerm.errors import DataError
from dmoerm.schema import Message
from dmoerm.scores import grouped

SAMPLES = st.lists(
    st.tuples(st.sampled_from([None, "a", "b"]), st.sampled_from(["p", "q"]), st.sampled_from(["", " \n", "x", "y"]))
)


@given(SAMPLES)
def test_every_response_with_text_is_in_the_one_query_of_its_prompt(samples):
    groups = grouped(samples)
    assert len({(query.task, query.prompt) for query, _ in groups}) == len(groups)
    placed = {at: (q.task, q.prompt, r) for q, places in groups for at, r in zip(places, q.responses, strict=True)}
    assert placed == {at: sample for at, sample in enumerate(samples) if sample[2].strip()}


def test_conversations_that_are_equal_are_one_prompt():
    turns = [(Message(role="user", content="Hi!"),) for _ in range(2)]
    ((query, places),) = grouped([(None, turns[0], "a"), (None, turns[1], "b")])
    assert (query.prompt, query.responses, places) == (turns[0], ("a", "b"), [0, 1])
    with pytest.raises(DataError, match="prompt: is empty"):
        grouped([(None, "", "a")])
