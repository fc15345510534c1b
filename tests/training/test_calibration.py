"""Calibration: rewards of mean 0 and deviation 1, and a temperature that makes margins probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmoerm.chat.encoding import Encoded
from dmoerm.model.task_model import Calibration
from dmoerm.schema import Group, Pair
from dmoerm.training.batches import PreferenceExample
from dmoerm.training.calibration import calibrate


def examples(count: int, temperature: float, seed: int) -> tuple[dict[str, torch.Tensor], list[PreferenceExample]]:
    """Pairs of rewards, and labels that follow σ(margin / temperature)."""
    rng = np.random.default_rng(seed)
    rewards, made = {}, []
    for i in range(count):
        pair = rng.normal(3.0, 2.0, 2)
        first_wins = rng.random() < 1 / (1 + np.exp(-(pair[0] - pair[1]) / temperature))
        group = Group(prompt=f"{seed} {i}", responses=("a", "b"), scores=[1, 0])
        order = [Pair(0, 1) if first_wins else Pair(1, 0)]
        one = PreferenceExample(group, Encoded([seed, i], [[1], [2]]), None, {None: order})
        rewards[one.key] = torch.tensor(pair, dtype=torch.float32)
        made.append(one)
    return rewards, made


def calibrated(temperature: float) -> tuple[Calibration, torch.Tensor]:
    rewards, train = examples(200, temperature, 0)
    held_out, validation = examples(6000, temperature, 1)
    calibration = Calibration()
    calibrate(calibration, rewards | held_out, train, validation)
    return calibration, torch.cat(list((rewards | held_out).values()))


@pytest.mark.parametrize("temperature", [0.5, 2.0, 8.0])
def test_the_temperature_of_the_labels_is_found(temperature: float) -> None:
    calibration, _ = calibrated(temperature)
    # the temperature is for scaled rewards: times the scale, it is that of the raw ones
    assert float(calibration.temperature * calibration.scale) == pytest.approx(temperature, rel=0.15)


def test_rewards_get_mean_0_and_deviation_1() -> None:
    calibration, rewards = calibrated(1.0)
    after = calibration(rewards)
    assert float(after.mean()) == pytest.approx(0, abs=1e-4)
    assert float(after.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_without_held_out_pairs_the_training_pairs_serve() -> None:
    rewards, train = examples(3000, 2.0, 2)
    calibration = Calibration()
    calibrate(calibration, rewards, train, [])
    assert float(calibration.temperature * calibration.scale) == pytest.approx(2.0, rel=0.2)


def test_a_handful_of_groups_that_disagree_do_not_make_every_pair_even() -> None:
    rewards, train = examples(200, 1.0, 3)
    held_out, validation = examples(6, 1.0, 4)
    wrong = [e for e in validation if held_out[e.key][0] < held_out[e.key][1]]
    for e in wrong:
        e.pairs[None] = [Pair(0, 1)]
    calibration = Calibration()
    calibrate(calibration, rewards | held_out, train, wrong)
    assert wrong
    assert 1 < float(calibration.temperature) < 5
