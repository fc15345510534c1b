"""The router: probabilities of the tasks from the prompt alone, the weights of the task models, and the mixture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_model, make_tiny_config

from dmoerm import DMoERM
from dmoerm.chat.encoding import Encoded
from dmoerm.errors import CheckpointError
from dmoerm.model.packing import pack_ids, pad
from dmoerm.model.router import Routing
from dmoerm.scores import unbound_reward

each_router = pytest.mark.parametrize(
    "changes", [{}, {"router": {"kind": "own"}}, {"router": {"kind": "own"}, "backbone": {"branch_layer": 0}}]
)


def routed(model: Any, *queries: Encoded) -> torch.Tensor:
    ids = pack_ids(queries)
    return model.route(ids, model.hidden(ids))


@each_router
@torch.no_grad()
def test_probabilities_are_those_of_the_prompt_alone(tiny_model: Callable[..., Any], changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    prompts = [[1, 5, 6], [1, 9, 8, 7, 30, 31, 32, 33], [1]]
    together = routed(model, *(Encoded(ids, [[3, 2], [4, 5, 2]]) for ids in prompts))
    alone = torch.cat([routed(model, Encoded(ids, [[77, 2]])) for ids in prompts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.sum(1), torch.ones(3))
    assert (together[0] - together[1]).abs().max() > 1e-3


@torch.no_grad()
def test_an_embedding_is_the_mean_over_the_prompts_tokens(tiny_model: Callable[..., Any]) -> None:
    router = tiny_model(router={"kind": "own"}).router
    prompts = [torch.tensor([1]), torch.tensor([1, 9, 8, 7, 30])]
    states = [router.language_model(input_ids=ids[None]).last_hidden_state[0] for ids in prompts]
    expected = torch.stack([each.mean(0) for each in states])
    torch.testing.assert_close(router.read(*pad(prompts)), expected, atol=1e-5, rtol=1e-4)


# --- weights of the task models --------------------------------------------------------------------------------------

TASKS = ["a", "b", "c"]
P = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])


def shares(routing: Routing, threshold: float = 0.5, *, shared: bool = True) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in routing.shares(P, TASKS, threshold, shared=shared).tolist()]


def test_at_temperature_0_the_likeliest_task_scores_alone() -> None:
    assert shares(Routing()) == [[1, 0, 0, 0], [0, 0, 1, 0]]
    assert shares(Routing(), 0.6) == [[0, 0, 0, 1], [0, 0, 1, 0]]
    assert shares(Routing(pooled=["a"])) == [[0, 0, 0, 1], [0, 0, 1, 0]]


def test_temperatures_sharpen_and_flatten() -> None:
    assert shares(Routing(temperature=1.0))[0] == pytest.approx([0.5, 0.3, 0.2, 0])
    sharp, flat = (shares(Routing(temperature=value), 0.99)[1] for value in (0.01, 1e6))
    assert sharp == pytest.approx([0, 0, 1, 0], abs=1e-5)
    assert flat == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=1e-4)


def test_the_general_model_takes_its_weight_and_those_of_pooled_tasks() -> None:
    routing = Routing(temperature=1.0, general_weight=0.25, pooled=["b"])
    assert shares(routing)[0] == pytest.approx([0.375, 0, 0.15, 0.475])
    assert shares(Routing(temperature=1.0, general_weight=1.0))[1] == [0, 0, 0, 1]


def test_branches_of_their_own_are_few() -> None:
    probabilities = torch.tensor([[0.3, 0.25, 0.2, 0.15, 0.1], [0.92, 0.02, 0.02, 0.02, 0.02]])
    few = Routing(temperature=1.0).shares(probabilities, list("abcde"), 0.5, shared=False)
    assert (few > 0).sum(1).tolist() == [3, 1]
    assert few[0].tolist() == pytest.approx([0.4, 1 / 3, 0.8 / 3, 0, 0, 0])


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda row: sum(row) > 1e-3),
    st.floats(0, 100),
    st.floats(0, 1),
    st.floats(0, 1),
    st.booleans(),
)
def test_weights_sum_to_1(row: list[float], temperature: float, weight: float, threshold: float, shared: bool) -> None:
    routing = Routing(temperature=temperature, general_weight=weight, pooled=["1"])
    names = [str(i) for i in range(len(row))]
    found = routing.shares(torch.tensor([row]) / sum(row), names, threshold, shared=shared)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert found.min() >= 0
    assert found[0, 1] == 0


# --- rewards -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["frozen", "full"])
def model(request: Any, tiny_backbone: str, tmp_path: Path) -> DMoERM:
    changes: dict[str, Any] = {"base": "frozen", "phase2": {"fit": "exact"}} if request.param == "frozen" else {}
    return make_model(make_tiny_config(tiny_backbone, tmp_path, **changes))


def mixed(model: DMoERM, **routing: Any) -> DMoERM:
    model.config.routing = Routing(**routing).model_dump()
    return model


RESPONSES = ["Yes, it is.", "No.", "Perhaps it is, perhaps not; who knows?"]


def test_a_mixed_reward_is_the_weighted_mean_in_log_odds(model: DMoERM) -> None:
    names = list(model.config.tasks)
    raw = {task: model.score("Is it?", RESPONSES, task) for task in names}
    mixed(model, temperature=1.0, general_weight=1.0)
    general = model.score("Is it?", RESPONSES)
    found = mixed(model, temperature=2.0, general_weight=0.25).score("Is it?", RESPONSES)
    (row,) = model.routing.shares(
        torch.tensor([[found[0].route[task] for task in names]]), names, 0.5, shared=model.config.shared_branch
    ).tolist()
    calibration = model.routed_calibration
    scale, temperature = float(calibration.scale), float(calibration.temperature)
    log_odds = [[unbound_reward(s.reward) / s.temperature for s in raw[task]] for task in names]
    log_odds.append([unbound_reward(s.reward) * scale + float(calibration.center) for s in general])
    for n, score in enumerate(found):
        expected = sum(share * values[n] for share, values in zip(row, log_odds, strict=True))
        assert unbound_reward(score.reward) == pytest.approx((expected - float(calibration.center)) / scale, abs=1e-5)
        assert score.temperature == pytest.approx(temperature)
        assert score.task == max(score.route, key=lambda task: score.route[task])
        assert list(score.capabilities) == list(model.config.tasks[score.task])
        assert score.capabilities == pytest.approx(raw[score.task][n].capabilities, abs=1e-5)


def test_the_likeliest_task_alone_has_the_rewards_of_its_own_model(model: DMoERM) -> None:
    model.config.threshold = 0.0
    routed = model.score("Is it?", RESPONSES)
    assert routed == model.score("Is it?", RESPONSES, routed[0].task)


@pytest.mark.parametrize("routing", [{}, {"temperature": 2.0, "general_weight": 0.5}, {"pooled": ["chitchat"]}])
def test_a_given_task_overrides_the_routing(model: DMoERM, routing: dict[str, Any]) -> None:
    before = model.score("Is it?", RESPONSES, "chitchat")
    assert mixed(model, **routing).score("Is it?", RESPONSES, "chitchat") == before


def test_a_pooled_task_reports_its_capabilities_and_the_general_reward(model: DMoERM) -> None:
    model.config.threshold = 0.0
    likeliest = model.score("Is it?", RESPONSES)[0].task
    assert likeliest is not None
    own = model.score("Is it?", RESPONSES, likeliest)
    model.config.threshold = 1.0
    general = model.score("Is it?", RESPONSES)
    model.config.threshold = 0.0
    pooled = mixed(model, pooled=[likeliest]).score("Is it?", RESPONSES)
    assert [s.reward for s in pooled] == pytest.approx([s.reward for s in general], abs=1e-6)
    assert pooled[0].temperature == general[0].temperature
    assert [s.capabilities for s in pooled] == [s.capabilities for s in own]
    assert pooled[0].task == likeliest


def test_removing_a_task_removes_it_from_the_pooled_ones(model: DMoERM) -> None:
    mixed(model, temperature=1.0, pooled=["chitchat"]).keep_tasks(["objective_qa"])
    assert model.routing == Routing(temperature=1.0)
    assert model.score("Is it?", RESPONSES)[0].task == "objective_qa"


@pytest.mark.parametrize(
    ("routing", "named"),
    [
        ({"temperature": -1.0}, "routing.temperature"),
        ({"general_weight": 2.0}, "routing.general_weight"),
        ({"pooled": ["else"]}, "routing.pooled"),
        ({"sharpness": 1.0}, "routing.sharpness"),
    ],
)
def test_an_invalid_routing_is_refused(model: DMoERM, tmp_path: Path, routing: dict[str, Any], named: str) -> None:
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "routing": {**Routing().model_dump(), **routing}}))
    with pytest.raises(CheckpointError, match=named):
        DMoERM.from_pretrained(tmp_path / "model", check=False)
