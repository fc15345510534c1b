"""Contributions sum to the reward on every path, and are what the aggregator makes of each score."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import HEADS, assert_same, make_exact_config, make_model, make_tiny_config
from torch import Tensor

from dmoerm.config import AggregatorConfig
from dmoerm.model import DMoERM, heads
from dmoerm.model.heads import Aggregator, game
from dmoerm.model.router import Routing
from dmoerm.scores import Score, unbound_reward

CPU = torch.device("cpu")
SEEDS = st.integers(0, 10_000)
EMBEDDINGS = {"phase3": {"inputs": "embeddings"}}


def by_permutations(players: int, value: Callable[[frozenset[int]], Tensor]) -> Tensor:
    """Return the Shapley values (…, m) by their definition: the mean gain over all orders in which players arrive."""
    totals: list[Any] = [0.0] * players
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        for i, player in enumerate(order):
            totals[player] = totals[player] + value(frozenset(order[: i + 1])) - value(frozenset(order[:i]))
    return torch.stack(totals, -1) / len(orders)


# --- Shapley values ------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), SEEDS)
def test_the_weights_give_the_shapley_values(players: int, seed: int) -> None:
    values = torch.randn(2**players, generator=torch.Generator().manual_seed(seed))
    members, weights = game(players, CPU)
    assert sorted(map(tuple, members.tolist())) == sorted(itertools.product((0.0, 1.0), repeat=players))
    number = {frozenset(row.nonzero()[:, 0].tolist()): i for i, row in enumerate(members)}
    expected = by_permutations(players, lambda some: values[number[some]])
    torch.testing.assert_close(values @ weights, expected, atol=1e-6, rtol=1e-5)


def mlp(embeddings: int, seed: int) -> tuple[Aggregator, Tensor]:
    """Return the paper's aggregator, and vectors of seven responses: embeddings of width 3, and unread scores."""
    generator = torch.Generator().manual_seed(seed)
    made = Aggregator(embeddings, 3, embeddings, AggregatorConfig(inputs="embeddings", hidden=4)).eval()
    for name, tensor in made.state_dict().items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator).abs_() + 0.5 if "scale" in name else tensor)
        if "mean" in name or name.endswith("weight"):
            tensor.normal_(generator=generator)
    return made, torch.randn(7, 3 * embeddings + embeddings + 2, generator=generator)


@settings(max_examples=25)
@given(st.integers(1, 4), SEEDS)
def test_an_embedding_that_is_left_out_is_the_training_mean(embeddings: int, seed: int) -> None:
    made, vectors = mlp(embeddings, seed)
    mean = made.mlp.normalizer.mean

    @torch.no_grad()
    def value(some: frozenset[int]) -> Tensor:
        changed = vectors.clone()
        for i in set(range(embeddings)) - some:
            changed[:, 3 * i : 3 * i + 3] = mean[3 * i : 3 * i + 3]
        return made(changed)

    by_score, found = made.contributions(vectors)
    assert not by_score.any()
    torch.testing.assert_close(found, by_permutations(embeddings, value), atol=1e-5, rtol=1e-4)


def test_an_unread_embedding_has_0_and_equal_ones_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    made, vectors = mlp(4, 3)
    with torch.no_grad():
        made.mlp.fc1.weight[:, :3] = 0
        for part in (made.mlp.fc1.weight, made.mlp.normalizer.mean, made.mlp.normalizer.scale, vectors):
            part[..., 6:9] = part[..., 3:6]
    _, found = made.contributions(vectors)
    torch.testing.assert_close(found[:, 0], torch.zeros(7), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, 1], found[:, 2], atol=1e-5, rtol=1e-4)
    assert (found[:, 1] - found[:, 3]).abs().min() > 1e-3
    monkeypatch.setattr(heads, "_GAME_ELEMENTS", 1)  # a response at a time
    torch.testing.assert_close(made.contributions(vectors)[1], found)


# --- scores --------------------------------------------------------------------------------------------------------

KINDS: dict[str, Any] = {
    "linear": lambda *where: make_exact_config(*where),
    "both": lambda *where: make_tiny_config(*where),
    "paper": lambda *where: make_tiny_config(*where, **EMBEDDINGS),
    "paper, shared embedding": lambda *where: make_tiny_config(*where, **HEADS, **EMBEDDINGS),
}
ROUTES: dict[str, dict[str, Any]] = {
    "routed": {},
    "general": {"threshold": 1.0},
    "mixed": {"routing": Routing(temperature=2.0, general_weight=0.3)},
    "pooled": {"routing": Routing(pooled=["chitchat", "objective_qa"])},
    "mixed and pooled": {"routing": Routing(temperature=1.0, pooled=["chitchat"])},
}
RESPONSES = ["Oh no, I am so sorry!", "", "The exam took place.", "Yes."]


