"""The testbed's promises: the same seed gives the same bytes, the gold reward reads text alone and cannot be stuffed,
people disagree as people do, and the five tasks want different things."""

import os
import subprocess
import sys
from functools import cache
from itertools import combinations
from random import Random

import numpy as np
import pytest

from dmoerm.errors import DataError
from dmoerm.schema import Group, parse_group, prompt_key
from evidence.testbed import (
    CAPABILITIES,
    TASKS,
    generate,
    gold_group,
    gold_reward,
    grade,
    prompts,
    sample_responses,
)
from evidence.testbed.annotators import TEMPERATURES, agreement, calibrate
from evidence.testbed.compose import fill
from evidence.testbed.evidence import COUNTED_WORDS, evidence, families_of
from evidence.testbed.phrases import FAMILIES

each_task = pytest.mark.parametrize("task", TASKS)


@cache
def everything() -> list[Group]:
    return generate(150, 4, seed=1)


def labeled(task: str) -> list[Group]:
    return [group for group in everything() if group.task == task]


@cache
def golden(task: str) -> list[Group]:
    return [gold_group(group) for group in labeled(task)]


def agreeing(task: str, name: str) -> float:
    """The share of the pairs ordered by both annotators that they order the same way."""
    same = []
    for group in labeled(task):
        people = np.array(group.annotators[name])
        gaps = [people[i] - people[j] for i, j in combinations(range(len(people)), 2)]
        same += [gap[0] * gap[1] > 0 for gap in gaps if gap[0] * gap[1] != 0]
    return float(np.mean(same))


def test_python_hash_salt_changes_nothing():
    program = "from evidence.testbed import generate; print([g.model_dump_json() for g in generate(3, 2)])"
    runs = {
        subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": salt}, capture_output=True)
        .stdout.decode()
        .strip()
        for salt in ("1", "2")
    }
    (text,) = runs
    assert "testbed-0-roleplay" in text
    assert generate(3, 2) != generate(3, 2, seed=1)


def test_groups_are_native_rows_with_every_label():
    groups = generate(4, 4, seed=2, annotators=3)
    assert [group.task for group in groups] == [task for task in TASKS for _ in range(4)]
    assert len({group.id for group in groups}) == len(groups)
    for group in groups:
        assert tuple(group.capabilities) == CAPABILITIES[group.task]
        assert set(group.annotators) == {"overall", *CAPABILITIES[group.task]}
        assert all(len(people) == 3 for grades in group.annotators.values() for people in grades)
        assert group.scores == tuple(people[0] for people in group.annotators["overall"])
        assert group.source == "testbed"
        assert parse_group(group.model_dump()) == group


@each_task
def test_prompts_are_distinct_plentiful_and_only_appended_to(task: str):
    items = prompts(task, 300, seed=0)
    assert len({prompt_key(item.prompt) for item in items}) == 300
    assert items[:48] == prompts(task, 48, seed=0)
    assert any(isinstance(item.prompt, tuple) for item in items[:48])
    assert any(isinstance(item.prompt, str) for item in items[:48])
    known = prompts(task, None, seed=0)
    many = prompts(task, 10_500, seed=0)
    assert many[: len(known)] == known
    assert len({prompt_key(item.prompt) for item in many}) == 10_500
    for item in many[len(known) :: 997]:  # the words around a prompt are not its subject
        text = item.prompt if isinstance(item.prompt, str) else item.prompt[-1].content
        lead, tail = text.split(maxsplit=1)[0], text.rsplit(maxsplit=1)[-1]
        assert evidence(item.prompt, f"We spoke of {lead} and {tail} for a while.")["topic"] == 0


@pytest.mark.slow
def test_asking_for_what_is_not_there_says_so():
    with pytest.raises(DataError, match="objective_qa has"):
        prompts("objective_qa", 10**6)
    with pytest.raises(DataError, match="roleplay"):
        prompts("cooking")
    with pytest.raises(DataError, match="too few"):
        generate(2, 1)
    with pytest.raises(DataError, match="is not a task of the testbed"):
        gold_group(labeled("chitchat")[0].model_copy(update={"task": None}))


@each_task
def test_fresh_samples_do_not_run_out(task: str):
    texts = sample_responses(prompts(task, 1)[0], 1200)
    assert len(set(texts)) > 1000
    assert texts[:10] == sample_responses(prompts(task, 1)[0], 10)
    assert 35 <= np.median([len(text.split()) for text in texts]) <= 80


@pytest.mark.parametrize("name", FAMILIES)
def test_every_sentence_shows_its_family_alone(name: str):
    items = [item for task in TASKS for item in prompts(task, 8)]
    for index, template in enumerate(FAMILIES[name].sentences * 20):
        sentence = fill(template, items[index % len(items)], Random(index))
        assert families_of(sentence) == (name,)
        assert COUNTED_WORDS[0] <= len(sentence.split()) <= COUNTED_WORDS[1]


