from collections.abc import Sequence

import numpy as np
import pytest

from dmoerm.bootstrap import interval, resampled_sums
from dmoerm.evaluation.metrics import (
    PairCounts,
    calibration_result,
    capability_accuracy,
    compare,
    count_pairs,
    join,
    length_bias,
    overall_counts,
    pooled,
    reliability,
    resample,
    right_pairs,
    router_result,
)
from dmoerm.evaluation.scored_groups import ScoredGroup
from dmoerm.schema import Group, Pair


def scored(
    prompt: str,
    grades: Sequence[float],
    dmoerm: Sequence[float],
    general: Sequence[float] | None = None,
    task: str | None = "chat",
    route: dict[str, float] | None = None,
    capability: tuple[Sequence[float], Sequence[float]] | None = None,
    lengths: Sequence[int] | None = None,
) -> ScoredGroup:
    """A scored group. `capability`: people's grades on `logic`, and the expert's scores."""
    responses = [chr(97 + i) * (lengths[i] if lengths else 1) for i in range(len(grades))]
    graded = {"logic": tuple(capability[0])} if capability else {}
    route = route or {"chat": 0.9, "qa": 0.1}
    return ScoredGroup(
        group=Group(task=task, prompt=prompt, responses=tuple(responses), scores=tuple(grades), capabilities=graded),
        task=task or "chat",
        route=route,
        chosen=max(route, key=lambda name: route[name]) if max(route.values()) >= 0.5 else None,
        temperature=1.0,
        rewards={"general": np.array(general or dmoerm, float), "dmoerm": np.array(dmoerm, float)},
        capabilities={"logic": np.array(capability[1] if capability else [0.0] * len(grades), float)},
    )


def test_a_tie_of_the_model_counts_half() -> None:
    pairs = [Pair(0, 1), Pair(0, 2), Pair(1, 2)]
    assert right_pairs(pairs, np.array([3.0, 2.0, 1.0])) == 3
    assert right_pairs(pairs, np.array([1.0, 2.0, 3.0])) == 0
    assert right_pairs(pairs, np.array([1.0, 1.0, 0.0])) == 2.5


def test_ties_of_people_are_left_out_and_prompts_are_joined() -> None:
    groups = [
        scored("p", [2, 1, 1], [2, 1, 3]),  # pairs 0>1 (right), 0>2 (wrong); 1 and 2 are tied
        scored(" p ", [1, 0], [1, 0]),  # the same prompt to a reader
        scored("q", [1, 1], [1, 0]),  # nothing but a tie
        scored("r", [0, 1], [1, 0]),
    ]
    counts = overall_counts(groups)["chat"]
    assert counts.pairs.tolist() == [[3, 1]]
    assert counts.right["dmoerm"].tolist() == [[2, 0]]
    value = compare({"chat": counts})[0]["dmoerm"]["chat"]
    assert (value.value, value.pairs, value.prompts) == (0.5, 4, 2)


def test_nothing_to_count() -> None:
    assert count_pairs([("p", [], {"dmoerm": np.array([1.0, 2.0])})]) is None
    assert overall_counts([scored("q", [1, 1], [1, 0])]) == {}


def counts_of(pairs: Sequence[float], **right: Sequence[float]) -> PairCounts:
    """One seed's counts."""
    prompts = [str(i) for i in range(len(pairs))]
    return PairCounts(prompts, np.array([pairs], float), {name: np.array([row], float) for name, row in right.items()})


def random_counts(rng: np.random.Generator, prompts: int = 60, share: float = 0.7) -> PairCounts:
    pairs = rng.integers(1, 7, prompts)
    luck = rng.beta(5 * share, 5 * (1 - share), prompts)  # pairs on one prompt are alike
    return counts_of(pairs, **{method: rng.binomial(pairs, luck) for method in ("dmoerm", "general")})


