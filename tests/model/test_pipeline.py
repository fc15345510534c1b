"""`pipeline("text-classification")` on rendered conversations gives `DMoERM.score`, whatever the tokenizer adds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from running import in_short
from tiny import CHATML, make_model, make_tiny_config, tiny_tokenizer, write_backbone

from dmoerm.errors import DataError

BOS = "<|endoftext|>"
TALKS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}],
    [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine. " * 20}],
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "你好吗？"},
        {"role": "assistant", "content": "很好！\n"},
        {"role": "user", "content": " Why?\n\nTell me. "},
        {"role": "assistant", "content": "Because.\n\nSo it is.\n"},
    ],
]


def with_added(template: str, pattern: str) -> Any:
    """Return a tokenizer that adds special tokens to any text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokens = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (BOS, "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=pattern, special_tokens=tokens)
    tokenizer.chat_template = template
    return tokenizer


def without_padding() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    return tokenizer


TOKENIZERS = {
    "nothing added": tiny_tokenizer,
    "bos added, and in the template": lambda: with_added(f"{{{{ '{BOS}' }}}}" + CHATML, f"{BOS} $A"),
    "bos added, not in the template": lambda: with_added(CHATML, f"{BOS} $A"),
    "bos in the template alone": lambda: with_added(f"{{{{ '{BOS}' }}}}" + CHATML, "$A"),
    "bos and eos added": lambda: with_added(CHATML, f"{BOS} $A <|im_end|>"),
    "no padding token": without_padding,
    "today's date": lambda: with_added("{{ strftime_now('%d %b %Y at %H:%M:%S') }}" + CHATML, "$A"),
}


def rewards(model: Any, talks: Sequence[Any]) -> list[float]:
    return [model.score(talk[:-1], [talk[-1]["content"]])[0].reward for talk in talks]


def rendered(tokenizer: Any) -> list[str]:
    return [tokenizer.apply_chat_template(talk, tokenize=False) for talk in TALKS]


@pytest.mark.parametrize(
    "kind", in_short(TOKENIZERS, "nothing added", "bos added, and in the template", "today's date")
)
def test_the_pipeline_gives_the_score(kind: str, tmp_path: Path) -> None:
    from transformers import pipeline

    write_backbone(tmp_path / "backbone")
    TOKENIZERS[kind]().save_pretrained(tmp_path / "backbone")
    model = make_model(make_tiny_config(str(tmp_path / "backbone"), tmp_path))
    model.save_pretrained(tmp_path / "model")
    expected = rewards(model, TALKS)
    classify: Any = pipeline("text-classification", str(tmp_path / "model"), function_to_apply="none")
    for size, side in ((1, "right"), (3, "right"), (3, "left")):
        classify.tokenizer.padding_side = side
        actual = classify(rendered(classify.tokenizer), batch_size=size)
        assert [row["score"] for row in actual] == pytest.approx(expected, abs=1e-4)
        assert {row["label"] for row in actual} == {"REWARD"}


def test_a_conversation_that_continues_after_its_response_is_an_error(tiny_model: Any) -> None:
    """Otherwise an earlier turn would be scored if a tokenizer merges the last marker with the response."""
    model = tiny_model()
    text = model.tokenizer.apply_chat_template([*TALKS[0], {"role": "user", "content": "So?"}], tokenize=False)
    with pytest.raises(DataError, match="where the response begins"):
        model.encoder.split(model.tokenizer(text)["input_ids"])
