"""A reward as a standard classifier: transformers alone computes what the model computes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_exact_config, make_model, make_tiny_config, tiny_groups
from typer.testing import CliRunner

from dmoerm.cli import app
from dmoerm.errors import ConfigError
from dmoerm.model import DMoERM
from dmoerm.model.export import _tokenizer, check_classifier, export_classifier, nonlinear_reason

TASK = "chitchat"
LAST = {"encoding": {"pooling": "last"}}
SCORES = {"phase2": {"fit": "exact"}, "phase3": {"inputs": "scores", "base_scores": ["per_task"]}}
GENERAL_READ = make_tiny_config, LAST | SCORES | {"phase3": {"inputs": "scores"}}, TASK, "the general model"
WITHOUT_DMOERM = """
import json, sys
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder, conversations = sys.argv[1], json.loads(sys.argv[2])
classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer.apply_chat_template(
    conversations, tokenize=True, padding=True, return_tensors="pt", return_dict=True, add_generation_prompt=True
)
with torch.no_grad():
    print(json.dumps(classifier(**inputs).logits[:, 0].tolist()))
assert not [name for name in sys.modules if name.startswith("dmoerm")]
"""


@pytest.fixture(scope="module")
def exact_model(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> DMoERM:
    """A model of exact heads on the last token's state. Do not change it."""
    return make_model(make_exact_config(tiny_backbone, tmp_path_factory.mktemp("exact"), **LAST))


def test_the_command_prints_the_error(exact_model: DMoERM, tmp_path: Path) -> None:
    exact_model.save_pretrained(tmp_path / "model")
    arguments = ["export", tmp_path / "model", "--plain", "--task", TASK, "--output", tmp_path / "plain"]
    said = CliRunner().invoke(app, [str(a) for a in arguments])
    assert said.exit_code == 0, said.output
    ((error, texts, of),) = re.findall(r"largest error (\S+) on (\d+) texts with equal tokens, of (\d+)", said.output)
    assert float(error) < 1e-4
    assert int(texts) == int(of) > 20


def test_the_template_keeps_every_character_of_the_system_message(tiny_backbone: str, tmp_path: Path) -> None:
    system = ' Be "kind" 😀 {x}.\n'
    model = make_model(make_exact_config(tiny_backbone, tmp_path, encoding={"pooling": "last", "system": system}))
    rendered = _tokenizer(model).apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert f"system\n{system.strip()}<|im_end|>" in rendered


@pytest.mark.slow
def test_scores_without_this_package(exact_model: DMoERM, tmp_path: Path) -> None:
    config = export_classifier(exact_model, TASK, tmp_path / "plain")
    groups = [group for group in tiny_groups(3) if group.task == TASK]
    expected = [score.reward for g in groups for score in exact_model.score(g.prompt, g.responses, task=TASK)]
    conversations = [
        [{"role": "user", "content": g.prompt}, {"role": "assistant", "content": text}]
        for g in groups
        for text in g.responses
    ]
    command = [sys.executable, "-c", WITHOUT_DMOERM, str(tmp_path / "plain"), json.dumps(conversations)]
    logits = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)
    assert [logit + config.reward_bias for logit in logits] == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "changes", "task"),
    [
        (make_exact_config, LAST | {"encoding": {"pooling": "last", "system": 'Be "kind" {x}.'}}, None),
        (make_tiny_config, LAST | SCORES, TASK),  # branches of their own
    ],
)
def test_the_classifier_computes_the_reward(
    tiny_backbone: str, tmp_path: Path, make: Callable[..., Any], changes: dict[str, Any], task: str | None
) -> None:
    model = make_model(make(tiny_backbone, tmp_path, **changes))
    export_classifier(model, task, tmp_path / "plain")
    check = check_classifier(model, task, tmp_path / "plain", tiny_groups(2))
    assert check.texts == check.same_tokens == 12
    assert check.error < 1e-4


def test_bfloat16_rounds_the_reward(exact_model: DMoERM, tmp_path: Path) -> None:
    export_classifier(exact_model, TASK, tmp_path / "plain", torch.bfloat16)
    assert 1e-4 < check_classifier(exact_model, TASK, tmp_path / "plain", tiny_groups(1)).error < 1


@pytest.mark.parametrize(
    ("make", "changes", "task", "reason"),
    [
        (make_exact_config, {}, None, "encoding.pooling is both"),
        (make_tiny_config, LAST, TASK, "not linear"),
        (make_tiny_config, LAST | {"phase3": {"inputs": "scores"}}, TASK, "experts have LoRA"),
        pytest.param(*GENERAL_READ, marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    tiny_backbone: str, tmp_path: Path, make: Callable[..., Any], changes: dict[str, Any], task: str, reason: str
) -> None:
    model = make_model(make(tiny_backbone, tmp_path, **changes))
    assert reason in str(nonlinear_reason(model, task))
    with pytest.raises(ConfigError, match="cannot express"):
        export_classifier(model, task, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


@pytest.mark.slow
def test_a_family_without_a_classifier_is_refused(backbones: Callable[[str], str], tmp_path: Path) -> None:
    model = make_model(make_exact_config(backbones("cohere"), tmp_path, **LAST))
    with pytest.raises(ConfigError, match="no classifier of type 'cohere'"):
        export_classifier(model, None, tmp_path / "plain")


def test_the_padding_token_ends_no_text(exact_model: DMoERM, tmp_path: Path) -> None:
    end = exact_model.encoder.empty_response[-1]
    assert exact_model.tokenizer.pad_token_id == end
    assert export_classifier(exact_model, None, tmp_path / "plain").pad_token_id != end
