"""Compare phase 2 with TRL: five experts together on cached activations, or one capability at a time on whole texts.

    python -m evidence.speed.training          prints the rows and writes results/training.json

Both train a LoRA (rank 16, q and v of the last 6 layers) and a linear head on the last token's state, with bfloat16
passes and float32 weights, on the same token ids and the same pairs. `RewardTrainer` gets the pairs of one capability
at a time; its gradient checkpointing is off, which makes it faster. One optimizer step is timed both ways in turns, on
one group of dialogue or four groups of rag_answer; three epochs over both files are extrapolated from that rate, with
the time to fill dmoerm's cache. docs/data.md describes the data, which are in the folder DMOERM_DATA.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from dmoerm.config import load_config
from dmoerm.data.readers import read_groups
from dmoerm.data.splits import load_splits
from dmoerm.model.backbone import bundled_backbone
from dmoerm.schema import Group
from dmoerm.taxonomy import Taxonomy
from dmoerm.training.examples import PreferenceExample
from dmoerm.training.phases import phase2
from dmoerm.training.run import prepare
from dmoerm.training.steps import Progress, Run, Training
from evidence.measure import Row, interleaved, row, write

FILES = {"dialogue": "topical_chat.jsonl", "rag_answer": "cragc_pairs.jsonl"}
BATCH = {"dialogue": 1, "rag_answer": 4}  # groups per step
GROUPS = 40
K, RATE, EPOCHS, RUNS = 5, 1e-4, 3, 5
LORA = LoraConfig(
    task_type="SEQ_CLS",
    r=16,
    lora_alpha=16,
    lora_dropout=0.0,
    target_modules=r".*\.layers\.(24|25|26|27|28|29)\.self_attn\.(q_proj|v_proj)",
    modules_to_save=["score"],
)


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
    """Measure both tasks."""
    folder = Path(os.environ.get("DMOERM_DATA", "."))
    missing = [file for file in FILES.values() if not (folder / file).exists()]
    if missing:
        print(f"skipped: {', '.join(missing)} not in {folder}; set DMOERM_DATA (docs/data.md)")
        return
    rows = [r for task, file in FILES.items() for r in all_steps(task, folder / file)]
    ours_s, peer_s = (sum(r[side] for r in rows if "file" in r["work"]) for side in ("ours_s", "peer_s"))
    rows.append(row("phase2_both_files_at_that_rate", "trl", ours_s, peer_s, RUNS))
    write("training", "python -m evidence.speed.training", rows)


def all_steps(task: str, file: Path) -> list[Row]:
    """Measure a step; extrapolate three epochs over the whole file from it, including the time to fill the cache."""
    with tempfile.TemporaryDirectory() as root:
        work = prepared(task, Path(root))
        step = steps(work, Path(root))
        count = len(read_groups(file).groups)
        in_all = EPOCHS * count / BATCH[task]
        ours_s = in_all * step["ours_s"] + count * fill_seconds(work)
    return [step, row(f"phase2_{task}_file_at_that_rate", "trl", ours_s, in_all * step["peer_s"], RUNS)]


def prepared(task: str, folder: Path) -> Work:
    """Prepare the run of a task with K capabilities, with an empty cache."""
    config = load_config(
        None,
        [
            f"data.files=[{FILES[task]}]",
            f"data.groups_per_task={GROUPS}",
            "data.test_fraction=0.5",
            "encoding={pooling: last, truncation: keep_both}",
            "backbone.branch_layer=24",
            f"cache={folder / 'cache'}",
            f"training={{batch_groups: {BATCH[task]}, metric_for_best_model: end}}",
            f"phase2={{epochs: 1, learning_rate: {RATE}, evaluations: 1, lora: {{rank: 16, alpha: 16, dropout: 0}}}}",
        ],
    )
    data = load_splits(config)
    entry = data.taxonomy.tasks[task]
    names = list(entry.capabilities)[:K]
    entry = entry.model_copy(update={"capabilities": {name: entry.capabilities[name] for name in names}})
    run = prepare(config, Taxonomy(name="bench", language="en", tasks={task: entry}), folder, Progress(quiet=True))

    def examples(groups: Sequence[Group]) -> list[PreferenceExample]:
        rows = [{name: g.capabilities[name] for name in names if name in g.capabilities} for g in groups]
        cut = [g.model_copy(update={"capabilities": r, "annotators": {}}) for g, r in zip(groups, rows, strict=True)]
        return run.examples(cut)

    return Work(run, task, examples(data.train), examples(data.test))


def steps(work: Work, folder: Path) -> Row:
    """Time the same optimizer step both ways, with cached activations."""
    labeled = [e for e in work.train if all(map(e.pairs.get, work.capabilities))] or work.train
    work = dataclasses.replace(work, train=labeled[: BATCH[work.task]])
    work.run.cache.fill([e.encoded for e in work.train])
    fresh = (folder / f"steps{i}" for i in itertools.count())
    trainers = trl_trainers(work, folder)

    def peer() -> None:
        for trainer in trainers.values():
            trainer.train()

    ours_s, peer_s = interleaved([lambda: train(work, next(fresh)), peer], RUNS)
    return row(f"phase2_{work.task}_steps", "trl", ours_s, peer_s, RUNS)


def fill_seconds(work: Work) -> float:
    """Return the seconds to compute one group's activations, measured on the test part, which is not cached yet."""
    start = time.perf_counter()
    work.run.cache.fill([e.encoded for e in work.test])
    return (time.perf_counter() - start) / len(work.test)


