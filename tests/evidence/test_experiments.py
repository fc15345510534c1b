"""Comparisons under several conditions, and best-of-n by every method."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console
from tiny import tiny_groups

from dmoerm.config import Config
from dmoerm.data.splits import load_splits
from dmoerm.errors import ConfigError, DataError
from dmoerm.evaluation.comparison import open_suite
from dmoerm.evaluation.methods import choose_methods, registered
from dmoerm.schema import Group, prompt_key
from evidence import testbed
from evidence.bon import (
    BestOfNResults,
    Samples,
    from_groups,
    from_testbed,
    measure_best_of_n,
    score_samples,
    unseen_prompts,
)
from evidence.compare import Experiment, compare_conditions, conditions_of, main
from evidence.conditions import condition_run
from evidence.methods import ablations, ensembles

pytestmark = pytest.mark.slow  # whole runs; tests/evaluation/test_comparison.py has a small one

CONDITIONS = {"clean": {}, "noisy": {"flip_scores": 0.25, "flip_capabilities": 0.15}}
SOME = ("no_outer", "shuffled", "human_grades")
QUIET = Console(quiet=True)


@pytest.fixture(autouse=True, scope="module")
def two_members():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensembles, "SIZE", 2)
        yield


def default_names() -> list[str]:
    return [name for name, method in registered().items() if method.default]


@pytest.fixture(scope="module")
def experiment(frozen_config: Config) -> Experiment:
    methods = choose_methods([*default_names(), *SOME])
    return compare_conditions(frozen_config, (0,), CONDITIONS, methods, console=QUIET)


def test_every_method_is_measured_under_every_condition(experiment: Experiment) -> None:
    assert {"gated", "warm", "laplace", "all_labels_general", "ensemble_wco", "bagged_uwo"} <= set(default_names())
    assert not {*ablations.NAMES, "human_grades"} & set(default_names())
    for condition in experiment.conditions.values():
        assert set(condition.accuracy) == {*default_names(), *SOME} - {"umm_rm"}, "umm_rm trains a branch"
    assert {name: c.settings for name, c in experiment.conditions.items()} == CONDITIONS
    assert Experiment.model_validate_json(experiment.to_json()) == experiment


def test_noise_and_ablations_change_the_rewards(experiment: Experiment) -> None:
    clean, noisy = experiment.conditions.values()
    assert clean.length_bias["human"] == noisy.length_bias["human"], "noise leaves the test part unchanged"
    for method in ("per_task", "bagged_mean", "gated", "dmoerm"):
        assert clean.length_bias[method] != noisy.length_bias[method], method
    assert clean.length_bias["no_outer"] != clean.length_bias["dmoerm"]


def test_conditions_are_parsed() -> None:
    noisy = {"flip_scores": 0.25, "flip_capabilities": 0.15}
    assert conditions_of([]) == {"clean": {"flip_scores": 0.0, "flip_capabilities": 0.0}, "noisy": noisy}
    assert conditions_of(["a=0.1,0"], ["few=overall_fraction=0.5", "few=phase0.l2=1"]) == {
        "a": {"flip_scores": 0.1, "flip_capabilities": 0.0},
        "few": {"overall_fraction": 0.5, "phase0.l2": 1},
    }
    for wrong in (lambda: conditions_of(["clean"]), lambda: conditions_of([], ["few"])):
        with pytest.raises(ConfigError, match="write it as NAME="):
            wrong()


def test_unknown_methods_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="unknown method 'no_head'"):
        main(["testbed", "--ablation", "no_head"])


# --- best of n -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples(frozen_config: Config) -> list[Samples]:
    items = unseen_prompts(2, load_splits(frozen_config).train)
    return from_testbed([item for item in items if item.task in ("chitchat", "objective_qa")], 100)


@pytest.fixture(scope="module")
def results(frozen_config: Config, samples: list[Samples], experiment: Experiment) -> BestOfNResults:
    methods = choose_methods(["general", "ensemble_wco", "gated"])
    return measure_best_of_n(frozen_config, {0: samples}, CONDITIONS, methods, console=QUIET)


def test_prompts_are_new(frozen_config: Config) -> None:
    train = {prompt_key(group.prompt) for group in load_splits(frozen_config).train}
    items = unseen_prompts(3, load_splits(frozen_config).train)
    assert len(items) == 3 * len(testbed.TASKS)
    assert train.isdisjoint(prompt_key(item.prompt) for item in items)
    with pytest.raises(DataError, match="that no training part has"):
        unseen_prompts(10_000, [])
    with pytest.raises(DataError, match="cannot be estimated from 1 samples"):
        measure_best_of_n(frozen_config, {0: from_testbed(items[:1], 1)}, {"clean": {}}, [], ns=[1, 2])


def test_equal_samples_are_scored_once_and_counted_as_drawn() -> None:
    (samples,) = from_testbed(testbed.prompts("chitchat", 1), 300)
    drawn = testbed.sample_responses(testbed.prompts("chitchat", 1)[0], 300)
    assert [samples.query.responses[i] for i in samples.index] == drawn
    assert len(set(samples.query.responses)) == len(samples.query.responses)
    assert [text for chunk in samples.chunks() for text in chunk.responses] == list(samples.query.responses)


def test_graded_groups() -> None:
    twice = Group(prompt="p", responses=("a", "b", "a"), scores=(1, 2, 2))
    (once,) = from_groups([twice], 2)
    assert (once.query.responses, once.gold.tolist()) == (("a", "b"), [-1.0, 1.0]), "1.5 and 2, standardized"
    for task in ("chitchat", "objective_qa"):
        gold = np.concatenate([s.gold for s in from_groups(tiny_groups(9), 3) if s.query.task == task])
        assert (gold.mean(), gold.std()) == pytest.approx((0, 1), abs=1e-9)
    with pytest.raises(DataError, match="no group has 3 graded responses"):
        from_groups([twice], 3)


def test_curves_of_every_method(results: BestOfNResults) -> None:
    assert results.ns == (1, 2, 4, 8, 16, 32, 64, 100)
    assert results.prompts == {"chitchat": 2, "objective_qa": 2}
    for condition in results.conditions.values():
        assert set(condition.curves) == {"chitchat", "objective_qa", "all"}
        for curves in condition.curves.values():
            assert set(curves) == {"general", "ensemble_wco", "gated", "dmoerm"}
            for curve in curves.values():
                assert curve.gold[0] == pytest.approx(curves["general"].gold[0]), "n = 1 does not choose"
                assert list(curve.proxy) == sorted(curve.proxy)
        end, curves = condition.at_the_end["all"]["dmoerm - general"], condition.curves["all"]
        assert end.value == pytest.approx(curves["dmoerm"].gold[-1] - curves["general"].gold[-1])
        assert end.low <= end.value <= end.high
    assert BestOfNResults.model_validate_json(results.to_json()) == results


def test_chunks_score_as_one_query_does(frozen_config: Config, samples: list[Samples], experiment: Experiment) -> None:
    run = condition_run(frozen_config, "clean", {}, 0)
    suite = open_suite(run, choose_methods(["general", "ensemble_uwo", "gated"]), QUIET)
    (scored,) = score_samples(suite, samples[:1])
    (whole,) = suite.score([samples[0].query], keep=False)
    for method, rewards in scored.rewards.items():
        np.testing.assert_allclose(whole.rewards[method][samples[0].index], rewards, rtol=1e-3, atol=1e-4)