def test_identical_methods_may_differ_on_prompts_that_were_not_seen() -> None:
    counts = random_counts(np.random.default_rng(1))
    same = PairCounts(counts.prompts, counts.pairs, dict.fromkeys(("dmoerm", "general"), counts.right["dmoerm"]))
    differences = compare({"a": same, "b": same})[1]["dmoerm - general"]
    for name, prompts in {"a": 60, "b": 60, "mean": 120}.items():
        unseen = 1.96**2 / (prompts + 1.96**2)
        assert (differences[name].low, differences[name].high) == pytest.approx((-unseen, unseen))
        assert differences[name].value == 0


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        estimate = compare({"chat": random_counts(rng)}, resamples=1000)[0]["dmoerm"]["chat"]
        assert estimate.low <= estimate.value <= estimate.high
        covered += estimate.low <= 0.7 <= estimate.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.slow
def test_an_interval_includes_the_spread_of_the_seeds() -> None:
    """Each of five runs has an accuracy of its own around 0.7; prompts alone do not tell how much these vary."""
    rng = np.random.default_rng(0)
    covered, narrow = 0, 0
    for _ in range(100):
        pairs = np.full((5, 400), 4.0)
        right = rng.binomial(4, np.clip(rng.normal(0.7, 0.04, size=(5, 1)), 0, 1), size=(5, 400)).astype(float)
        counts = PairCounts([str(i) for i in range(400)], pairs, {"dmoerm": right})
        estimate = compare({"chat": counts}, resamples=500)[0]["dmoerm"]["chat"]
        covered += estimate.low <= 0.7 <= estimate.high
        fixed = interval(np.mean(resampled_sums(right.T / 4, resamples=500) / right.shape[1], axis=1))
        narrow += fixed[0] <= 0.7 <= fixed[1]
    assert covered >= 85
    assert narrow <= 60


COVERAGE = {  # (seeds, share of the prompts that each holds out, spread) → the figure of docs/evidence.md
    (5, 0.3, 0): 1.0,
    (5, 0.3, 1): 0.99,
    (5, 0.3, 2): 0.98,
    (5, 0.3, 4): 0.96,
    (3, 0.3, 0): 1.0,
    (3, 0.3, 1): 1.0,
    (3, 0.3, 2): 1.0,
    (3, 0.3, 4): 0.97,
    (5, 1, 1): 0.98,
    (5, 1, 2): 0.97,
    (5, 1, 4): 0.94,
    (3, 1, 1): 0.99,
    (3, 1, 2): 0.98,
    (3, 1, 4): 0.98,
}


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "held_out", "spread"), COVERAGE)
def test_the_interval_covers_the_truth_over_seeds(seeds: int, held_out: float, spread: float) -> None:
    """The mean difference of two methods over three tasks is 0.03. It varies with the prompt, and with the seed by the
    same amount in all tasks, since a seed trains one model for them.

    Args:
        held_out: the share of the 360 prompts of a task that each seed holds out, at random; 1: all.
        spread: standard deviation between seeds, in units of the standard error over the prompts of one seed.
    """
    random, prompts, tasks = np.random.default_rng(seeds), 360, 3
    per_seed = int(prompts * held_out)
    error = np.sqrt((0.25**2 + 0.2**2) / per_seed / tasks)
    covered = []
    for trial in range(400):
        of_seeds = random.normal(0, spread * error, seeds)
        drawn = []
        for task in range(tasks):
            of_prompts = random.normal(0.03, 0.25, prompts)
            counts = []
            for of_seed in of_seeds:
                chosen = random.permutation(prompts)[:per_seed]
                differences = of_prompts[chosen] + of_seed + random.normal(0, 0.2, per_seed)
                right = {"one": 4 * (0.5 + differences)[None], "other": np.full((1, per_seed), 2.0)}
                counts.append(PairCounts([str(i) for i in chosen], np.full((1, per_seed), 4.0), right))
            joined = join(counts)
            resampled = resample(joined, [trial, task], 500)
            drawn.append(resampled["one"] - resampled["other"])
        low, high = interval(np.mean(drawn, axis=0), tasks * len(joined.prompts))
        covered.append(low <= 0.03 <= high)
    print(f"{seeds} seeds, {held_out:.0%} held out, spread {spread}: covered {np.mean(covered):.3f}")
    assert abs(np.mean(covered) - COVERAGE[seeds, held_out, spread]) < 0.04


def test_pairing_narrows_the_interval() -> None:
    estimate, difference = compare({"chat": random_counts(np.random.default_rng(2), prompts=300)})
    spread = estimate["dmoerm"]["chat"].high - estimate["dmoerm"]["chat"].low
    paired = difference["dmoerm - general"]["chat"]
    assert paired.high - paired.low < spread


