"""What is wrong with a value, in plain words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError, create_model

from dmoerm.errors import plain_fault


class _Part(BaseModel):
    x: int = 0


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, "many", "must be an integer"),
        (int, 1.5, "must be an integer"),
        (int, [], "must be an integer"),
        (float, "much", "must be a number"),
        (bool, "perhaps", "must be true or false"),
        (str, 3, "must be text"),
        (tuple[str, ...], 3, "must be a list"),
        (list[int], "a", "must be a list"),
        (dict[str, int], 3, "must be a mapping"),
        (_Part, 3, "must be a mapping"),
        (Annotated[int, Field(ge=0)], -1, "must be at least 0"),
        (Annotated[float, Field(gt=0)], 0, "must be above 0"),
        (Annotated[float, Field(le=1)], 2, "must be at most 1"),
        (Annotated[float, Field(lt=1)], 1, "must be below 1"),
        (Annotated[tuple[str, ...], Field(min_length=2)], ["a"], "must have at least 2 entries, but has 1"),
        (Literal["full", "lora"], "half", "must be 'full' or 'lora'"),
    ],
)
def test_the_fault_in_plain_words(kind: Any, value: Any, expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        create_model("Model", field=(kind, ...)).model_validate({"field": value})
    assert plain_fault(caught.value.errors()[0]) in (expected, expected + ".0")
