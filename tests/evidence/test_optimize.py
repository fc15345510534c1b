"""Whole runs of a tiny policy against rewards by rule."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_policy import count_t, tiny_settings

from dmoerm.errors import ConfigError, TrainingError
from evidence.documents import PolicyRun
from evidence.policies import summarize
from evidence.rl import draw_prompts, gold_of, optimize, read_trajectory
from evidence.rl.optimize import RLConfig, _order, _split

IDENTITY = {"condition": "clean", "method": "general", "beta": 0.0, "seed": 0}


@pytest.fixture(
    scope="module", params=["grpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rloo", "ppo"))]
)
def finished(request, policy, asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return optimize(policy, count_t, gold_of, asked, tiny_settings(algorithm=request.param), folder, method="the")


def test_the_reward_rises_and_the_policy_moves_away(finished):
    first, *_, last = finished.points
    assert [point.step for point in finished.points] == [0, 6, 12]
    assert last.proxy > first.proxy + finished.scale.std
    assert first.kl == first.kl_k3 == 0.0
    assert last.kl > 4 * last.kl_error > 0
    assert last.kl_k3 > 1
    assert 0 <= last.ended < first.ended < 1
    assert all(point.gold_per_token is not None for point in finished.points)
    assert 1 <= last.length <= 12


def test_a_trajectory_can_be_summarized_and_read_back(finished, tmp_path):
    from evidence.rl import write_trajectory

    write_trajectory(tmp_path / "t.json", finished)
    assert read_trajectory(tmp_path / "t.json") == finished
    (found,) = summarize([PolicyRun.model_validate({**IDENTITY, "points": [p.model_dump() for p in finished.points]})])
    assert found.start == finished.points[0].gold
    assert found.fall == pytest.approx(max(p.gold for p in finished.points) - finished.points[-1].gold)


@pytest.mark.parametrize("algorithm", ["rloo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_a_penalty_holds_the_policy_back(algorithm, policy, asked, tmp_path):
    settings = tiny_settings(algorithm=algorithm, steps=8)
    free, held = (
        optimize(policy, count_t, gold_of, asked, settings.model_copy(update={"beta": beta}), tmp_path / str(beta))
        for beta in (0.0, 2.0)
    )
    assert held.points[-1].kl < free.points[-1].kl / 2


@pytest.mark.parametrize(
    ("algorithm", "beta"),
    [
        ("rloo", 0.1),
        pytest.param("rloo", 0.0, marks=pytest.mark.slow),
        pytest.param("ppo", 0.1, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_to_the_same_result(algorithm, beta, policy, asked, tmp_path):
    """Killed after the measurement of step 6 and before its checkpoint: it goes on from the one of step 4."""
    settings, calls = tiny_settings(algorithm=algorithm, beta=beta, steps=8, measure_every=3), 0
    whole = optimize(policy, count_t, gold_of, asked, settings, tmp_path / "whole")

    def killing(queries):
        nonlocal calls
        calls += 1
        if calls == 11:  # scale, step 0's measurement, six steps, two measurements, one step more
            raise KeyboardInterrupt
        return count_t(queries)

    with pytest.raises(KeyboardInterrupt):
        optimize(policy, killing, gold_of, asked, settings, tmp_path / "killed")
    assert (tmp_path / "killed" / "samples" / "00006.jsonl").exists()
    again = optimize(policy, count_t, gold_of, asked, settings, tmp_path / "killed")
    assert [point.step for point in again.points] == [0, 3, 6, 8]
    assert again == whole
    assert optimize(policy, None, None, asked, settings, tmp_path / "killed") == whole  # read, not run


def test_a_reward_that_is_no_number_ends_the_run(policy, asked, tmp_path):
    calls = 0

    def failing(queries):
        nonlocal calls
        calls += 1
        return [[float("nan")] * len(q.responses) for q in queries] if calls == 4 else count_t(queries)

    with pytest.raises(TrainingError, match="step 2: the reward of response 0"):
        optimize(policy, failing, gold_of, asked, tiny_settings(steps=4), tmp_path)


def test_a_policy_that_says_nothing_is_measured(policy, asked, tmp_path):
    """A reward for few tokens makes empty responses; no reward model ever sees one."""

    def short(queries):
        assert all(text.strip() for query in queries for text in query.responses)
        return [[-float(len(text)) for text in query.responses] for query in queries]

    found = optimize(policy, short, gold_of, asked, tiny_settings(max_new_tokens=1, steps=4), tmp_path)
    assert all(np.isfinite(point.proxy) for point in found.points)
    assert found.points[-1].length == 1


def test_a_folder_of_another_run_is_refused(policy, asked, tmp_path):
    optimize(policy, count_t, gold_of, asked, tiny_settings(steps=1), tmp_path)
    with pytest.raises(ConfigError, match=r"contains a run with beta 0\.0, not 0\.5"):
        optimize(policy, count_t, gold_of, asked, tiny_settings(steps=1, beta=0.5), tmp_path)


def test_a_folder_of_another_version_is_continued_or_refused(policy, asked, tmp_path):
    """A setting that it did not have counts as its default; one that is gone is named."""
    settings = tiny_settings(steps=1)
    optimize(policy, count_t, gold_of, asked, settings, tmp_path)
    file = tmp_path / "settings.json"
    stored = json.loads(file.read_text())
    name = next(n for n, value in RLConfig().model_dump(mode="json").items() if stored["settings"][n] == value)
    del stored["settings"][name]
    file.write_text(json.dumps(stored))
    optimize(policy, count_t, gold_of, asked, settings, tmp_path)
    file.write_text(json.dumps(stored | {"settings": {**stored["settings"], "clip": 0.2}}))
    with pytest.raises(ConfigError, match=r"contains a run with clip 0\.2, not None"):
        optimize(policy, count_t, gold_of, asked, settings, tmp_path)


def test_held_out_prompts_are_of_all_tasks_and_never_trained_on():
    prompts = draw_prompts(8)
    train, held_out = _split(prompts, 10)
    assert not set(train) & set(held_out)
    assert len({prompt.task for prompt in held_out}) == 5
    assert _split(prompts, 20)[1][:10] == held_out
    with pytest.raises(ConfigError, match="leave none for training"):
        _split(prompts, 40)


def test_every_step_has_its_prompts():
    settings = tiny_settings(steps=7, prompts_per_step=3)
    order = _order(5, settings)
    assert len(order) == 21
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert order != _order(5, tiny_settings(steps=7, prompts_per_step=3, seed=1))
    assert order[:15] == _order(5, tiny_settings(steps=5, prompts_per_step=3))  # a longer run begins as a shorter one


def test_a_missing_trl_is_reported(policy, asked, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trl", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[rl\]'"):
        optimize(policy, count_t, gold_of, asked, tiny_settings(), tmp_path)
