"""RewardBench's command on a model's folder.

RewardBench 0.1.5 pins a version of transformers below dmoerm's, so it is no dependency. These tests send what its
`rewardbench --model FOLDER` sends to a model that it has no entry for (rewardbench.py, models/pipeline.py at 05a9005).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dmoerm.errors import ConfigError
from dmoerm.model import DMoERM

TALKS = [
    [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": text}]
    for text in ("Fine, and you? " * 6, "No.", "Well enough.")
]


def rewardbench(folder: str, quantized: bool = False, batch_size: int = 2, **more: Any) -> list[float]:
    """The scores of `TALKS`, as `rewardbench.rewardbench()` with a `RewardBenchPipeline` computes them."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, revision=None)
    texts = [tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=False) for talk in TALKS]
    tokenizer.padding_side = "left"
    settings: dict[str, Any] = {"device_map": "auto", "torch_dtype": torch.float16}
    if quantized:
        settings = {"load_in_8bit": True, "device_map": {"": 0}, "torch_dtype": None}
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, **settings | more, revision=None, trust_remote_code=False
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0
    model = model.eval()
    if tokenizer.pad_token_id is None:
        model.config.pad_token_id = tokenizer.eos_token_id
        tokenizer.pad_token_id = tokenizer.eos_token_id
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model = Accelerator().prepare(model)
    scores: list[float] = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        inputs = tokenizer(batch, truncation=False, max_length=512, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs.to(model.device)).logits
        scores += logits.float().cpu().numpy().squeeze(-1).tolist()
    return scores


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float16, 1e-2), (torch.bfloat16, 0.1)])
def test_its_command_gives_the_scores(trained_run: Any, dtype: torch.dtype, tolerance: float) -> None:
    """float16 is its default, float32 and bfloat16 are its options."""
    expected = [trained_run.model.score(talk[0]["content"], [talk[1]["content"]])[0].reward for talk in TALKS]
    actual = rewardbench(str(trained_run.folder / "model"), torch_dtype=dtype)
    assert actual == pytest.approx(expected, abs=tolerance)
    assert len(set(actual)) == len(TALKS)


def test_a_tokenizer_without_a_padding_token_gets_its_end_token(trained_run: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(trained_run.folder / "model", tmp_path / "model")
    (folder / "SHA256SUMS").unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert DMoERM.from_pretrained(folder).config.pad_token_id == tokenizer.eos_token_id
    assert len(rewardbench(str(folder))) == len(TALKS)


def test_its_default_of_quantized_weights_is_refused_with_the_option_that_works(trained_run: Any) -> None:
    with pytest.raises(ConfigError, match=r"load_in_8bit.*--not_quantized"):
        rewardbench(str(trained_run.folder / "model"), quantized=True)
