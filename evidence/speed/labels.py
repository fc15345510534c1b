"""Measure what labels of a judge of known quality are worth, and labeling throughput, with a fake judge.

The judge's opinion of a pair is the difference of the testbed's gold grades, in logits, plus noise (equal in both
orders) and noise per order; then the response shown first gains 0.2 in probability. The judge writes the more likely
letter and returns the probabilities. The same calls give soft labels (mean of both orders' probabilities) and hard
labels (both orders agree, other pairs are left out). Both train the experts of the demo's model, tested on gold.

PYTHONPATH=tests python -m evidence.speed.labels    writes results/labels.json and docs/labels.svg
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from fake_judge import FakeJudge

from dmoerm.config import Config, load_config
from dmoerm.data.splits import load_splits
from dmoerm.evaluation import evaluate
from dmoerm.labeling.collect import collect_labels
from dmoerm.labeling.prompt import Token
from dmoerm.labeling.quality import label_quality
from dmoerm.labeling.questions import Endpoint, Question, QuestionFormat, all_pairs, build_questions
from dmoerm.labeling.runner import RunLimits, ask
from dmoerm.labeling.store import AnswerStore, JudgeAnswer
from dmoerm.labels import CapabilityLabel, write_labels
from dmoerm.schema import Group
from dmoerm.taxonomy import load_taxonomy
from dmoerm.training import train
from evidence.measure import write
from evidence.testbed import gold_group

NOISE, BIAS = (0.5, 2.0, 4.0, 8.0), 0.2
SPREAD = 0.25  # a difference of one step of the five-point scale is one logit
PAIRS, IN_FLIGHT, DELAYS, CALLS = 500, 32, (0.1, 0.5), 1600
KINDS = ("soft", "hard")


def main() -> None:
    """Measure throughput, then quality by noise."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = load_config("demo", [f"output={root / 'run'}"])
        groups = load_splits(config).train
        speed = [throughput(groups, root, delay) for delay in DELAYS]
        rows_per_s = store_speed(root)
        print(speed, rows_per_s)
        people = expert_accuracy(config, root / "people", {})
        rows = [at_noise(noise, config, groups, root) for noise in NOISE]
    plot(rows, people)
    tables = {"Quality by the judge's noise": rows, "Throughput": speed}
    command, experts = "PYTHONPATH=tests python -m evidence.speed.labels", round(people, 4)
    write("labels", command, [], tables=tables, store_rows_per_s=rows_per_s, experts_on_people=experts, bias=BIAS)


def at_noise(noise: float, config: Config, groups: list[Group], root: Path) -> dict[str, Any]:
    """Measure one judge's labels against gold, and the experts trained on them."""
    with served(groups, noise) as url:
        labels = label_questions(shuffled_questions(groups, url, PAIRS), url, root / f"{noise}.sqlite")
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


def hard_agreement(labels: list[CapabilityLabel], gold: list[Group]) -> float:
    """Return the agreement on all pairs that gold orders; pairs that are left out count half, as a guess would."""
    by_id = {group.id: group for group in gold}
    agreements = []
    for label in labels:
        first, second = (by_id[label.group].capabilities[label.capability][i] for i in (label.first, label.second))
        if first != second:
            p = label.hard if label.consistent else 0.5
            agreements.append(0.5 if p in (None, 0.5) else float((p > 0.5) == (first > second)))
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

    def __init__(self, groups: list[Group], noise: float) -> None:
        self.noise = noise
        self.above: dict[tuple[str, str], dict[str, float]] = {}
        for group in map(gold_group, groups):
            for i, j in itertools.permutations(range(len(group.responses)), 2):
                above = {name: float(grades[i]) - float(grades[j]) for name, grades in group.capabilities.items()}
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
def served(groups: list[Group], noise: float, delay: float = 0.0) -> Iterator[str]:
    """Run a judge in another process and yield its URL."""
    context = multiprocessing.get_context("fork")
    address: Any = context.Queue()
    process = context.Process(target=_serve, args=(groups, noise, delay, address), daemon=True)
    process.start()
    try:
        yield address.get(timeout=60)
    finally:
        process.kill()
        process.join()


