"""Compare training of the recipe `finetune` with TRL's `RewardTrainer`: the same layers, groups and pairs.

    python -m evidence.speed.training          prints the rows and writes results/training.json

Both train all weights of the last 6 of SmolLM2's 30 layers and a head, with bfloat16 passes and float32 weights.
dmoerm caches the states of the lower 24 layers, which TRL runs in every step, without gradients; its gradient
checkpointing is off, which makes it faster. A step on one group of dialogue (six responses, 15 pairs), or three steps
on four groups of rag_answer (two responses each), are timed both ways in turns; two epochs over the whole files are
extrapolated from them, with the time to fill the cache. docs/data.md describes the data, which are in the folder
DMOERM_DATA.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
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
from dmoerm.model.loading import prepare_process
from dmoerm.training.examples import PreferenceExample
from dmoerm.training.phases import phase1
from dmoerm.training.run import prepare
from dmoerm.training.steps import Progress, Run, Training
from evidence.measure import Row, interleaved, row, write
from evidence.speed.growth import in_process, timed
from evidence.speed.scoring import seconds_of_layer

FILES = {"dialogue": "topical_chat.jsonl", "rag_answer": "cragc_pairs.jsonl"}
BATCH = {"dialogue": 1, "rag_answer": 4}  # groups per step
STEPS = {"dialogue": 1, "rag_answer": 3}
GROUPS, BRANCH_LAYER = 40, 24
RATE, EPOCHS, RUNS = 3e-4, 2, 2


@dataclass(frozen=True)
class Work:
    """One task's run, the examples of the steps, and examples that are not cached yet."""

    run: Run
    task: str
    train: Sequence[PreferenceExample]
    other: Sequence[PreferenceExample]


def main() -> None:
    """Measure both tasks."""
    prepare_process()
    folder = Path(os.environ.get("DMOERM_DATA", "."))
    missing = [file for file in FILES.values() if not (folder / file).exists()]
    if missing:
        print(f"skipped: {', '.join(missing)} not in {folder}; set DMOERM_DATA (docs/data.md)")
        return
    rows, shares = list[Row](), dict[str, float]()
    for task, file in FILES.items():
        with tempfile.TemporaryDirectory() as root:
            work = prepared(task, Path(root))
            both, count = works(work, Path(root)), len(read_groups(str(folder / file)).groups)
            ours_s, peer_s = interleaved([both["ours"], both["trl"]], RUNS)
            rows.append(row(f"finetune_{task}_steps", "trl", ours_s, peer_s, RUNS))
            fill, shares[task] = fill_seconds(work)
            steps = EPOCHS * count / BATCH[task] / STEPS[task]
            rows.append(row(f"finetune_{task}_file", "trl", count * fill + steps * ours_s, steps * peer_s, RUNS))
    memory = {f"{task}_{side}": in_process(step_memory, task, side) for task in FILES for side in ("ours", "trl")}
    write("training", "python -m evidence.speed.training", rows, trunk_share_of_machine=shares, step_memory_mib=memory)


def step_memory(task: str, side: str) -> float:
    """Return the peak memory of one side's steps in MiB."""
    prepare_process()
    with tempfile.TemporaryDirectory() as root:
        return timed(works(prepared(task, Path(root)), Path(root))[side], 1)["mib"]


def prepared(task: str, folder: Path) -> Work:
    """Prepare the run of a task, and fill the cache with the examples of the steps."""
    config = load_config(
        None,
        [
            "extends=finetune",
            f"data.files=[{FILES[task]}]",
            f"data.groups_per_task={GROUPS}",
            "data.test_fraction=0.5",
            f"backbone={{num_layers: 30, branch_layer: {BRANCH_LAYER}}}",
            f"cache={folder / 'cache'}",
            f"training.batch_groups={BATCH[task]}",
            f"phase1={{epochs: 1, learning_rate: {RATE}, evaluations: 1}}",
        ],
    )
    data = load_splits(config)
    run = prepare(config, data.taxonomy, folder, Progress(quiet=True))
    train = [example for example in run.examples(data.train) if example.pairs.get(None)][: STEPS[task] * BATCH[task]]
    run.cache.fill([example.encoded for example in train])
    return Work(run, task, train, run.examples(data.test))


def works(work: Work, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the same optimizer steps both ways; ours from cached states, with an evaluation and a checkpoint."""
    fresh = (folder / f"steps{i}" for i in itertools.count())
    validation = [max(work.train, key=lambda example: -example.encoded.tokens)]
    texts = [([[*e.encoded.prompt, *ids] for ids in e.encoded.responses], e.pairs[None]) for e in work.train]
    pairs = [{"chosen_ids": ids[p.better], "rejected_ids": ids[p.worse]} for ids, ps in texts for p in ps]
    steps = STEPS[work.task]
    settings = {"max_steps": steps, "per_device_train_batch_size": len(pairs) // steps, "learning_rate": RATE}
    trainer = trl_trainer(pairs, folder / "trl", None, torch.float32, warmup_steps=0, **settings)
    for name, weight in trainer.model.named_parameters():  # pyright: ignore[reportOptionalMemberAccess]
        layer = name.partition("layers.")[2].partition(".")[0]
        weight.requires_grad_(not name.endswith("embed_tokens.weight") and (not layer or int(layer) >= BRANCH_LAYER))

    def ours() -> None:
        phase1(Training(dataclasses.replace(work.run, folder=next(fresh)), work.train, validation), work.task)

    return {"ours": ours, "trl": trainer.train}


def fill_seconds(work: Work) -> tuple[float, float]:
    """Return the seconds to cache one group's states, and the matrix products' share of them at the machine's rate."""
    texts = [example.encoded for example in work.other]
    start = time.perf_counter()
    work.run.cache.fill(texts)
    seconds, tokens = time.perf_counter() - start, sum(text.tokens for text in texts)
    model = work.run.model
    dtype = getattr(torch, model.config.backbone["dtype"])
    share = BRANCH_LAYER * tokens * seconds_of_layer(model, tokens, dtype) / seconds
    return seconds / len(texts), round(share, 3)


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
