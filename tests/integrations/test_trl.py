"""TRL's reward function: called as TRL calls it, and inside TRL's trainers."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import shutil
from collections import defaultdict

import httpx2
import pytest
import torch
from datasets import Dataset
from reward_server import ByRule, respond
from tiny_policy import write_random_policy

from dmoerm import Client
from dmoerm.errors import DataError
from dmoerm.integrations.trl import reward_function
from dmoerm.integrations.trl_module import RewardModule
from dmoerm.schema import Message
from dmoerm.scores import MIN_REWARD

TURNS = [{"role": "user", "content": "Why?"}]


class Logged:
    """The logging functions that TRL passes to a reward function, and the logged values."""

    def __init__(self):
        self.metrics, self.extra = defaultdict(list), {}

    def call(self, function, prompts, completions, **columns):
        more = {"log_metric": lambda name, value: self.metrics[name].append(value), "log_extra": self.extra.__setitem__}
        fixed = {"completion_ids": [[1]] * len(prompts), "trainer_state": None}
        return function(prompts=prompts, completions=completions, **fixed, **more, **columns)


def test_texts_and_messages_are_scored_once_per_prompt():
    scorer, logged = ByRule(), Logged()
    completions = [[{"role": "assistant", "content": text}] for text in ("t", "", "tt")]
    actual = logged.call(reward_function(scorer), [TURNS] * 3, completions, answer=["5"] * 3)
    assert actual == [1.0, MIN_REWARD, 2.0]
    assert [query.responses for query in scorer.queries] == [("t", "", "tt")]
    assert logged.call(reward_function(scorer), ["Hi.", "Hi."], ["t", "x"]) == [1.0, 0.0]


def test_what_is_logged():
    logged = Logged()
    logged.call(reward_function(ByRule(), name="rm"), ["Hi.", "Why?", "Hi.", "Hi."], ["tt", "t", "tttt", ""])
    means = {name: values for name, (values,) in logged.metrics.items()}
    assert means["chitchat/empathy"] == 1.5
    assert means["objective_qa/correctness"] == 0.5
    assert means["task/chitchat"] == pytest.approx(3 / 4)
    assert means["task/objective_qa"] == pytest.approx(1 / 4)
    assert (means["uncertainty"], means["truncated"]) == (0.5, 0.0)
    # halves of the rewards 2, 1 and 4; an empty response has no contributions
    assert (means["contribution/chitchat/empathy"], means["contribution/objective_qa/correctness"]) == (1.5, 0.5)
    assert means["contribution/per_task"] == pytest.approx(3.5 / 3)
    assert logged.extra["rm/task"] == ["chitchat", "objective_qa", "chitchat", "chitchat"]
    assert logged.extra["rm/uncertainty"] == [0.5, 0.5, 0.5, None]
    general = Logged()
    unrecognized = {"task": None, "capabilities": {}, "uncertainty": None, "contributions": {"general": 1.0}}
    general.call(reward_function(ByRule(**unrecognized)), ["Hi."], ["t"])
    zeros = {"task/chitchat": [0.0], "task/objective_qa": [0.0], "truncated": [0.0]}
    assert general.metrics == {**zeros, "contribution/general": [1.0]}


def test_rows_of_other_tasks_get_none():
    """The column decides without scoring, else the route; an empty response has the route of its prompt."""
    scorer = ByRule()
    function = reward_function(scorer, tasks=["chitchat"])
    row_tasks = ["chitchat", None, "another model's", None, None, None]
    prompts = ["Why?", "Why?", "Hi.", "Hi.", "Hi.", "Why?"]
    logged = Logged()
    actual = logged.call(function, prompts, ["t", "t", "t", "t", "", ""], task=row_tasks)
    assert actual == [1.0, None, None, 1.0, MIN_REWARD, None]
    assert [query.task for query in scorer.queries] == ["chitchat", None, None]
    assert not any(name.startswith("objective_qa/") for name in logged.metrics)


def test_the_async_function_gives_the_same(reward_server):
    """TRL awaits it: `is_async_callable` of TRL 1.16 recognizes it, and it leaves rows of other tasks out too."""
    from trl.trainer import utils

    settings = {"tasks": ["chitchat"], "name": "rm"}
    plain = reward_function(reward_server.url, **settings)
    awaited = pickle.loads(pickle.dumps(reward_function(reward_server.url, asynchronous=True, **settings)))
    if hasattr(utils, "is_async_callable"):  # the lowest version that is tested lacks it
        assert (utils.is_async_callable(awaited), utils.is_async_callable(plain)) == (True, False)
    rows = ["Hi.", "Why?", "Hi.", "Why?"], ["t", "t", "tt", ""]
    first, second = Logged(), Logged()
    expected = first.call(plain, *rows, task=[None, "chitchat", None, None])
    assert expected[3] is None
    assert asyncio.run(second.call(awaited, *rows, task=[None, "chitchat", None, None])) == expected
    assert (second.metrics, second.extra) == (first.metrics, first.extra)
    assert asyncio.run(awaited(prompts=["Why?"], completions=["t"], task=["another's"])) == [None]


def test_the_async_function_sends_what_its_client_sends():
    """The model's name, the key and the transport of the client, not the defaults for its URL."""
    sent = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append((request.headers["authorization"], json.loads(request.content).get("model")))
        return respond(request)

    def scored(transport):
        with Client("http://server", api_key="secret", model="human", transport=transport) as client:
            return asyncio.run(reward_function(client, asynchronous=True)(prompts=["Hi."], completions=["tt"]))

    class OnlySynchronous(httpx2.BaseTransport):
        def handle_request(self, request):
            return answer(request)

    assert scored(httpx2.MockTransport(answer)) == scored(OnlySynchronous()) == [2.0]
    assert set(sent) == {("Bearer secret", "human")}
    assert len(sent) == 2


