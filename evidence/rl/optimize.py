"""A run of policy optimization: TRL's trainer, checkpoints and periodic measurements.

In the run's folder: `settings.json`, `scale.json`, `points.json` (grows), `samples/<step>.jsonl` (the responses),
`checkpoints/` (removed at the end), `trajectory.json` (written at the end).
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from dmoerm.errors import ConfigError
from dmoerm.io.paths import write_file
from dmoerm.model.loading import default_device
from dmoerm.training.steps import Progress
from evidence.rl.measuring import Meter, Trajectory
from evidence.rl.policy import RLConfig, last_checkpoint, load_policy, render, uses_bf16
from evidence.rl.sampling import (
    Reward,
    RLPrompt,
    Scale,
    TRLReward,
    isolated_randomness,
    measure_scale,
    raw_rewards,
    sample,
)
from evidence.testbed import TASKS
from evidence.testbed import prompts as testbed_items

_WARMUP = 10
_FIXED_SEED = 20240501  # of the held-out prompts and the samples of the scale, which are the same for every run


def draw_prompts(per_task: int, seed: int = 0, skip: int = 0) -> list[RLPrompt]:
    """Draw `per_task` prompts of each testbed task, after the first `skip`. Raises `DataError` if a task has fewer."""
    return [RLPrompt(task, i.prompt) for task in TASKS for i in testbed_items(task, skip + per_task, seed)[skip:]]


def optimize(
    policy: Path,
    reward: Reward,
    prompts: Sequence[RLPrompt],
    settings: RLConfig,
    folder: Path,
    *,
    method: str = "reward",
    depends_on: str = "",
    progress: Progress | None = None,
) -> Trajectory:
    """Optimize a policy against a reward and measure proxy, gold and KL along the way.

    A stopped run resumes from its last checkpoint; a finished run is loaded.

    Args:
        policy: the folder of the initial policy, which is not changed.
        reward: the proxy. It never receives an empty response.
        prompts: distinct prompts; `settings.held_out` of them are held out, the policy is trained on the others.
        folder: the run's folder.
        method: the reward's name in the trajectory.
        depends_on: a description of the reward model's training; a stored run with another one is refused.
    """
    try:
        from evidence.rl.trainers import TRAINERS
    except ImportError:
        raise ConfigError(
            "policy optimization needs TRL, which is not installed; run pip install --group evidence in dmoerm's folder"
        ) from None
    progress, name = progress or Progress(quiet=True), f"{method}, beta {settings.beta:g}, seed {settings.seed}"
    inputs = hashlib.sha256(repr([list(prompts), depends_on]).encode()).hexdigest()[:32]
    _claim(folder, policy, settings, method, inputs)
    if (folder / "trajectory.json").is_file():
        progress.skip(name)
        return Trajectory.model_validate_json((folder / "trajectory.json").read_bytes())
    train, held_out = _split(prompts, settings.held_out)
    model, tokenizer = load_policy(policy)
    model = model.to(default_device())
    scale = _scale(model, tokenizer, reward, train, settings, folder)
    end: Any = tokenizer.eos_token_id
    proxy = TRLReward(reward, train, scale, end, settings)
    meter = Meter(policy, tokenizer, reward, held_out, scale, settings, folder)
    with progress.step(name):
        _run(model, tokenizer, proxy, meter, progress, *TRAINERS[settings.algorithm])
    trajectory = Trajectory(
        method=method,
        parameters=sum(p.numel() for p in model.parameters()),
        settings=settings,
        points=tuple(meter.points),
    )
    write_file(folder / "trajectory.json", trajectory.model_dump_json(indent=1) + "\n")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return trajectory


def _claim(folder: Path, policy: Path, settings: RLConfig, method: str, inputs: str) -> None:
    """Write the settings, or compare them with the stored ones; `inputs` is a digest of prompts and reward model."""
    requested = {
        "method": method,
        "policy": policy.name,
        "inputs": inputs,
        "settings": settings.model_dump(mode="json"),
    }
    file = folder / "settings.json"
    if file.is_file() and (stored := json.loads(file.read_text(encoding="utf-8"))) != requested:
        old, new = stored | stored["settings"], requested | requested["settings"]
        name = next(name for name in {**new, **old} if name != "settings" and old.get(name) != new.get(name))
        raise ConfigError(
            f"{folder}: contains a run with {name} {old.get(name)!r}, not {new.get(name)!r}; use another folder"
        )
    write_file(file, json.dumps(requested, indent=1) + "\n")


def _split(prompts: Sequence[RLPrompt], held_out: int) -> tuple[list[RLPrompt], list[RLPrompt]]:
    """Split into training and held-out prompts, with tasks evenly in both; the split is the same for every run."""
    if len(prompts) <= held_out:
        raise ConfigError(f"held_out: {held_out} of {len(prompts)} prompts leave none for training; add prompts")
    shuffled = random.Random(_FIXED_SEED).sample(list(prompts), len(prompts))
    seen: Counter[str | None] = Counter()
    positions = []
    for prompt in shuffled:
        positions.append(seen[prompt.task])
        seen[prompt.task] += 1
    interleaved = [shuffled[i] for i in sorted(range(len(shuffled)), key=positions.__getitem__)]  # tasks alternate
    return interleaved[held_out:], interleaved[:held_out]


def _scale(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    train: Sequence[RLPrompt],
    settings: RLConfig,
    folder: Path,
) -> Scale:
    """Measure the scale on the initial policy's samples, or read it; the samples are the same for every run."""
    file = folder / "scale.json"
    if file.is_file():
        return Scale.model_validate_json(file.read_text(encoding="utf-8"))
    prompts, count = train[: settings.scale_prompts], settings.generations
    with isolated_randomness(_FIXED_SEED):
        samples = sample(model, tokenizer, [render(p.prompt) for p in prompts], count, settings)
    by_sample = [prompt for prompt in prompts for _ in range(count)]
    scale = measure_scale(raw_rewards(reward, by_sample, [s.text for s in samples], 0), count)
    write_file(file, scale.model_dump_json(indent=1) + "\n")
    return scale


