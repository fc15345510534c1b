"""Samples with gold, and what every method's best of n of them is worth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import make_tiny_config, tiny_groups, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from dmoerm import testbed
from dmoerm.data.splits import load_splits
from dmoerm.errors import BackboneError, DataError
from dmoerm.evaluation.experiment_results import BestOfNResults
from dmoerm.experiments.best_of_n import default_ns, measure_best_of_n, score_samples
from dmoerm.experiments.method_suite import SuiteScorer, open_suite
from dmoerm.experiments.samples import Samples, from_groups, from_policy, from_testbed, unseen_prompts
from dmoerm.schema import Group, prompt_key

CONDITIONS = {"clean": (0.0, 0.0), "noisy": (0.25, 0.15)}


@pytest.fixture(scope="module")
def config(tiny_backbone, tmp_path_factory):
    frozen = {
        "base": "frozen",
        "phase2": {"lora": {"rank": 0}},
        "phase1": {"phase1_fraction": 0},
        "phase3": {"inputs": "scores"},
    }
    return make_tiny_config(tiny_backbone, tmp_path_factory.mktemp("bon"), **frozen)


@pytest.fixture(scope="module")
def samples(config) -> list[Samples]:
    items = [item for item in unseen_prompts(2, load_splits(config).train) if item.task in ("chitchat", "objective_qa")]
    return from_testbed(items, 100)


@pytest.fixture(scope="module")
def found(config, samples) -> BestOfNResults:
    given = dict.fromkeys((0, 1), samples)
    return measure_best_of_n(config, given, CONDITIONS, 3, "testbed", console=Console(quiet=True))


def test_prompts_are_new(config) -> None:
    train = {prompt_key(group.prompt) for group in load_splits(config).train}
    items = unseen_prompts(3, load_splits(config).train)
    assert len(items) == 3 * len(testbed.TASKS)
    assert train.isdisjoint(prompt_key(item.prompt) for item in items)
    with pytest.raises(DataError, match="that no training part has"):
        unseen_prompts(10_000, [])


def test_equal_samples_are_scored_once_and_counted_as_drawn() -> None:
    (one,) = from_testbed(testbed.prompts("chitchat", 1), 300)
    drawn = testbed.sample_responses(testbed.prompts("chitchat", 1)[0], 300)
    assert [one.query.responses[i] for i in one.index] == drawn
    assert len(set(one.query.responses)) == len(one.query.responses)
    assert [text for chunk in one.chunks() for text in chunk.responses] == list(one.query.responses)


def test_graded_groups() -> None:
    groups = tiny_groups(2)
    assert [len(one.index) for one in from_groups(groups, 3)] == [3] * len(groups)
    with pytest.raises(DataError, match="no group has 4 graded responses"):
        from_groups(groups, 4)
    twice = Group(prompt="p", responses=("a", "b", "a"), scores=(1, 2, 1))
    with pytest.raises(DataError, match="sample 2 repeats an earlier one"):
        from_groups([twice], 3)
    (once,) = from_groups([twice.model_copy(update={"scores": (1, 2, 2)})], 2, once=True)
    assert (once.query.responses, once.gold.tolist()) == (("a", "b"), [-1.0, 1.0]), "1.5 and 2, standardised"
    for task in ("chitchat", "objective_qa"):
        gold = np.concatenate([s.gold for s in from_groups(tiny_groups(9), 3, once=True) if s.query.task == task])
        assert (gold.mean(), gold.std()) == pytest.approx((0, 1), abs=1e-9)
    with pytest.raises(DataError, match="no group has 3 graded responses"):
        from_groups([twice], 3, once=True)


def test_curves_of_every_method(found: BestOfNResults) -> None:
    assert found.ns == (1, 2, 4, 8, 16, 32, 64, 100)
    assert found.prompts == {"chitchat": 2, "objective_qa": 2}
    for condition in found.conditions.values():
        assert set(condition.curves) == {"chitchat", "objective_qa", "all"}
        for curves in condition.curves.values():
            assert {"general", "dmoerm", "ensemble_wco", "gated"} <= set(curves)
            for curve in curves.values():
                assert curve.gold[0] == pytest.approx(curves["general"].gold[0]), "n = 1 does not choose"
                assert curve.proxy[0] == pytest.approx(0, abs=1e-6)
                assert list(curve.proxy) == sorted(curve.proxy)
        end = condition.at_the_end["all"]["dmoerm - general"]
        curves = condition.curves["all"]
        assert end.value == pytest.approx(curves["dmoerm"].gold[-1] - curves["general"].gold[-1])
        assert end.low <= end.value <= end.high
    assert BestOfNResults.model_validate_json(found.to_json()) == found


def test_chunks_score_as_one_query_does(config, samples, found) -> None:
    settings = config.model_copy(update={"output": f"{config.output}/clean/seed0/dmoerm"})
    suite = open_suite(settings, 3, Console(quiet=True))
    (scored,) = score_samples(suite, samples[:1], Console(quiet=True))
    gold, rewards = scored.gold, scored.rewards
    assert len(gold) == len(rewards["dmoerm"]) == 100
    query = samples[0].query
    for method in ("general", "gated", "ensemble_uwo", "ensemble_wco", "all_labels", "dmoerm"):
        alone = SuiteScorer(suite, method).score_all([query])[0]
        np.testing.assert_allclose(np.array(alone)[samples[0].index], rewards[method], rtol=1e-3, atol=1e-4)


def test_wrong_n_is_said(config, samples) -> None:
    with pytest.raises(DataError, match="cannot be estimated from 100 samples"):
        measure_best_of_n(config, {0: samples}, {"clean": (0, 0)}, 2, ns=[1, 101], console=Console(quiet=True))


def test_default_ns() -> None:
    assert default_ns(8) == [1, 2, 4, 8]
    assert default_ns(12_500)[-2:] == [8192, 12_500]


def test_a_policy_answers_and_is_judged_by_gold(tiny_backbone, tmp_path) -> None:
    config = AutoConfig.from_pretrained(tiny_backbone)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "policy")
    tiny_tokenizer().save_pretrained(tmp_path / "policy")
    items = testbed.prompts("chitchat", 2)
    found = from_policy(str(tmp_path / "policy"), items, 5, tokens=8)
    assert [len(one.index) for one in found] == [5, 5]
    for item, one in zip(items, found, strict=True):
        golds = [testbed.gold_reward("chitchat", item.prompt, text) for text in one.query.responses]
        assert one.gold.tolist() == golds
        assert all(text == text.strip() != "" for text in one.query.responses)
    again = from_policy(str(tmp_path / "policy"), items, 5, tokens=8)
    assert [one.query for one in again] == [one.query for one in found]
    with pytest.raises(BackboneError, match="cannot be loaded"):
        from_policy(str(tmp_path / "none"), items, 2)


def test_two_groups_on_one_prompt_are_one_prompt(config) -> None:
    groups = tiny_groups(3)
    twice = [group for group in groups if group.task == "chitchat"][:2]
    twice[1] = twice[1].model_copy(update={"prompt": twice[0].prompt, "id": "other"})
    given = from_groups(twice, 3)
    found = measure_best_of_n(config, {0: given}, {"clean": (0, 0)}, 2, console=Console(quiet=True))
    assert found.prompts == {"chitchat": 1}
    assert found.conditions["clean"].curves["chitchat"]["dmoerm"].falls_after is None