def test_an_unknown_task_is_an_error(trained_run):
    with pytest.raises(DataError, match="no such task"):
        Logged().call(reward_function(trained_run.model), ["Hi."], ["t"], task=["none"])


def trained(algorithm, functions, folder, rows, steps=3):
    """Train a random policy for some steps; return the trainer and its log."""
    import trl

    name = {"rloo": "RLOO", "grpo": "GRPO"}[algorithm]
    settings = getattr(trl, f"{name}Config")(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=8,
        max_steps=steps,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        learning_rate=1e-2,
    )
    trainer = getattr(trl, f"{name}Trainer")(
        write_random_policy(folder / "policy"), functions, settings, Dataset.from_list(rows)
    )
    trainer.train()
    return trainer, [entry for entry in trainer.state.log_history if "reward" in entry]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize(("source", "conversational"), [("folder", True), ("server", False)])
def test_trls_trainers_accept_the_function(algorithm, source, conversational, trained_run, reward_server, tmp_path):
    path = str(trained_run.folder / "model") if source == "folder" else reward_server.url
    texts = ["How are you?", "Hi.", "Tell me more.", "What is it?"]
    rows = [
        {"prompt": [{"role": "user", "content": text}] if conversational else text, "task": "chitchat" if n else None}
        for n, text in enumerate(texts)
    ]
    functions = [reward_function(path), reward_function(path, tasks=["chitchat"], name="chat")]
    trainer, steps = trained(algorithm, functions, tmp_path, rows)
    assert trainer.state.global_step == len(steps) == 3
    for entry in steps:
        assert math.isfinite(entry["reward"] + entry["rewards/dmoerm/mean"])
        assert entry.keys() >= {"rewards/chat/mean", "uncertainty"}
        assert 0 <= entry["task/chitchat"] <= 1
    assert any(entry["rewards/dmoerm/std"] > 0 for entry in steps)
    assert any("chitchat/empathy" in entry for entry in steps)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_trls_trainers_accept_a_model_folder(algorithm, trained_run, tmp_path):
    """TRL's own code loads model and tokenizer, pads, and reads the logits, as for any classifier."""
    folder = shutil.copytree(trained_run.folder / "model", tmp_path / "model")
    if algorithm == "rloo":  # a folder that was saved before config.json had the field
        settings = json.loads((folder / "config.json").read_text())
        del settings["pad_token_id"]
        (folder / "config.json").write_text(json.dumps(settings))
        (folder / "SHA256SUMS").unlink()
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in ("How are you?", "Hi.")]
    trainer, (entry,) = trained(algorithm, str(folder), tmp_path, rows, steps=1)
    assert trainer.reward_func_names == ["model"]
    assert math.isfinite(entry["rewards/model/mean"])
    assert entry["rewards/model/std"] > 0


@pytest.mark.parametrize("ends_turns", [False, True])
def test_trls_get_reward_reads_the_reward(trained_run, ends_turns):
    """`get_reward` of TRL 1.16, with queries padded on the left and responses on the right, as PPO pads them.

    TRL masks every pad token, so one that ends turns is masked within the conversation too.
    """
    utils = pytest.importorskip("trl.experimental.utils")
    if not hasattr(utils, "get_reward"):
        pytest.skip("this release of TRL has get_reward elsewhere")
    model, tokenizer = trained_run.model, trained_run.model.tokenizer
    pad = tokenizer.pad_token_id if ends_turns else len(tokenizer)
    prompts = [[Message(role="user", content="Hi.")], [Message(role="user", content="How are you today?")]]
    prompts[1] += [Message(role="assistant", content="Fine."), Message(role="user", content="And you?")]
    responses = ["Fine, and you?", "No."]
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        asked = model.encoder.tokens(prompt)
        whole = model.encoder.tokens([*prompt, Message(role="assistant", content=response)])
        rows.append((asked, whole[len(asked) :]))
    assert any(pad in asked for asked, _ in rows) == ends_turns
    context, longest = (max(len(row[part]) for row in rows) for part in (0, 1))
    ids = [[pad] * (context - len(asked)) + asked + said + [pad] * (longest + 1 - len(said)) for asked, said in rows]
    logits, rewards, last = utils.get_reward(RewardModule(model), torch.tensor(ids), pad, context)
    expected = [model.score(*row)[0].reward for row in zip(prompts, [[text] for text in responses], strict=True)]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-4)
    ends = [said.index(pad) if ends_turns else len(said) for _, said in rows]
    assert last.tolist() == [context + end - 1 for end in ends]
    assert logits.shape == (2, context + longest + 1, 1)
