"""Measure what labels of a judge of known quality are worth, with a fake judge.

The judge's opinion of a pair is the difference of the testbed's gold grades, in logits, plus noise (equal in both
orders) and noise per order; then the response shown first gains 0.2 in probability. The judge writes the more likely
letter and returns the probabilities. The same calls give soft labels (mean of both orders' probabilities) and hard
labels (both orders agree, other pairs are left out). Both train the experts of the demo's model, tested on gold.

    PYTHONPATH=tests python -m evidence.judge_labels --name labels      the fake judge is in tests/
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import math
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fake_judge import FakeJudge

from dmoerm.config import Config, load_config
from dmoerm.data.splits import load_splits
from dmoerm.evaluation import evaluate
from dmoerm.labeling.quality import label_quality
from dmoerm.labeling.questions import Endpoint, QuestionFormat, all_pairs, build_questions
from dmoerm.labeling.runner import ask, collect_labels
from dmoerm.labeling.store import AnswerStore
from dmoerm.labels import CapabilityLabel, write_labels
from dmoerm.schema import Group
from dmoerm.taxonomy import load_taxonomy
from dmoerm.training import train
from evidence.measure import write
from evidence.testbed import gold_group

BIAS = 0.2
SPREAD = 0.25  # a difference of one step of the five-point scale is one logit
IN_FLIGHT = 32
KINDS = ("soft", "hard")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure quality by noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.5, 2.0, 4.0, 8.0], help="of the judge, in logits")
    parser.add_argument("--pairs", type=int, default=500, help="pairs that the judge is asked about")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="A.B=VALUE", help="change settings")
    parser.add_argument("--name", help="store the results as results/NAME.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = load_config("demo", [f"output={root / 'run'}", *options.set])
        groups = load_splits(config).train
        people = expert_accuracy(config, root / "people", {})
        rows = [at_noise(noise, options.pairs, config, groups, root) for noise in options.noise]
    if options.name:
        tables, experts = {"Quality by the judge's noise": rows}, round(people, 4)
        words = sys.argv[1:] if arguments is None else arguments
        command = " ".join(["PYTHONPATH=tests python -m evidence.judge_labels", *words])
        write(options.name, command, [], tables=tables, experts_on_people=experts, bias=BIAS)


def at_noise(noise: float, count: int, config: Config, groups: Sequence[Group], root: Path) -> dict[str, Any]:
    """Measure one judge's labels against gold, and the experts trained on them."""
    pairs = list(all_pairs(groups))
    random.Random(0).shuffle(pairs)
    with served(groups, noise) as url:
        endpoint = Endpoint(url, "annotator")
        questions = list(build_questions(pairs[:count], QuestionFormat(load_taxonomy("paper-en")), endpoint))
        with contextlib.closing(AnswerStore(root / f"{noise}.sqlite")) as store:
            run = ask(questions, endpoint, store, concurrency=IN_FLIGHT)
            assert run.answered + run.known == len(questions), run
            labels = collect_labels(questions, store, "annotator")
    gold = [gold_group(group) for group in groups]
    single_task = [dataclasses.replace(label, task="all") for label in labels]
    (total,) = [row for row in label_quality(single_task, gold) if row.capability == "all capabilities"]
    row: dict[str, Any] = {"noise": noise, "calls": 2 * len(labels), "consistency": total.consistency}
    row |= {"one order": total.agreement_one, "hard, kept pairs": total.agreement_both}
    kept = sum(label.consistent for label in labels) / len(labels)
    row |= {"kept": kept, "hard, all pairs": hard_agreement(labels, gold), "soft, all pairs": total.agreement_mean}
    write_labels(root / f"{noise}.parquet", labels)
    for kind in KINDS:
        settings = {"capability_labels": (str(root / f"{noise}.parquet"),), "soft_labels": kind == "soft"}
        row[f"experts, {kind}"] = expert_accuracy(config, root / f"{noise}-{kind}", settings)
    row = {name: round(value, 4) for name, value in row.items()}
    print(row, flush=True)
    return row


def hard_agreement(labels: list[CapabilityLabel], gold: Sequence[Group]) -> float:
    """Return the agreement on all pairs that gold orders; pairs that are left out count half, as a guess would."""
    by_id = {group.id: group for group in gold}
    agreements = []
    for label in labels:
        grades = by_id[label.group].capabilities[label.capability]
        difference = (grades[label.first] or 0) - (grades[label.second] or 0)  # gold grades are never None
        if difference:
            p = label.hard if label.consistent else 0.5
            agreements.append(0.5 if p is None or p == 0.5 else float((p > 0.5) == (difference > 0)))
    return statistics.fmean(agreements)


def expert_accuracy(config: Config, output: Path, labels: dict[str, Any]) -> float:
    """Return the experts' accuracy on gold labels of held-out prompts, averaged over all capabilities."""
    data = config.data.model_copy(update={**labels, "human_labels": not labels})
    run = train(config.model_copy(update={"output": str(output), "data": data}))
    results = evaluate(run.model, load_splits(config).test, config, command="labels", cache=run.cache)
    return statistics.fmean(e.value for task in results.capabilities.values() for e in task.values())


# --- the judge -----------------------------------------------------------------------------------------------------


class Annotator:
    """The opinion of a judge that observes the gold grades with noise."""

    def __init__(self, groups: Sequence[Group], noise: float) -> None:
        self.noise = noise
        self.above: dict[tuple[str, str], dict[str, float]] = {}
        for group in map(gold_group, groups):
            for i, j in itertools.permutations(range(len(group.responses)), 2):
                above = {name: (grades[i] or 0) - (grades[j] or 0) for name, grades in group.capabilities.items()}
                self.above[group.responses[i], group.responses[j]] = above

    def __call__(self, capability: str, first: str, second: str) -> float:
        logit = self.above[first, second][capability] / SPREAD
        low, high = sorted((first, second))
        logit += (1 if first == low else -1) * self.noise * normal(capability, low, high)
        logit += self.noise / 2 * normal(capability, first, second, "order")
        return min(0.99, max(0.01, 1 / (1 + math.exp(-max(-30.0, min(30.0, logit)))) + BIAS))


def normal(*parts: str) -> float:
    """Return a standard normal number that depends on the texts only."""
    return random.Random(hashlib.sha256("\0".join(parts).encode()).digest()).gauss(0, 1)


@contextlib.contextmanager
def served(groups: Sequence[Group], noise: float) -> Iterator[str]:
    """Run a judge in another process and yield its URL."""
    context = multiprocessing.get_context("fork")
    address: Any = context.Queue()
    process = context.Process(target=_serve, args=(groups, noise, address), daemon=True)
    process.start()
    try:
        yield address.get(timeout=60)
    finally:
        process.kill()
        process.join()


def _serve(groups: Sequence[Group], noise: float, address: Any) -> None:
    with FakeJudge(opinion=Annotator(groups, noise)) as judge:
        address.put(judge.url)
        time.sleep(3600)


if __name__ == "__main__":
    main()
