"""What the reward functions share: scores of batches, prompts and completions in every form, the source of rewards."""

from __future__ import annotations

import multiprocessing
import os
import threading

import pytest
import torch
from reward_server import TASKS, ByRule

from dmoerm.errors import CheckpointError, ConfigError, DataError
from dmoerm.integrations import scoring
from dmoerm.integrations.client import Client
from dmoerm.integrations.scoring import as_prompt, as_response, open_scorer, score_samples, tasks_of
from dmoerm.model import DMoERM
from dmoerm.schema import Message, Query

TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi!"}]}]


def test_a_prompt_is_scored_once():
    scorer = ByRule()
    samples = [(None, "a?", "t"), (None, "b", "tt"), ("chitchat", "a?", "ttt"), (None, "a?", "x")]
    scores = score_samples(scorer, samples)
    assert [score.reward for score in scores] == [1.0, 2.0, 3.0, 0.0]
    assert [query.responses for query in scorer.queries] == [("t", "x"), ("tt",), ("ttt",)]
    assert score_samples(scorer, []) == []


def test_prompts_and_completions_of_every_form():
    turns = (Message(role="system", content="Be kind."), Message(role="user", content="Hi!"))
    rendered = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
    assert as_prompt(TURNS) == as_prompt(rendered + "<|im_start|>assistant\n") == turns
    assert as_prompt("Hi!") == "Hi!"
    assert as_response("Yes.") == as_response([TURNS[1], {"role": "assistant", "content": "Yes."}]) == "Yes."
    assert as_response([]) == as_response([{"role": "assistant", "content": None}]) == ""


@pytest.mark.parametrize("turn", [{"role": "robot", "content": "5"}, {"role": "user"}, {"content": "x"}, "text"])
def test_an_invalid_message_is_an_error(turn):
    with pytest.raises(DataError, match="prompt: is not a chat message"):
        as_prompt([turn])


# --- the source of rewards ------------------------------------------------------------------------------------------


def test_a_source_is_opened_once_for_all_threads(trained_run, monkeypatch):
    loaded, opened = [], []
    monkeypatch.setattr(scoring, "_load", lambda path: loaded.append(path) or object())
    threads = [threading.Thread(target=lambda: opened.append(open_scorer("somewhere/else"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == ["somewhere/else"]
    assert len({id(thread) for thread in opened}) == 1


def test_every_kind_of_source(trained_run, reward_server, monkeypatch):
    folder = trained_run.folder / "model"
    assert tasks_of(open_scorer(folder)) == trained_run.model.config.tasks
    assert open_scorer(str(folder)) is open_scorer(folder)
    assert tasks_of(open_scorer(trained_run.folder)) == trained_run.model.config.tasks
    assert open_scorer(trained_run.model) is trained_run.model
    client = Client(reward_server.url, model="rule")
    assert open_scorer(client) is client
    assert tasks_of(client) == TASKS
    monkeypatch.setenv("DMOERM_MODEL", reward_server.url)
    assert isinstance(open_scorer(), Client)
    assert tasks_of(open_scorer()) == TASKS


def test_invalid_sources_are_errors(reward_server, monkeypatch, tmp_path):
    monkeypatch.delenv("DMOERM_MODEL", raising=False)
    with pytest.raises(ConfigError, match="DMOERM_MODEL is not set"):
        open_scorer()
    with pytest.raises(ConfigError, match="has no model 'other'; use one of rule"):
        tasks_of(Client(reward_server.url, model="other"))
    with pytest.raises(CheckpointError, match="is not a dmoerm model"):
        open_scorer(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("use", ["score", "forward"])
def test_a_forked_process_scores_with_its_parents_model(trained_run, use):
    """The threads of a pass do not survive the fork; another thread may hold the tokenizer's lock at that time."""
    scorer, threads = DMoERM.from_pretrained(trained_run.folder / "model"), torch.get_num_threads()
    queries = [Query(prompt="why " * 100, responses=("because " * 50, "no"))]
    torch.set_num_threads(2)
    try:
        if use == "forward":
            talk = [{"role": "user", "content": "why " * 100}, {"role": "assistant", "content": "because " * 50}]
            scorer(**scorer.tokenizer.apply_chat_template(talk, return_dict=True, return_tensors="pt"))
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=lambda: sender.send([score.reward for score in next(iter(scorer.score_queries(queries)))])
        )
        with scorer.encoder._lock:
            child.start()
        child.join(60)  # one that waits for lost threads does not end
        child.kill()
    finally:
        torch.set_num_threads(threads)
    assert child.exitcode == 0
    expected = next(iter(scorer.score_queries(queries)))
    assert receiver.recv() == pytest.approx([score.reward for score in expected], abs=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_forks_while_another_thread_opens_a_source(monkeypatch):
    started, go = threading.Event(), threading.Event()
    monkeypatch.setattr(scoring, "_load", lambda path: (started.set(), go.wait(60), path)[2])
    thread = threading.Thread(target=open_scorer, args=("slow/model",))
    thread.start()
    started.wait()
    monkeypatch.setattr(scoring, "_load", lambda path: path)
    child = multiprocessing.get_context("fork").Process(target=open_scorer, args=("another/model",))
    child.start()
    child.join(60)
    child.kill()
    go.set()
    thread.join()
    assert child.exitcode == 0
