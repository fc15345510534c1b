"""Samples with gold, and the gold of the best of n of them by every method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import tiny_groups, tiny_tokenizer, write_groups
from transformers import AutoConfig, AutoModelForCausalLM

from dmoerm.config import changed
from dmoerm.data.splits import load_splits
from dmoerm.errors import BackboneError, DataError
from dmoerm.evaluation.results import Overlap
from dmoerm.experiments.method_suite import SuiteScorer, open_suite, run_settings
from dmoerm.schema import Group, prompt_key
from evidence import testbed
from evidence.best_of_n import default_ns, measure_best_of_n, score_samples
from evidence.documents import BestOfNResults
from evidence.samples import Samples, from_groups, from_policy, from_testbed, open_source, unseen_prompts

CONDITIONS = {"clean": {}, "noisy": {"flip_scores": 0.25, "flip_capabilities": 0.15}}
MEMBERS = 2

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def samples(frozen_config) -> list[Samples]:
    items = [
        item
        for item in unseen_prompts(2, load_splits(frozen_config).train)
        if item.task in ("chitchat", "objective_qa")
    ]
    return from_testbed(items, 100)


@pytest.fixture(scope="module")
def results(frozen_config, samples) -> BestOfNResults:
    by_seed = dict.fromkeys((0, 1), samples)
    return measure_best_of_n(frozen_config, by_seed, CONDITIONS, MEMBERS, "testbed", console=QUIET)


def test_prompts_are_new(frozen_config) -> None:
    train = {prompt_key(group.prompt) for group in load_splits(frozen_config).train}
    items = unseen_prompts(3, load_splits(frozen_config).train)
    assert len(items) == 3 * len(testbed.TASKS)
    assert train.isdisjoint(prompt_key(item.prompt) for item in items)
    with pytest.raises(DataError, match="that no training part has"):
        unseen_prompts(10_000, [])


def test_equal_samples_are_scored_once_and_counted_as_drawn() -> None:
    (samples,) = from_testbed(testbed.prompts("chitchat", 1), 300)
    drawn = testbed.sample_responses(testbed.prompts("chitchat", 1)[0], 300)
    assert [samples.query.responses[i] for i in samples.index] == drawn
    assert len(set(samples.query.responses)) == len(samples.query.responses)
    assert [text for chunk in samples.chunks() for text in chunk.responses] == list(samples.query.responses)


def test_graded_groups() -> None:
    groups = tiny_groups(2)
    assert [len(samples.index) for samples in from_groups(groups, 3)] == [3] * len(groups)
    with pytest.raises(DataError, match="no group has 4 graded responses"):
        from_groups(groups, 4)
    twice = Group(prompt="p", responses=("a", "b", "a"), scores=(1, 2, 1))
    with pytest.raises(DataError, match="sample 2 repeats an earlier one"):
        from_groups([twice], 3)
    (once,) = from_groups([twice.model_copy(update={"scores": (1, 2, 2)})], 2, once=True)
    assert (once.query.responses, once.gold.tolist()) == (("a", "b"), [-1.0, 1.0]), "1.5 and 2, standardized"
    for task in ("chitchat", "objective_qa"):
        gold = np.concatenate([s.gold for s in from_groups(tiny_groups(9), 3, once=True) if s.query.task == task])
        assert (gold.mean(), gold.std()) == pytest.approx((0, 1), abs=1e-9)
    with pytest.raises(DataError, match="no group has 3 graded responses"):
        from_groups([twice], 3, once=True)


def test_a_file_of_samples_is_compared_with_the_training_prompts(frozen_config, tmp_path) -> None:
    """Of both seeds: a prompt that either seed was trained on is left out, and counted once."""
    parts = [load_splits(changed(frozen_config, {"seed": seed})) for seed in (0, 1)]
    trained = {prompt_key(group.prompt): group for part in parts for group in part.train}
    new = [group.model_copy(update={"prompt": f"New: {group.prompt}"}) for group in tiny_groups(2)]
    twice = next(iter(trained.values())).model_copy(update={"id": "twice"})
    file = write_groups([*trained.values(), twice, *new], tmp_path / "samples.jsonl")
    source = open_source(file, frozen_config, (0, 1), 3, 0)
    assert source.overlap == Overlap(known=True, groups=len(trained) + 1, prompts=len(trained), included=False)
    for samples in source.samples.values():
        assert [row.query.prompt for row in samples] == [group.prompt for group in new]
    kept = open_source(file, frozen_config, (0, 1), 3, 0, include_trained=True)
    assert kept.overlap == Overlap(known=True, groups=len(trained) + 1, prompts=len(trained), included=True)
    assert [len(samples) for samples in kept.samples.values()] == 2 * [len(trained) + 1 + len(new)]
    results = measure_best_of_n(
        frozen_config,
        {0: source.samples[0]},
        {"clean": {}},
        MEMBERS,
        source.description,
        source.overlap,
        console=QUIET,
    )
    assert results.overlap == source.overlap
    assert results.prompts == {"chitchat": 2, "objective_qa": 2}


def test_curves_of_every_method(results: BestOfNResults) -> None:
    assert results.ns == (1, 2, 4, 8, 16, 32, 64, 100)
    assert results.prompts == {"chitchat": 2, "objective_qa": 2}
    for condition in results.conditions.values():
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
    assert BestOfNResults.model_validate_json(results.to_json()) == results


def test_chunks_score_as_one_query_does(frozen_config, samples, results) -> None:
    settings = run_settings(frozen_config, "clean", CONDITIONS["clean"], 0)
    suite = open_suite(settings, MEMBERS, QUIET)
    (scored,) = score_samples(suite, samples[:1], QUIET)
    gold, rewards = scored.gold, scored.rewards
    assert len(gold) == len(rewards["dmoerm"]) == 100
    query = samples[0].query
    for method in ("general", "gated", "ensemble_uwo", "ensemble_wco", "all_labels", "dmoerm"):
        alone = SuiteScorer(suite, method).score_all([query])[0]
        np.testing.assert_allclose(np.array(alone)[samples[0].index], rewards[method], rtol=1e-3, atol=1e-4)


def test_an_invalid_n_is_refused(frozen_config, samples) -> None:
    with pytest.raises(DataError, match="cannot be estimated from 100 samples"):
        measure_best_of_n(frozen_config, {0: samples}, {"clean": {}}, MEMBERS, ns=[1, 101], console=QUIET)


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
    drawn = from_policy(str(tmp_path / "policy"), items, 5, tokens=8)
    assert [len(samples.index) for samples in drawn] == [5, 5]
    for item, samples in zip(items, drawn, strict=True):
        golds = [testbed.gold_reward("chitchat", item.prompt, text) for text in samples.query.responses]
        assert samples.gold.tolist() == golds
        assert all(text == text.strip() != "" for text in samples.query.responses)
    again = from_policy(str(tmp_path / "policy"), items, 5, tokens=8)
    assert [samples.query for samples in again] == [samples.query for samples in drawn]
    with pytest.raises(BackboneError, match="cannot be loaded"):
        from_policy(str(tmp_path / "none"), items, 2)


def test_two_groups_on_one_prompt_are_one_prompt(frozen_config) -> None:
    groups = tiny_groups(3)
    twice = [group for group in groups if group.task == "chitchat"][:2]
    twice[1] = twice[1].model_copy(update={"prompt": twice[0].prompt, "id": "other"})
    samples = {0: from_groups(twice, 3)}
    results = measure_best_of_n(frozen_config, samples, {"clean": {}}, MEMBERS, console=QUIET)
    assert results.prompts == {"chitchat": 1}
    assert results.conditions["clean"].curves["chitchat"]["dmoerm"].falls_after is None