@pytest.fixture(scope="module", params=KINDS)
def any_model(request: Any, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> DMoERM:
    return make_model(KINDS[request.param](tiny_backbone, tmp_path_factory.mktemp("model")))


@pytest.fixture
def linear(tiny_backbone: str, tmp_path: Path) -> DMoERM:
    return make_model(make_exact_config(tiny_backbone, tmp_path))


def routed(model: DMoERM, threshold: float = 0.0, routing: Routing | None = None) -> DMoERM:
    model.config.threshold, model.config.routing = threshold, (routing or Routing()).model_dump()
    return model


def check(scores: list[Score]) -> None:
    for score in scores:
        value = unbound_reward(score.reward)
        assert score.empty or sum(score.contributions.values()) == pytest.approx(value, abs=1e-6, rel=1e-6)
        assert bool(score.contributions) != score.empty
        assert score.contributions.keys() >= score.capabilities.keys()


@settings(max_examples=15)
@given(
    st.sampled_from(sorted(ROUTES)),
    st.text(max_size=30),
    st.lists(st.text(max_size=30), min_size=1, max_size=4),
    st.sampled_from([None, "chitchat"]),
    st.sampled_from([None, {"empathy": 3.0, "logic": -2.0}]),
)
def test_they_sum_to_the_reward(
    any_model: DMoERM, route: str, prompt: str, responses: list[str], task: str | None, weights: Any
) -> None:
    weights = weights if task is None else {"empathy": 3.0}
    check(routed(any_model, **ROUTES[route]).score(f"Why {prompt}?", responses, task, weights=weights))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_and_loaded(any_model: DMoERM, tmp_path: Path, dtype: str) -> None:
    for route in ("mixed", "general"):
        routed(any_model, **ROUTES[route]).save_pretrained(tmp_path / route, dtype=dtype)
        loaded = DMoERM.from_pretrained(tmp_path / route, dtype=dtype)
        scores = loaded.score("I failed.", RESPONSES)
        check(scores)
        if dtype == "float32":
            assert_same(scores, any_model.score("I failed.", RESPONSES), 1e-5)


def test_served(served_url: str, trained_run: Any) -> None:
    item = {"prompt": "I failed.", "responses": RESPONSES}
    (answer,) = httpx2.post(f"{served_url}/v1/score", json={"items": [item]}, timeout=30).json()["items"]
    scores = [Score(**score) for score in answer["scores"]]
    check(scores)
    assert_same(scores, trained_run.model.score("I failed.", RESPONSES))


def test_a_linear_contribution_is_the_weight_times_the_standardized_score(linear: DMoERM) -> None:
    first, _, second, _ = linear.score("I failed.", RESPONSES, "chitchat")
    part = linear.task_model("chitchat")
    unit, shown = part.aggregator.linear.normalizer.scale * part.calibration.scale, part.normalizer.scale
    for i, name in enumerate(("empathy", "proactivity")):
        by_hand = part.aggregator.linear.weight[i] * shown[i] / unit[i]
        by_hand = float(by_hand) * (first.capabilities[name] - second.capabilities[name])
        assert first.advantage(second)[name] == pytest.approx(by_hand, abs=1e-5)
    assert set(first.contributions) == {"empathy", "proactivity", "per_task", "general", "all_labels"}


def test_at_the_mean_of_all_scores_only_the_constant_remains(linear: DMoERM) -> None:
    part = linear.task_model("chitchat")
    part.aggregator.linear.normalizer.mean.copy_(part.vectors(*embeddings(linear, "Yes."))[0])
    (score,) = linear.score("I failed.", ["Yes."], "chitchat")
    constant = -float(part.calibration.center / part.calibration.scale)
    assert abs(constant) > 0.01
    assert score.contributions == pytest.approx(dict.fromkeys(score.contributions, constant / 5), abs=1e-5)


def embeddings(model: DMoERM, response: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments of `TaskModel.vectors` for a response."""
    from dmoerm.model.packing import pack_ids
    from dmoerm.schema import Query

    encoded = model.encoder.encode(Query(prompt="I failed.", responses=(response,)))
    base = model.general.embed(model.hidden(pack_ids([encoded])))
    return base, base[None].expand(2, -1, -1), model.general.head(base)


def test_a_score_without_weight_has_exactly_0(linear: DMoERM) -> None:
    part = linear.task_model("chitchat").aggregator.linear
    part.weight[0] = part.weight[3] = 0
    for score in linear.score("I failed.", RESPONSES[::2], "chitchat"):
        assert [name for name, value in score.contributions.items() if value == 0] == ["empathy", "general"]
        check([score])
    (moved,) = linear.score("I failed.", ["Yes."], "chitchat", weights={"empathy": 3})
    assert moved.contributions["empathy"] == pytest.approx(moved.capabilities["empathy"])


def test_experts_on_a_shared_embedding_have_no_weight_in_the_papers_aggregator(any_model: DMoERM) -> None:
    part = any_model.task_model("chitchat")
    first, _, second, _ = routed(any_model).score("I failed.", RESPONSES, "chitchat")
    if part.aggregator.linear is None and part.experts.branch is None:
        assert first.contributions == {"empathy": 0.0, "proactivity": 0.0, "per_task": pytest.approx(first.reward)}
    elif part.aggregator.linear is None:
        assert set(first.contributions) == {"empathy", "proactivity"}
    else:
        assert {"empathy", "proactivity", "per_task", "general"} <= set(first.contributions)
        assert all(first.advantage(second).values())


def test_too_many_embeddings_leave_the_reward_without_an_explanation(
    any_model: DMoERM, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = routed(any_model).score("I failed.", RESPONSES, "chitchat")
    monkeypatch.setattr(heads, "MAX_PLAYERS", 1)
    after = any_model.score("I failed.", RESPONSES, "chitchat")
    assert [score.reward for score in after] == [score.reward for score in before]
    known = any_model.task_model("chitchat").aggregator.embeddings < 2
    assert [bool(score.contributions) for score in after] == [known and not score.empty for score in after]


# --- routes --------------------------------------------------------------------------------------------------------


def test_the_general_model_gives_all_of_its_reward(any_model: DMoERM) -> None:
    for score in routed(any_model, threshold=1.0).score("I failed.", ["Yes.", "No."]):
        assert (score.task, score.contributions) == (None, {"general": pytest.approx(score.reward)})


def test_a_pooled_task_contributes_nothing(linear: DMoERM) -> None:
    (score,) = routed(linear, **ROUTES["pooled"]).score("I failed.", ["Yes."])
    others = {name: value for name, value in score.contributions.items() if name != "general"}
    assert set(others) > set(score.capabilities)
    assert not any(others.values())
    assert score.contributions["general"] == pytest.approx(score.reward)


def test_a_mixture_adds_up_its_models(any_model: DMoERM) -> None:
    """By differences between two responses, in which constants cancel."""

    def pair(task: str | None = None) -> list[Score]:
        return any_model.score("I failed.", RESPONSES[::2], task)

    def gap(scores: Iterable[Score]) -> float:
        first, second = scores
        return (unbound_reward(first.reward) - unbound_reward(second.reward)) / first.temperature

    names, routing = list(any_model.config.tasks), Routing(temperature=2.0, general_weight=0.25)
    pairs = {task: pair(task) for task in names}
    own, gaps = {t: a.advantage(b) for t, (a, b) in pairs.items()}, {t: gap(scores) for t, scores in pairs.items()}
    routed(any_model, threshold=1.0)
    general = gap(pair())
    routed(any_model, routing=routing)
    first, second = pair()
    (row,) = routing.shares(torch.tensor([list(first.route.values())]), names, 0.5, shared=any_model.config.heads_only)
    share = dict(zip([*names, None], row.tolist(), strict=True))
    scale = float(any_model.routed_calibration.scale)
    assert first.task is not None
    factor = share[first.task] / scale / float(any_model.calibration(first.task).temperature)
    expected = {name: factor * value for name, value in own[first.task].items()}
    expected["general"] = expected.get("general", 0.0) + share[None] * general / scale
    if any_model.config.heads_only:  # otherwise the likeliest task covers enough
        expected["other_tasks"] = sum(share[t] * gaps[t] / scale for t in names if t != first.task)
    assert first.advantage(second) == pytest.approx(expected, abs=1e-4)