def _serve(groups: list[Group], noise: float, delay: float, address: Any) -> None:
    with FakeJudge(delay=delay, opinion=Annotator(groups, noise)) as judge:
        address.put(judge.url)
        time.sleep(3600)


def shuffled_questions(groups: list[Group], url: str, pairs: int) -> list[Question]:
    """Return the questions on a random sample of pairs."""
    question_format = QuestionFormat(load_taxonomy("paper-en"))
    shuffled = list(all_pairs(groups))
    random.Random(0).shuffle(shuffled)
    return list(build_questions(shuffled[:pairs], question_format, Endpoint(url, "annotator")))


def label_questions(questions: list[Question], url: str, path: Path) -> list[CapabilityLabel]:
    """Send all questions and return their labels."""
    store = AnswerStore(path)
    try:
        run = ask(questions, Endpoint(url, "annotator"), store, RunLimits(IN_FLIGHT))
        assert run.answered + run.known == len(questions), run
        return collect_labels(questions, store, "annotator")
    finally:
        store.close()


# --- speed ---------------------------------------------------------------------------------------------------------


def throughput(groups: list[Group], root: Path, delay: float) -> dict[str, Any]:
    """Compare calls per second with the limit that the judge's latency and the concurrency set."""
    with served(groups, 1.0, delay) as url:
        questions = shuffled_questions(groups, url, PAIRS)[:CALLS]
        start = time.perf_counter()
        label_questions(questions, url, root / f"speed-{delay}.sqlite")
        reached = len(questions) / (time.perf_counter() - start)
    allowed = IN_FLIGHT / delay
    figures = {"allowed, calls/s": allowed, "reached, calls/s": reached, "share": reached / allowed}
    return {"latency, s": delay, "in flight": IN_FLIGHT} | {name: round(value, 3) for name, value in figures.items()}


def store_speed(root: Path, rows: int = 5000) -> float:
    """Return the number of answers recorded per second, including claims."""
    store = AnswerStore(root / "rows.sqlite")
    tokens = tuple(Token(str(i), {str(i): 0.0}) for i in range(8))
    answer = JudgeAnswer("answered", '{"logic": "A"}', tokens, None, 400, 8)
    messages = [{"role": "user", "content": "x" * 2000}]
    start = time.perf_counter()
    for i in range(rows):
        assert store.claim(str(i))
        store.put(str(i), "judge", {"group": "g"}, messages, answer)
    seconds = time.perf_counter() - start
    store.close()
    return round(rows / seconds)


def plot(rows: list[dict[str, Any]], people: float) -> None:
    """Plot agreement of the labels and accuracy of the experts against the judge's noise."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    noise = [row["noise"] for row in rows]
    for name, style in (("one order", ":"), ("hard, all pairs", "--"), ("soft, all pairs", "-")):
        axes[0].plot(noise, [row[name] for row in rows], style, marker="o", label=name)
    for kind, style in (("hard", "--"), ("soft", "-")):
        accuracy = [row[f"experts, {kind}"] for row in rows]
        axes[1].plot([row["soft, all pairs"] for row in rows], accuracy, style, marker="o", label=kind)
    axes[1].axhline(people, color="black", linewidth=0.8, linestyle=":", label="simulated people's grades")
    axes[0].set(xlabel="the judge's noise, logits", ylabel="labels: agreement with gold", xscale="log")
    axes[1].set(xlabel="labels: agreement with gold (soft)", ylabel="experts: accuracy on gold")
    for ax in axes:
        ax.legend(frameon=False)
    figure.savefig(Path(__file__).parents[1] / "docs" / "labels.svg")


if __name__ == "__main__":
    main()