@each_task
def test_gold_is_read_from_the_text_alone(task: str):
    group = labeled(task)[0]
    turned = group.model_copy(update={"responses": group.responses[::-1], "scores": (0.0,) * 4, "annotators": {}})
    assert gold_group(turned).scores == golden(task)[0].scores[::-1]
    assert gold_group(golden(task)[0]) == golden(task)[0]


@each_task
def test_grades_and_gold_lie_in_the_unit_interval_for_any_text(task: str):
    prompt = prompts(task, 1)[0].prompt
    for text in ("", " ", "?", "!!!", "xqz " * 500, "Yes.", "the " * 3000, "日本語のテキスト。", "a.b.c" * 50):
        reward, grades = gold_reward(task, prompt, text), grade(task, prompt, text)
        assert set(grades) == set(CAPABILITIES[task])
        assert all(0 <= value <= 1 for value in grades.values())
        assert 0 <= reward < 0.15


@each_task
def test_stuffing_repetition_and_length_do_not_pay(task: str):
    item = prompts(task, 1, seed=8)[0]
    texts = sample_responses(item, 300, seed=8)
    honest = {text: gold_reward(task, item.prompt, text) for text in texts}
    best = max(honest, key=honest.__getitem__)
    sentences = [fill(s, item, Random(0)) for family in FAMILIES.values() for s in family.sentences]
    cues = "because first some people say silver glow, I care, old friend, mark my words, for example 1900?! "
    tricks = {
        "said thrice": " ".join([best] * 3),
        "ten answers in one": " ".join(texts[:10]),
        "every sentence there is": " ".join(sentences),
        "a heap of cues": cues * 6,
        "one sentence of cues": cues.replace("?!", "."),
        "no stops": best.replace(".", ""),
        "padded": best + " And so on and so forth it goes." * 40,
    }
    for trick, text in tricks.items():
        assert gold_reward(task, item.prompt, text) < honest[best], trick


def test_help_saturates_then_falls():
    item = prompts("chitchat", 1)[0]
    questions = [fill(s, item, Random(1)) for s in FAMILIES["question"].sentences]
    grades = [grade("chitchat", item.prompt, " ".join(questions[:n]))["proactivity"] for n in range(len(questions) + 1)]
    assert grades[0] < grades[1] < grades[2] < grades[3] == 1.0
    assert grades[3] > grades[5] > grades[8] - 1e-9


def test_the_right_answer_beats_none_beats_a_wrong_one():
    item = prompts("objective_qa", 1)[0]
    assert item.fact is not None
    given = [f"The answer is {a}." for a in (item.fact.answer, "hard to find", item.fact.wrong[0])]
    right, none, wrong = (grade("objective_qa", item.prompt, text)["correctness"] for text in given)
    assert right == 1 > none > wrong
    both = grade("objective_qa", item.prompt, f"{given[0]} {given[2]}")["correctness"]
    assert right > both > wrong


@each_task
def test_two_annotators_agree_as_people_do(task: str):
    assert 0.60 <= agreeing(task, "overall") <= 0.75
    assert np.mean([agreeing(task, name) for name in CAPABILITIES[task]]) >= 0.75


@each_task
def test_temperatures_are_the_calibrated_ones(task: str):
    gaps = [g.scores[i] - g.scores[j] for g in golden(task) for i, j in combinations(range(4), 2)]
    assert calibrate(gaps) == pytest.approx(TEMPERATURES[task], rel=0.15)
    assert agreement(gaps, calibrate(gaps, 0.7)) == pytest.approx(0.7, abs=1e-6)


@each_task
def test_gold_is_not_linear_in_the_grades(task: str):
    reward = np.array([score for group in golden(task) for score in group.scores])
    columns = [[grade for group in golden(task) for grade in group.capabilities[name]] for name in CAPABILITIES[task]]
    design = np.column_stack([*columns, np.ones(len(reward))])
    residual = reward - design @ np.linalg.lstsq(design, reward, rcond=None)[0]
    assert 1 - residual.var() / reward.var() < 0.97


def test_tasks_want_conflicting_things():
    def worth(task: str, name: str) -> float:
        counts = [evidence(group.prompt, text)[name] for group in golden(task) for text in group.responses]
        return float(np.corrcoef(counts, [score for group in golden(task) for score in group.scores])[0, 1])

    for wanted, name, unwanted in (
        ("chitchat", "warmth", "objective_qa"),
        ("subjective_qa", "viewpoint", "objective_qa"),
        ("subjective_qa", "fact", "text_creation"),
        ("text_creation", "imagery", "objective_qa"),
        ("subjective_qa", "reason", "chitchat"),
    ):
        assert worth(wanted, name) > 0.15 > -0.1 > worth(unwanted, name), name
