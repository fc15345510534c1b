"""Many responses per prompt with gold rewards, from which best-of-n chooses.

testbed    the testbed's generator, any number of samples, and its gold reward
graded     held-out groups with many responses that people graded
a file     groups, with their scores as gold
a policy   a Hugging Face causal language model that answers testbed prompts
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from dmoerm.config import Config, changed
from dmoerm.data.readers import read_groups
from dmoerm.data.splits import load_splits
from dmoerm.errors import BackboneError, DataError
from dmoerm.evaluation.measure import split_overlap
from dmoerm.evaluation.results import Overlap
from dmoerm.model.training_prompts import TrainingPrompts
from dmoerm.schema import Group, Query, messages_of, prompt_key
from evidence import testbed
from evidence.best_of_n_estimates import check_samples
from evidence.testbed.prompts import PromptItem

_CHUNK = 64  # responses scored as one query


@dataclass(frozen=True)
class Samples:
    """The samples of one prompt; equal texts are stored and scored once.

    Attributes:
        query: the prompt and the distinct responses.
        index: (N,), the response of each sample.
        gold: the gold of each distinct response.
    """

    query: Query
    index: NDArray[np.int64]
    gold: NDArray[np.float64]

    def chunks(self) -> list[Query]:
        """Split the query into chunks that fit a scoring pass."""
        texts = self.query.responses
        return [
            self.query.model_copy(update={"responses": texts[i : i + _CHUNK]}) for i in range(0, len(texts), _CHUNK)
        ]


@dataclass(frozen=True)
class SampleSource:
    """Samples and a description of their origin.

    Attributes:
        samples: seed → the samples that the models of the seed score.
        description: text for the results.
        overlap: the prompts of a file that any seed was trained on; None: the source excludes them.
    """

    samples: Mapping[int, Sequence[Samples]]
    description: str
    overlap: Overlap | None = None


def open_source(
    source: str, config: Config, seeds: Sequence[int], count: int, prompts: int, include_trained: bool = False
) -> SampleSource:
    """Open a source of samples by its name on the command line.

    Args:
        source: `testbed`, `graded`, `policy:PATH`, or a file.
        seeds: the seeds of the runs; their training prompts are left out.
        count: samples per prompt; for graded groups and files, the fewest responses.
        prompts: testbed prompts per task.
        include_trained: keep prompts of a file that a seed was trained on.
    """
    splits = {seed: load_splits(changed(config, {"seed": seed})) for seed in seeds}
    if source == "graded":
        samples = {seed: from_groups(data.test, count, once=True) for seed, data in splits.items()}
        return SampleSource(samples, "held-out groups, graded by people")
    description, train = f"{source}, {count} samples per prompt", [g for data in splits.values() for g in data.train]
    if source == "testbed" or source.startswith("policy:"):
        items = unseen_prompts(prompts, train)
        policy = source.removeprefix("policy:")
        drawn = from_testbed(items, count) if source == "testbed" else from_policy(policy, items, count)
        return SampleSource(dict.fromkeys(seeds, drawn), description)
    known = TrainingPrompts.of(group.prompt for group in train)
    groups, overlap = split_overlap(read_groups(source).groups, known, include_trained)
    return SampleSource(dict.fromkeys(seeds, from_groups(groups, count)), description, overlap)


def from_testbed(prompts: Sequence[PromptItem], count: int, seed: int = 0) -> list[Samples]:
    """Draw `count` independent samples per prompt from the testbed's generator; samples may be equal."""
    return [_with_gold(item, testbed.sample_responses(item, count, seed)) for item in prompts]


