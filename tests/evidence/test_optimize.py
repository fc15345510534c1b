"""Whole runs of a tiny policy against rewards by rule, and what length is worth to the initial policy's responses."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_policy import count_t, tiny_settings

from dmoerm.errors import ConfigError
from evidence.rl import draw_prompts, optimize
from evidence.rl.measuring import slope_within
from evidence.rl.optimize import _split


@pytest.fixture(scope="module", params=["grpo", "rloo", "ppo"])
def finished(request, policy, asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return optimize(policy, count_t, asked, tiny_settings(algorithm=request.param), folder, method="the")


@pytest.mark.slow
def test_the_reward_rises_and_the_policy_moves_away(finished):
    first, *_, last = finished.points
    assert [point.step for point in finished.points] == [0, 6, 12]
    assert last.proxy > first.proxy + 1
    assert first.kl == 0.0
    assert last.kl > 1
    assert 0 <= last.ended < first.ended < 1
    assert 1 <= last.length <= 12
    worth = first.gold_per_token * (last.length - first.length)  # to the initial policy
    assert (first.gold_same_length, last.gold_same_length) == pytest.approx((first.gold, last.gold - worth))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["rloo", "ppo"])
def test_a_penalty_holds_the_policy_back(algorithm, policy, asked, tmp_path):
    settings = tiny_settings(algorithm=algorithm, steps=8)
    free, held = (
        optimize(policy, count_t, asked, settings.model_copy(update={"beta": beta}), tmp_path / str(beta))
        for beta in (0.0, 2.0)
    )
    assert held.points[-1].kl < free.points[-1].kl / 2


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "beta"), [("rloo", 0.1), ("rloo", 0.0), ("ppo", 0.1)])
def test_a_killed_run_resumes_to_the_same_result(algorithm, beta, policy, asked, tmp_path):
    """Killed after the measurement of step 6 and before its checkpoint: it goes on from the one of step 4."""
    settings, calls = tiny_settings(algorithm=algorithm, beta=beta, steps=8, measure_every=3), 0
    whole = optimize(policy, count_t, asked, settings, tmp_path / "whole")

    def killing(queries):
        nonlocal calls
        calls += 1
        if calls == 11:  # scale, step 0's measurement, six steps, two measurements, one step more
            raise KeyboardInterrupt
        return count_t(queries)

    with pytest.raises(KeyboardInterrupt):
        optimize(policy, killing, asked, settings, tmp_path / "killed")
    assert (tmp_path / "killed" / "samples" / "00006.jsonl").exists()
    again = optimize(policy, count_t, asked, settings, tmp_path / "killed")
    assert [point.step for point in again.points] == [0, 3, 6, 8]
    assert again == whole
    assert optimize(policy, None, asked, settings, tmp_path / "killed") == whole  # read, not run


@pytest.mark.slow
def test_a_policy_that_says_nothing_is_measured(policy, asked, tmp_path):
    """A reward for few tokens makes empty responses; no reward model ever sees one."""

    def short(queries):
        assert all(text.strip() for query in queries for text in query.responses)
        return [[-float(len(text)) for text in query.responses] for query in queries]

    found = optimize(policy, short, asked, tiny_settings(max_new_tokens=1, steps=4), tmp_path)
    assert all(np.isfinite(point.proxy) for point in found.points)
    assert found.points[-1].length == 1


@pytest.mark.slow
def test_a_folder_of_another_run_is_refused(policy, asked, tmp_path):
    optimize(policy, count_t, asked, tiny_settings(steps=1), tmp_path)
    with pytest.raises(ConfigError, match=r"contains a run with beta 0\.0, not 0\.5"):
        optimize(policy, count_t, asked, tiny_settings(steps=1, beta=0.5), tmp_path)


def test_held_out_prompts_are_of_all_tasks_and_never_trained_on():
    prompts = draw_prompts(8)
    train, held_out = _split(prompts, 10)
    assert not set(train) & set(held_out)
    assert len({prompt.task for prompt in held_out}) == 5
    assert _split(prompts, 20)[1][:10] == held_out
    with pytest.raises(ConfigError, match="leave none for training"):
        _split(prompts, 40)


@pytest.mark.slow
def test_a_missing_trl_is_reported(policy, asked, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "evidence.rl.trainers", None)
    with pytest.raises(ConfigError, match=r"pip install --group evidence"):
        optimize(policy, count_t, asked, tiny_settings(), tmp_path)


def test_the_slope_of_gold_on_length_is_within_tasks() -> None:
    """A task of long responses with low gold does not turn the sign."""
    tasks, lengths = ["a"] * 3 + ["b"] * 3, [10, 20, 30, 60, 70, 80]
    gold = [0.5, 0.6, 0.7, 0.1, 0.2, 0.3]
    assert slope_within(tasks, lengths, gold) == pytest.approx(0.01)
    assert np.polyfit(lengths, gold, 1)[0] < 0
    assert slope_within(["a", "b"], [5, 7], [0.1, 0.9]) == 0