def train(work: Work, folder: Path) -> None:
    """Run phase 2 in a new folder, including evaluations and checkpoints, which TRL does not run."""
    run = dataclasses.replace(work.run, folder=folder)
    validation = [max(work.train, key=lambda e: (sum(map(bool, e.pairs.values())), -e.encoded.tokens))]
    phase2(Training(run, work.train, validation), work.task)


def whole(example: PreferenceExample) -> list[list[int]]:
    """Return prompt and response as one sequence, for each response."""
    return [[*example.encoded.prompt, *ids] for ids in example.encoded.responses]


def trl_trainers(work: Work, folder: Path) -> dict[str, RewardTrainer]:
    """Return capability → a trainer of one step on all its pairs."""
    trainers = {}
    for name in work.capabilities:
        texts = [(whole(e), e.pairs.get(name, ())) for e in work.train]
        pairs = [{"chosen_ids": ids[p.better], "rejected_ids": ids[p.worse]} for ids, ps in texts for p in ps]
        size = max(len(pairs), 1)
        settings = {"max_steps": 1, "per_device_train_batch_size": size, "learning_rate": RATE, "weight_decay": 0.01}
        trainers[name] = trl_trainer(pairs, folder / name, LORA, warmup_steps=0, **settings)
    return trainers


def trl_trainer(
    pairs: list[dict[str, list[int]]],
    folder: Path,
    lora: LoraConfig | None,
    dtype: torch.dtype = torch.bfloat16,
    layers: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    **settings: Any,
) -> RewardTrainer:
    """Return TRL's trainer of the backbone on the processor, in bfloat16 passes; its trained weights are float32.

    Args:
        pairs: `chosen_ids` and `rejected_ids` of each.
        lora: None trains all weights.
        dtype: of the weights that are not trained.
        layers: number of layers of the backbone, from the first; None: all.
        settings: of `RewardConfig`.
    """
    path = str(bundled_backbone())
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=dtype)
    if layers:
        model.model.layers, model.config.num_hidden_layers = model.model.layers[:layers], layers
    torch.nn.init.normal_(model.score.weight, std=1e-3)  # as dmoerm's heads; the default starts at a loss of 1.9
    model.config.pad_token_id = tokenizer.pad_token_id or 0
    arguments = RewardConfig(
        output_dir=str(folder),
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=False,
        max_length=None,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **settings,
    )
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=list(callbacks),
    )
    assert trainer.model is not None
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return trainer


if __name__ == "__main__":
    main()