def from_groups(groups: Iterable[Group], least: int, once: bool = False) -> list[Samples]:
    """Take groups of `least` responses or more, with their scores as gold.

    Args:
        once: merge equal responses of a group, with their mean grade, and standardize gold per task, so that tasks with
            different scales can be averaged.

    Raises:
        DataError: no group is large enough, or a response occurs twice in a group and `once` is false.
    """
    kept = []
    for group in groups:
        if group.grades is None or any(grade is None for grade in group.grades):
            continue
        if not once:
            check_samples(group.responses)
        grades: dict[str, list[float]] = {}
        for text, grade in zip(group.responses, group.grades, strict=True):
            grades.setdefault(text, []).append(float(grade or 0.0))
        if len(grades) >= least:
            gold = np.array([fmean(given) for given in grades.values()])
            kept.append(Samples(_query(group, tuple(grades)), np.arange(len(gold)), gold))
    if not kept:
        raise DataError(f"no group has {least} graded responses or more", field="responses", hint="lower --samples")
    return _standardized(kept) if once else kept


def _standardized(samples: Sequence[Samples]) -> list[Samples]:
    """Standardize gold to mean 0 and standard deviation 1 over each task's samples."""
    tasks: dict[str | None, list[NDArray[np.float64]]] = {}
    for row in samples:
        tasks.setdefault(row.query.task, []).append(row.gold)
    scales = {task: (np.concatenate(gold).mean(), np.concatenate(gold).std() or 1.0) for task, gold in tasks.items()}
    return [
        replace(
            row,
            gold=(row.gold - scales[row.query.task][0]) / scales[row.query.task][1],
        )
        for row in samples
    ]


def from_policy(path: str, prompts: Sequence[PromptItem], count: int, seed: int = 0, tokens: int = 96) -> list[Samples]:
    """Sample `count` responses per prompt from a causal language model at temperature 1, with the testbed's gold.

    Empty responses are drawn again, up to about ten times `count` samples in total.

    Raises:
        BackboneError: the model does not exist or has no chat template.
    """
    write = _writer(path, tokens)
    torch.manual_seed(seed)
    return [_with_gold(item, write(item, count)) for item in prompts]


def unseen_prompts(count: int, seen: Sequence[Group], seed: int = 0) -> list[PromptItem]:
    """Return `count` prompts of each testbed task that none of the groups has."""
    known = {prompt_key(group.prompt) for group in seen}
    unseen = []
    for task in testbed.TASKS:
        fresh = [item for item in testbed.prompts(task, None, seed) if prompt_key(item.prompt) not in known]
        if len(fresh) < count:
            raise DataError(f"{task} has {len(fresh)} prompts that no training part has", field="prompts", value=count)
        unseen += fresh[:count]
    return unseen


def _with_gold(item: PromptItem, texts: Sequence[str]) -> Samples:
    distinct = list(dict.fromkeys(texts))
    index = {text: i for i, text in enumerate(distinct)}
    gold = np.array([testbed.gold_reward(item.task, item.prompt, text) for text in distinct])
    query = Query(task=item.task, prompt=item.prompt, responses=tuple(distinct))
    return Samples(query, np.array([index[text] for text in texts]), gold)


def _query(group: Group, responses: tuple[str, ...]) -> Query:
    return Query(id=group.id, task=group.task, prompt=group.prompt, responses=responses)


def _writer(path: str, tokens: int) -> Callable[[PromptItem, int], list[str]]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"policy {path!r} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    if not tokenizer.chat_template:
        raise BackboneError(f"the tokenizer of {path!r} has no chat template; set one")

    @torch.inference_mode()
    def write(item: PromptItem, count: int) -> list[str]:
        turns = messages_of(item.prompt)
        ids = tokenizer.apply_chat_template(
            [turn.model_dump() for turn in turns], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        length, responses, drawn = ids["input_ids"].shape[1], [], 0
        while len(responses) < count:
            some = min(_CHUNK, count - len(responses))
            drawn += some
            if drawn > 10 * count + _CHUNK:
                raise DataError("the policy's responses are almost all empty", field="policy", value=path)
            out = model.generate(
                **ids,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                max_new_tokens=tokens,
                num_return_sequences=some,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
            )
            written = tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
            responses += [text.strip() for text in written if text.strip()]
        return responses

    model.eval()
    return write
