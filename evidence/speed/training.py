"""Compare phase 2 with TRL: five experts together on cached activations, or one capability at a time on whole texts.

    python -m evidence.speed.training          prints the rows and writes results/training.json
    python -m evidence.speed.training steps    measures only the steps; the rows of the epochs are kept
    python -m evidence.speed.training epochs   measures only the epochs; the rows of the steps are kept

Both train a LoRA (rank 16, q and v of the last 6 layers) and a linear head on the last token's state, with bfloat16
passes and float32 weights, on the same token ids and the same pairs, with the same number of optimizer steps and
warm-up. `RewardTrainer` gets the pairs of one capability at a time; its gradient checkpointing is off, which makes it
faster.

    steps    one optimizer step, both ways in turns, on one group of dialogue or four groups of rag_answer; and three
             epochs over both files extrapolated from that rate, with the time to fill dmoerm's cache
    epochs   three epochs, once, and the accuracy of both on held-out pairs. 20 groups per task to train on and 30 held
             out; two of dialogue's responses for training and three for the test, as TRL would need hours otherwise.
             Each takes the learning rate with the lower loss on 10 other groups; its time is that of this rate

The data are those of docs/data.md, in the folder DMOERM_DATA.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from dmoerm.config import Config, load_config
from dmoerm.data.readers import read_groups
from dmoerm.data.splits import load_splits
from dmoerm.evaluation.metrics import PairCounts, compare, count_pairs
from dmoerm.model.backbone import bundled_backbone
from dmoerm.model.batching import pad
from dmoerm.model.packing import pack
from dmoerm.schema import Group
from dmoerm.taxonomy import Taxonomy
from dmoerm.training.batches import PreferenceExample
from dmoerm.training.examples import examples_of
from dmoerm.training.phases import phase2
from dmoerm.training.progress import Progress
from dmoerm.training.run import prepare
from dmoerm.training.steps import Run, Training
from evidence.measure import RESULTS, Row, interleaved, row, write

FILES = {"dialogue": "topical_chat.jsonl", "rag_answer": "cragc_pairs.jsonl"}
BATCH = {"dialogue": 1, "rag_answer": 4}  # groups per step
GROUPS = 40
K, RATES, EPOCHS, RUNS, STEPS = 5, (1e-4, 5e-4, 2e-3), 3, 5, 1
EPOCH_GROUPS, VALIDATION = 60, 10


@dataclass(frozen=True)
class Work:
    """One task's run, and the examples for training and test."""

    run: Run
    task: str
    train: Sequence[PreferenceExample]
    test: Sequence[PreferenceExample]
    rate: float = RATES[0]

    @property
    def capabilities(self) -> list[str]:
        return list(self.run.model.task_model(self.task).experts.capabilities)


def main() -> None:
    """Measure both tasks: steps and epochs, or only steps."""
    folder = Path(os.environ.get("DMOERM_DATA", "."))
    missing = [file for file in FILES.values() if not (folder / file).exists()]
    if missing:
        print(f"skipped: {', '.join(missing)} not in {folder}; set DMOERM_DATA (docs/data.md)")
        return
    only = sys.argv[1] if sys.argv[1:] else None
    before = json.loads((RESULTS / "training.json").read_text(encoding="utf-8")) if only else {}
    if only == "epochs":
        rows = [r for r in before["rows"] if "epochs" not in r["work"]]
    else:
        rows = [r for task, file in FILES.items() for r in all_steps(task, folder / file)]
        times = [sum(r[side] for r in rows if "file" in r["work"]) for side in ("ours_s", "peer_s")]
        rows.append(row("phase2_both_files_at_that_rate", "trl", *times, RUNS))
    if only == "steps":
        rows += [r for r in before["rows"] if "epochs" in r["work"]]
        more = {name: before[name] for name in ("accuracy", "difference", "rates") if name in before}
    else:
        epoch_rows, more = all_epochs()
        rows += epoch_rows
    write("training", "python -m evidence.speed.training", rows, **more)


def all_steps(task: str, file: Path) -> list[Row]:
    """Measure a step; extrapolate three epochs over the whole file from it, including the time to fill the cache."""
    with tempfile.TemporaryDirectory() as root:
        work = prepared(task, Path(root), groups=GROUPS)
        step = steps(work, Path(root))
        count = len(read_groups(file).groups)
        in_all = EPOCHS * count / BATCH[task]
        ours_s = in_all * step["ours_s"] + count * fill_seconds(work)
    return [step, row(f"phase2_{task}_file_at_that_rate", "trl", ours_s, in_all * step["peer_s"], RUNS)]