def test_seeds_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = random_counts(np.random.default_rng(3))
    first, again, other = (compare({"chat": counts}, seed=seed)[0]["dmoerm"]["chat"] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    beside = compare({"chat": counts, "qa": random_counts(np.random.default_rng(4))})[0]["dmoerm"]["chat"]
    assert beside == first, "another task must not change a task's interval"
    monkeypatch.setattr("dmoerm.bootstrap._BLOCK", 7 * len(counts.prompts))
    assert len(resample(counts, 0, 1000)["dmoerm"]) == 1000


def test_means_over_tasks() -> None:
    counts = {
        "a": counts_of([10, 10], dmoerm=[10, 10]),
        "b": counts_of([1], dmoerm=[0]),
        "c": counts_of([2], dmoerm=[1]),
    }
    found = compare(counts)[0]["dmoerm"]
    assert found["mean"].value == pytest.approx(0.5), "a plain mean over tasks, however many pairs each has"
    assert (found["mean"].pairs, found["mean"].prompts) == (23, 4)
    assert "mean_human" not in found
    assert compare(counts, derived=["c"])[0]["dmoerm"]["mean_human"].value == pytest.approx(0.5)
    assert compare(counts, derived=["b", "c"])[0]["dmoerm"]["mean_human"].value == 1
    assert "mean_human" not in compare(counts, derived=["a", "b", "c"])[0]["dmoerm"]


def test_a_method_that_a_task_lacks_has_no_mean() -> None:
    counts = {"a": counts_of([2], dmoerm=[2], judge=[1]), "b": counts_of([2], dmoerm=[1])}
    accuracy, paired = compare(counts)
    assert set(accuracy["dmoerm"]) == {"a", "b", "mean"}
    assert set(accuracy["judge"]) == set(paired["dmoerm - judge"]) == {"a"}


def test_seeds_are_averaged_and_a_prompt_of_several_is_drawn_for_all() -> None:
    first = PairCounts(["p", "q"], np.array([[3.0, 1.0]]), {"dmoerm": np.array([[3.0, 0.0]])})
    second = PairCounts(["q", "r"], np.array([[1.0, 1.0]]), {"dmoerm": np.array([[0.0, 0.0]])})
    both = join([first, second])
    assert both.pairs.tolist() == [[3, 1, 0], [0, 1, 1]]
    found = compare({"chat": both})[0]["dmoerm"]["chat"]
    assert found.value == pytest.approx((3 / 4 + 0) / 2)
    assert (found.pairs, found.prompts) == (6, 3)
    counts = random_counts(np.random.default_rng(5))
    one, twice = compare({"chat": counts})[0]["dmoerm"], compare({"chat": join([counts, counts])})[0]["dmoerm"]
    assert (twice["chat"].low, twice["chat"].high) == pytest.approx((one["chat"].low, one["chat"].high)), (
        "the same prompts again are no further evidence"
    )


def test_capability_accuracy() -> None:
    groups = [
        scored("p", [1, 0], [1, 0], capability=([1, 0], [1, 0])),
        scored("q", [1, 0], [1, 0], capability=([1, 0], [0, 1])),
        scored("r", [1, 0], [1, 0]),
    ]
    found = capability_accuracy(groups)
    assert found["chat"]["logic"].value == 0.5
    assert found["chat"]["logic"].pairs == 2
    assert capability_accuracy(groups[2:]) == {}


def test_router() -> None:
    unsure = {"chat": 0.3, "qa": 0.4, "other": 0.3}
    groups = [
        scored("p", [1, 0], [1, 0]),
        scored("p", [0, 1], [1, 0]),  # the same prompt counts once
        scored("q", [1, 0], [1, 0], task="qa"),
        scored("r", [1, 0], [1, 0], task="qa", route=unsure),
        scored("s", [1, 0], [1, 0], task=None),
    ]
    found = router_result(groups)
    assert found.prompts == 3
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.fallback == pytest.approx(1 / 3)
    assert found.confusion == {"chat": {"chat": 1}, "qa": {"chat": 1, "qa": 1}}
    assert router_result(groups[-1:]).accuracy is None


def test_calibration() -> None:
    margin = float(np.log(3))  # a win probability of 0.75
    right, wrong = [scored("p", [1, 0], [margin, 0])] * 3, [scored("q", [0, 1], [margin, 0])]
    perfect = calibration_result(right + wrong)
    assert perfect.ece == pytest.approx(0, abs=1e-9)
    assert sum(b.pairs for b in perfect.bins) == perfect.pairs == 4
    assert calibration_result(wrong).ece == pytest.approx(0.75)
    sure = calibration_result([scored("p", [1, 0], [1e6, 0])])
    assert sure.bins[-1].pairs == 1
    assert sure.ece == pytest.approx(0, abs=1e-9)
    assert calibration_result([scored("p", [1, 0], [2, 2])]).ece == pytest.approx(0)


def test_the_bins_divide_the_confidence_evenly() -> None:
    found = reliability([0.5, 0.56, 0.44, 0.97, 1.0], bins=5)
    assert [(round(b.low, 6), round(b.high, 6)) for b in found.bins] == [
        (0.5, 0.6),
        (0.6, 0.7),
        (0.7, 0.8),
        (0.8, 0.9),
        (0.9, 1.0),
    ]
    assert [b.pairs for b in found.bins] == [3, 0, 0, 0, 2]
    assert found.bins[0].confidence == pytest.approx((0.5 + 0.56 + 0.56) / 3)
    assert found.bins[0].accuracy == pytest.approx((0.5 + 1 + 0) / 3)
    assert found.bins[4].accuracy == 1
    assert found.bins[1].confidence is None


def test_pooled_calibration_is_that_of_all_pairs_together() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(200).tolist(), rng.random(90).tolist()
    joined, whole = pooled([reliability(first), reliability(second)]), reliability([*first, *second])
    assert joined.pairs == whole.pairs == 290
    assert joined.ece == pytest.approx(whole.ece)
    for one, other in zip(joined.bins, whole.bins, strict=True):
        assert (one.low, one.pairs) == (other.low, other.pairs)
        assert one.confidence == pytest.approx(other.confidence)
        assert one.accuracy == pytest.approx(other.accuracy)
    with pytest.raises(ValueError, match="inhomogeneous"):
        pooled([reliability(first), reliability(second, bins=5)])


def test_length_bias() -> None:
    found = length_bias(
        [
            scored("p", [1, 2, 3], [3, 2, 1], lengths=[1, 2, 4]),
            scored("q", [1, 2, 3], [1, 1, 1], lengths=[1, 2, 3]),  # the model's scores do not differ
            scored("r", [1, 2, 3], [3, 2, 1], lengths=[2, 2, 2]),  # nor do the lengths
        ]
    )
    assert found["dmoerm"].groups == 1
    assert found["dmoerm"].spearman == pytest.approx(-1)
    assert -1 < found["dmoerm"].pearson < -0.9
    assert found["human"].groups == 2
    assert found["human"].spearman == pytest.approx(1)


@pytest.mark.parametrize(("prompts", "low"), [(1, 0.207), (3, 0.438), (100, 0.963)])
def test_an_interval_says_how_few_the_prompts_are_when_all_are_right(prompts: int, low: float) -> None:
    """The lower ends are Wilson's: scipy.stats.binomtest(n, n).proportion_ci(method="wilson")."""
    groups = [scored(f"p{i}", [2, 1], dmoerm=[1, 0], general=[2, 0]) for i in range(prompts)]
    estimates, differences = compare(overall_counts(groups))
    for name in ("chat", "mean"):
        estimate, difference = estimates["dmoerm"][name], differences["dmoerm - general"][name]
        assert (estimate.value, estimate.low, estimate.high) == (1.0, pytest.approx(low, abs=1e-3), 1.0)
        assert (difference.value, difference.low, difference.high) == pytest.approx((0, low - 1, 1 - low), abs=1e-3)
    (by_capability,) = capability_accuracy(
        [scored(f"p{i}", [2, 1], [1, 0], capability=([1, 0], [0, 1])) for i in range(prompts)]
    )["chat"].values()
    assert (by_capability.low, by_capability.high) == (0.0, pytest.approx(1 - low, abs=1e-3))
