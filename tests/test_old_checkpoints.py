"""Checkpoints of an early version load and give the same scores; they have no posterior, and so no uncertainty."""

import json
from pathlib import Path

import pytest

import dmoerm

FOLDER = Path(__file__).parent / "checkpoints"
ROUNDING = 0.02  # in bfloat16: processors with AMX add products in another order than those without


@pytest.mark.parametrize("name", ["frozen_bf16", "full_bf16"])
def test_scores_of_an_early_checkpoint_are_the_same(name):
    rm = dmoerm.DMoERM.from_pretrained(FOLDER / name)
    for row in json.loads((FOLDER / f"{name}.json").read_text()):
        scores = rm.score(row["prompt"], row["responses"])
        for score, before in zip(scores, row["scores"], strict=True):
            assert score.task == before["task"]
            assert score.reward == pytest.approx(before["reward"], abs=ROUNDING)
            assert score.temperature == pytest.approx(before["temperature"], abs=1e-6)
            assert score.uncertainty is None
            assert score.capabilities == pytest.approx(before["capabilities"], abs=ROUNDING)
            assert score.route == pytest.approx(before["route"], abs=ROUNDING)


def test_a_risk_needs_a_newer_checkpoint():
    rm = dmoerm.DMoERM.from_pretrained(FOLDER / "frozen_bf16")
    with pytest.raises(dmoerm.DataError, match=r"risk: .*gives no uncertainty.*got 0.5"):
        rm.score("How are you?", ["Fine.", "No."], risk=0.5)