def all_epochs() -> tuple[list[Row], dict[str, Any]]:
    """Train three epochs of each task; return the rows and the accuracy of both on held-out pairs."""
    rows: list[Row] = []
    counts: dict[str, PairCounts] = {}
    rates: dict[str, dict[str, float]] = {}
    for task in FILES:
        with tempfile.TemporaryDirectory() as root:
            work = prepared(task, Path(root), groups=EPOCH_GROUPS, responses=2)
            ours_s, peer_s, task_counts, chosen = epochs(work, Path(root))
            rows.append(row(f"phase2_{task}_epochs", "trl", ours_s, peer_s, 1))
            counts |= task_counts
            rates[task] = chosen
    estimates, paired = compare(counts)
    accuracy = {name: estimate["mean"].model_dump() for name, estimate in estimates.items()}
    return rows, {"accuracy": accuracy, "difference": paired["dmoerm - trl"]["mean"].model_dump(), "rates": rates}


def prepared(task: str, folder: Path, groups: int, responses: int | None = None) -> Work:
    """Prepare the run of a task with K capabilities, with an empty cache."""
    config = settings(task, folder, groups)
    data = load_splits(config)
    names = list(data.taxonomy.tasks[task].capabilities)[:K]
    entry = data.taxonomy.tasks[task]
    entry = entry.model_copy(update={"capabilities": {name: entry.capabilities[name] for name in names}})
    taxonomy = Taxonomy(name="bench", language="en", tasks={task: entry})
    run = prepare(config, taxonomy, folder, Progress(quiet=True))
    train = [cut(group, names, responses) for group in data.train]
    return Work(
        run, task, examples_of(run, train), examples_of(run, [cut(g, names, responses and 3) for g in data.test])
    )


def settings(task: str, folder: Path, groups: int) -> Config:
    """Return the run's settings."""
    step = f"epochs: {EPOCHS}, learning_rate: {RATES[0]}, evaluations: 1"
    return load_config(
        None,
        [
            f"data.files=[{FILES[task]}]",
            f"data.groups_per_task={groups}",
            "data.test_fraction=0.5",
            "encoding={pooling: last, truncation: keep_both}",
            "backbone.branch_layer=24",
            f"cache={folder / 'cache'}",
            f"training={{batch_groups: {BATCH[task]}, metric_for_best_model: end}}",
            f"phase2={{{step}, lora: {{rank: 16, alpha: 16, dropout: 0}}}}",
        ],
    )


def cut(group: Group, names: Sequence[str], responses: int | None = None) -> Group:
    """Return the group with only these capabilities and its first `responses` responses."""
    grades = {name: group.capabilities[name][:responses] for name in names if name in group.capabilities}
    scores = group.scores and group.scores[:responses]
    return group.model_copy(
        update={"responses": group.responses[:responses], "capabilities": grades, "scores": scores, "annotators": {}}
    )


def steps(work: Work, folder: Path) -> Row:
    """Time the same few optimizer steps both ways, with cached activations."""
    labeled = [e for e in work.train if all(map(e.pairs.get, work.capabilities))] or work.train
    work = dataclasses.replace(work, train=labeled[: STEPS * BATCH[work.task]])
    work.run.cache.fill([e.encoded for e in work.train])
    fresh = (folder / f"steps{i}" for i in itertools.count())
    trainers = trl_trainers(work, STEPS, 1, folder)

    def peer() -> None:
        for trainer in trainers.values():
            trainer.train()

    ours_s, peer_s = interleaved([lambda: train(work, next(fresh), STEPS), peer], RUNS)
    return row(f"phase2_{work.task}_steps", "trl", ours_s, peer_s, RUNS)


def fill_seconds(work: Work) -> float:
    """Return the seconds to compute one group's activations, measured on the test part, which is not cached yet."""
    start = time.perf_counter()
    work.run.cache.fill([e.encoded for e in work.test])
    return (time.perf_counter() - start) / len(work.test)


def train(work: Work, folder: Path, steps: int | None = None) -> None:
    """Run phase 2 in a new folder, including evaluations and checkpoints, which TRL does not run."""
    phase = work.run.config.phase2.model_copy(update={"learning_rate": work.rate} | ({"epochs": 1.0} if steps else {}))
    run = dataclasses.replace(work.run, folder=folder, config=work.run.config.model_copy(update={"phase2": phase}))
    validation = [max(work.train, key=lambda e: (sum(map(bool, e.pairs.values())), -e.encoded.tokens))]
    phase2(Training(run, work.train, validation), work.task)