def _run(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    reward: TRLReward,
    meter: Meter,
    progress: Progress,
    trainer_class: type[Any],
    config_class: type[Any],
) -> None:
    """Train from the last checkpoint or from the start, up to the last measurement."""
    settings, checkpoints = meter.settings, meter.folder / "checkpoints"
    checkpoint = last_checkpoint(checkpoints)
    if not meter.resume(int(checkpoint.rsplit("-", 1)[1]) // settings.updates if checkpoint else 0):
        progress.show(meter.measure(model, 0))
    if meter.points[-1].step == settings.steps:
        return
    rng, order = random.Random(settings.seed), list[int]()  # one permutation of all prompts after another
    while len(order) < settings.steps * settings.prompts_per_step:
        order += rng.sample(range(len(reward.prompts)), len(reward.prompts))
    order = order[: settings.steps * settings.prompts_per_step]
    rows = {"prompt": [render(reward.prompts[i].prompt) for i in order], "prompt_index": order}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer_class(
            model=model,
            reward_funcs=reward,
            args=config_class(**_arguments(settings, checkpoints)),
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer,
            callbacks=[_Measuring(meter, progress)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=checkpoint)


def _arguments(settings: RLConfig, checkpoints: Path) -> dict[str, Any]:
    return {
        "output_dir": str(checkpoints),
        "max_steps": settings.steps * settings.updates,
        "per_device_train_batch_size": settings.prompts_per_step * settings.generations,
        "num_generations": settings.generations,
        "num_iterations": settings.updates,
        "max_completion_length": settings.max_new_tokens,
        "temperature": settings.temperature,
        "beta": settings.beta,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": min(_WARMUP, settings.steps // 10) * settings.updates,
        "shuffle_dataset": False,  # the rows are already in order, so that a stopped run resumes at the next row
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "bf16": uses_bf16(settings.bf16),
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every * settings.updates,
        "save_total_limit": 1,
        "logging_steps": settings.measure_every * settings.updates,
        "seed": settings.seed,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
    }


class _Measuring(TrainerCallback):
    """Measures the policy when a measurement is due, before the checkpoint of the same step is written."""

    def __init__(self, meter: Meter, progress: Progress) -> None:
        self.meter, self.progress = meter, progress

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.progress.count(state.global_step, state.max_steps)
        settings = self.meter.settings
        step, unfinished = divmod(state.global_step, settings.updates)
        if not unfinished and (step % settings.measure_every == 0 or step == settings.steps):
            self.progress.show(self.meter.measure(model, step))
