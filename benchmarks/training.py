"""Compare phase 2 with TRL: five experts together on cached activations, or one capability at a time on whole texts.

    python benchmarks/training.py          prints the rows and writes results/training.json
    python benchmarks/training.py steps    measures only the steps; the rows of the epochs are kept

Both train a LoRA (rank 16, q and v of the last 6 layers) and a linear head on the last token's state, in bfloat16, on
the same token ids and the same pairs, with the same number of optimizer steps and the same learning rate.
`RewardTrainer` gets the pairs of one capability at a time; its gradient checkpointing is off, which makes it faster.

    steps    one optimizer step, both ways in turns, on one group of dialogue or four groups of rag_answer; and three
             epochs over both files extrapolated from that rate, with the time to fill dmoerm's cache
    epochs   three epochs, once, and the accuracy of both on held-out pairs. 40 groups per task, half of them held out;
             two of dialogue's responses for training and three for the test, because TRL would need hours otherwise

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
from measure import RESULTS, Row, interleaved, row, write
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from dmoerm.config import Config, load_config
from dmoerm.data.readers import read_groups
from dmoerm.data.splits import load_splits
from dmoerm.evaluation.accuracy import PairCounts, compare, count_pairs
from dmoerm.model.backbone import bundled_backbone
from dmoerm.model.batching import pad
from dmoerm.model.packing import pack
from dmoerm.schema import Group
from dmoerm.taxonomy import Taxonomy
from dmoerm.training.batches import PreferenceExample
from dmoerm.training.expert_step import phase2
from dmoerm.training.progress import Progress
from dmoerm.training.run import examples_of, prepare
from dmoerm.training.steps import Run, Training

FILES = {"dialogue": "topical_chat.jsonl", "rag_answer": "cragc_pairs.jsonl"}
BATCH = {"dialogue": 1, "rag_answer": 4}  # groups per step
GROUPS = 40
K, RATE, EPOCHS, RUNS, STEPS = 5, 5e-4, 3, 5, 1


@dataclass(frozen=True)
class Work:
    """One task's run, and the examples for training and test."""

    run: Run
    task: str
    train: Sequence[PreferenceExample]
    test: Sequence[PreferenceExample]

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
    rows = [r for task, file in FILES.items() for r in all_steps(task, folder / file)]
    times = [sum(r[side] for r in rows if "file" in r["work"]) for side in ("ours_s", "peer_s")]
    rows.append(row("phase2_both_files_at_that_rate", "trl", *times, RUNS))
    if sys.argv[1:] == ["steps"]:
        before = json.loads((RESULTS / "training.json").read_text(encoding="utf-8"))
        rows += [r for r in before["rows"] if "epochs" in r["work"]]
        more = {name: before[name] for name in ("accuracy", "difference")}
    else:
        epoch_rows, more = all_epochs()
        rows += epoch_rows
    write("training", "python benchmarks/training.py", rows, **more)


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
    for task in FILES:
        with tempfile.TemporaryDirectory() as root:
            ours_s, peer_s, task_counts = epochs(prepared(task, Path(root), groups=GROUPS, responses=2), Path(root))
            rows.append(row(f"phase2_{task}_epochs", "trl", ours_s, peer_s, 1))
            counts |= task_counts
    estimates, paired = compare(counts)
    accuracy = {name: estimate["mean"].model_dump() for name, estimate in estimates.items()}
    return rows, {"accuracy": accuracy, "difference": paired["dmoerm - trl"]["mean"].model_dump()}


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
    step = f"batch_groups: {BATCH[task]}, epochs: {EPOCHS}, learning_rate: {RATE}"
    step += ", metric_for_best_model: end, evaluations: 1"
    return load_config(
        None,
        [
            f"data.files=[{FILES[task]}]",
            f"data.groups_per_task={groups}",
            "data.test_fraction=0.5",
            "encoding={pooling: last, truncation: keep_both}",
            "backbone.branch_layer=24",
            f"cache={folder / 'cache'}",
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
    phase = work.run.config.phase2.model_copy(update={"steps": steps})
    run = dataclasses.replace(work.run, folder=folder, config=work.run.config.model_copy(update={"phase2": phase}))
    validation = [max(work.train, key=lambda e: (sum(map(bool, e.pairs.values())), -e.encoded.tokens))]
    phase2(Training(run, work.train, validation), work.task)


def epochs(work: Work, folder: Path) -> tuple[float, float, dict[str, PairCounts]]:
    """Time three epochs of dmoerm (with the trunk's activations) and of TRL; return both and the held-out counts."""
    start = time.perf_counter()
    work.run.cache.fill([e.encoded for e in work.train])
    train(work, folder / "ours")
    ours_s = time.perf_counter() - start
    count = EPOCHS * -(-len(work.train) // BATCH[work.task])
    trainers = trl_trainers(work, count, EPOCHS, folder)
    start = time.perf_counter()
    for trainer in trainers.values():
        trainer.train()
    return ours_s, time.perf_counter() - start, held_out(work, trainers)


def held_out(work: Work, trainers: dict[str, RewardTrainer]) -> dict[str, PairCounts]:
    """Return task and capability → the held-out pairs that each orders correctly."""
    ours = our_scores(work)
    counts_by_capability = {}
    for i, (name, trainer) in enumerate(trainers.items()):
        model: Any = trainer.model.eval()
        rows = []
        for e in work.test:
            scores = {"dmoerm": ours[e.key][i], "trl": trl_scores(model, e)}
            rows.append((e.prompt, e.pairs.get(name, ()), scores))
        if counts := count_pairs(rows):
            counts_by_capability[f"{work.task}/{name}"] = counts
    return counts_by_capability


@torch.inference_mode()
def our_scores(work: Work) -> dict[str, np.ndarray]:
    """Return each test group's capability scores (k, N)."""
    experts = work.run.model.task_model(work.task).experts
    work.run.cache.fill([e.encoded for e in work.test])
    scores = {}
    for example in work.test:
        z = experts.embed(pack([work.run.cache.states(example.encoded)]), None)
        scores[example.key] = experts.score(z).T.numpy()
    return scores


@torch.inference_mode()
def trl_scores(model: Any, example: PreferenceExample) -> np.ndarray:
    """Return the scores (N,) of one group by one capability's model."""
    ids, mask = pad([torch.tensor(row) for row in whole(example)])
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=ids, attention_mask=mask.long()).logits[:, 0].float().numpy()


def whole(example: PreferenceExample) -> list[list[int]]:
    """Return prompt and response as one sequence, for each response."""
    return [[*example.encoded.prompt, *ids] for ids in example.encoded.responses]


def trl_trainers(work: Work, steps: int, epochs: int, folder: Path) -> dict[str, RewardTrainer]:
    """Return capability → a trainer whose `steps` batches make up `epochs` passes over its pairs."""
    trainers = {}
    for name in work.capabilities:
        texts = [(whole(e), e.pairs.get(name, ())) for e in work.train]
        pairs = [{"chosen_ids": ids[p.better], "rejected_ids": ids[p.worse]} for ids, ps in texts for p in ps]
        trainers[name] = trl_trainer(pairs, max(round(len(pairs) * epochs / steps), 1), steps, folder / f"trl_{name}")
    return trainers


def trl_trainer(pairs: list[dict[str, list[int]]], batch: int, steps: int, folder: Path) -> RewardTrainer:
    """Return TRL's trainer for one capability."""
    path = str(bundled_backbone())
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.bfloat16)
    model.config.pad_token_id = tokenizer.pad_token_id or 0
    arguments = RewardConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=RATE,
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
    return RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=lora,
    )


if __name__ == "__main__":
    main()