def epochs(work: Work, folder: Path) -> tuple[float, float, dict[str, PairCounts], dict[str, float]]:
    """Train three epochs both ways at each rate, and keep the rate of each with the lowest validation loss.

    Returns:
        The seconds of both, ours with the trunk's activations; the held-out counts; the rates.
    """
    validation, train_part = work.train[:VALIDATION], work.train[VALIDATION:]
    work = dataclasses.replace(work, train=train_part)
    start = time.perf_counter()
    work.run.cache.fill([e.encoded for e in work.train])
    fill_s = time.perf_counter() - start
    examples = [*validation, *work.test]
    work.run.cache.fill([e.encoded for e in examples])
    count = EPOCHS * -(-len(work.train) // BATCH[work.task])
    best: dict[str, tuple[float, float, float, dict[str, np.ndarray]]] = {}
    for rate in RATES:
        at_rate = dataclasses.replace(work, rate=rate)
        start = time.perf_counter()
        train(at_rate, folder / f"ours{rate}")
        ours_s = time.perf_counter() - start
        trainers = trl_trainers(at_rate, count, EPOCHS, folder / f"trl{rate}")
        start = time.perf_counter()
        for trainer in trainers.values():
            trainer.train()
        trained = {"dmoerm": (fill_s + ours_s, our_scores(work, examples))}
        trained["trl"] = time.perf_counter() - start, trl_scores(trainers, examples)
        for name, (seconds, scores) in trained.items():
            loss = pair_loss(work, validation, scores)
            print(f"{work.task}, {name}, rate {rate}: {seconds:.0f} s, validation loss {loss:.3f}", flush=True)
            if name not in best or loss < best[name][0]:
                best[name] = loss, rate, seconds, scores
    counts = held_out(work, {name: scores for name, (*_, scores) in best.items()})
    rates = {name: rate for name, (_, rate, *_) in best.items()}
    return best["dmoerm"][2], best["trl"][2], counts, rates


def pair_loss(work: Work, examples: Sequence[PreferenceExample], scores: dict[str, np.ndarray]) -> float:
    """Return the mean of −log σ(margin) over the pairs of all capabilities."""
    margins = [
        scores[e.key][i][pair.better] - scores[e.key][i][pair.worse]
        for e in examples
        for i, name in enumerate(work.capabilities)
        for pair in e.pairs.get(name, ())
    ]
    return float(np.logaddexp(0, -np.array(margins)).mean())


def held_out(work: Work, scores: dict[str, dict[str, np.ndarray]]) -> dict[str, PairCounts]:
    """Return task and capability → the held-out pairs that each method orders correctly."""
    counts_by_capability = {}
    for i, name in enumerate(work.capabilities):
        rows = [(e.prompt, e.pairs.get(name, ()), {m: s[e.key][i] for m, s in scores.items()}) for e in work.test]
        if counts := count_pairs(rows):
            counts_by_capability[f"{work.task}/{name}"] = counts
    return counts_by_capability


@torch.inference_mode()
def our_scores(work: Work, examples: Sequence[PreferenceExample]) -> dict[str, np.ndarray]:
    """Return each group's capability scores (k, N)."""
    experts = work.run.model.task_model(work.task).experts
    scores = {}
    for example in examples:
        z = experts.embed(pack([work.run.cache.states(example.encoded)]), None)
        scores[example.key] = experts.score(z).T.numpy()
    return scores


@torch.inference_mode()
def trl_scores(trainers: dict[str, RewardTrainer], examples: Sequence[PreferenceExample]) -> dict[str, np.ndarray]:
    """Return each group's capability scores (k, N)."""
    models: list[Any] = [trainer.model for trainer in trainers.values()]
    scores = {}
    for example in examples:
        ids, mask = pad([torch.tensor(row) for row in whole(example)])
        with torch.autocast("cpu", torch.bfloat16):
            rows = [model.eval()(input_ids=ids, attention_mask=mask.long()).logits[:, 0] for model in models]
        scores[example.key] = torch.stack(rows).float().numpy()
    return scores


def whole(example: PreferenceExample) -> list[list[int]]:
    """Return prompt and response as one sequence, for each response."""
    return [[*example.encoded.prompt, *ids] for ids in example.encoded.responses]


def trl_trainers(work: Work, steps: int, epochs: int, folder: Path) -> dict[str, RewardTrainer]:
    """Return capability → a trainer whose `steps` batches make up `epochs` passes over its pairs."""
    trainers = {}
    for name in work.capabilities:
        texts = [(whole(e), e.pairs.get(name, ())) for e in work.train]
        pairs = [{"chosen_ids": ids[p.better], "rejected_ids": ids[p.worse]} for ids, ps in texts for p in ps]
        trainers[name] = trl_trainer(pairs, max(round(len(pairs) * epochs / steps), 1), steps, folder / name, work.rate)
    return trainers


def trl_trainer(pairs: list[dict[str, list[int]]], batch: int, steps: int, folder: Path, rate: float) -> RewardTrainer:
    """Return TRL's trainer for one capability; its trained weights are float32."""
    path = str(bundled_backbone())
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.bfloat16)
    torch.nn.init.normal_(model.score.weight, std=1e-3)  # as dmoerm's heads; the default starts at a loss of 1.9
    model.config.pad_token_id = tokenizer.pad_token_id or 0
    arguments = RewardConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=rate,
        weight_decay=0.01,
        warmup_steps=round(0.1 * steps),
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=False,
        max_length=None,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=16,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=r".*\.layers\.(24|25|26|27|28|29)\.self_attn\.(q_proj|v_proj)",
        modules_to_save=["score"],
    )
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=lora,
    )
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return trainer


if __name__ == "__main__":
    main()
