"""The model card: README.md of a model's folder, with the table that was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ..errors import ArtefactError
from ..evaluation.results import Results
from ..io.paths import write_file

_TAGS = ("reward-model", "mixture-of-experts", "rlhf", "preference")
_USE = """\
```python
import dmoerm

rm = dmoerm.DMoERM.from_pretrained("path/to/this/folder")
better, worse = rm.score("How are you?", ["Fine, thank you. And you?", "No."])
print(better.reward, better.task, better.capabilities, better.uncertainty)
print(better.win_probability(worse))
```

`transformers.AutoModelForSequenceClassification.from_pretrained` loads the folder too, after `import dmoerm`; its
logits are the rewards. `dmoerm serve path/to/this/folder` answers over HTTP; `dmoerm.Client` asks it as a model is
asked. Where the recipe trains adapters, every expert is a standard PEFT adapter under
`tasks/<task>/experts/<capability>`.
"""
_LIMITS = """\
* A reward is an estimate of what the people behind the training data prefer. It is no measure of truth or of safety.
* Rewards compare responses to one prompt. They are centred and scaled per task, so that between tasks they compare only
  roughly.
* Prompts unlike every task's training prompts are scored by the general model, or, where the router errs, by a task's
  experts who do not fit. The route's probabilities show how sure the router is, the uncertainty how far the experts
  disagree.
* A policy that is optimised hard against any reward model finds its errors. Watch an independent measure.
"""
_HOW = {
    "full": "all weights of each task's branch are trained",
    "lora": "each task's branch is trained through a LoRA that is merged into it",
    "frozen": "the branch stays as pretrained; heads alone are trained on its embeddings",
}


def write_card(model_dir: str | Path, results: Results) -> None:
    """Writes README.md of the model's folder, completely or not at all.

    Raises:
        ArtefactError: the folder holds no model, or the file cannot be written.
    """
    folder = Path(model_dir)
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tasks = dict(settings["tasks"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{folder}: is no dmoerm model, so it gets no card ({error})") from None
    write_file(folder / "README.md", card(results, tasks))


def card(results: Results, tasks: dict[str, list[str]]) -> str:
    """The card's text. `tasks`: task → its capabilities."""
    lines = "\n".join(f"* **{task}**: {', '.join(names)}" for task, names in tasks.items())
    return f"""---
{yaml.safe_dump(_front_matter(), sort_keys=False).strip()}
---

# A double-layer mixture-of-experts reward model

A [DMoERM](https://arxiv.org/abs/2403.01197): a router picks the prompt's task; the task's experts each score one
capability of the response; an aggregator turns what they see into one reward. It says what it thinks of the response on
every capability, how likely the task is, and how far its experts disagree.

## Tasks and capabilities

{lines}

## Measured

Share of human-ordered pairs on held-out prompts that the model orders the same way (ties left out), with 95 % bootstrap
intervals over prompts. `general` is one model trained on all tasks together, `per_task` one model for each task.

{_table(results)}

{_remarks(results)}

## How it was trained

{_training(results)}

## Use

{_USE}
## Limits

{_LIMITS}"""


def _front_matter() -> dict[str, Any]:
    return {"library_name": "dmoerm", "pipeline_tag": "text-classification", "tags": list(_TAGS)}


def _table(results: Results) -> str:
    methods, paired = results.accuracy, results.paired
    header = ["task", "pairs", *methods, *paired]
    lines = [f"| {' | '.join(header)} |", f"|---|{'---:|' * (len(header) - 1)}"]
    for name, first in next(iter(methods.values())).items():
        cells = [row[name].percent for row in methods.values()] + [row[name].percent for row in paired.values()]
        mark = " \\*" if name in results.derived_tasks else ""
        lines.append(f"| {name}{mark} | {first.pairs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _remarks(results: Results) -> str:
    found = [remark.replace("*", "\\*") for remark in results.remarks]
    router, calibration = results.router, results.calibration
    if router.accuracy is not None:
        found.append(f"The router finds the task of {router.accuracy:.1%} of {router.prompts} prompts.")
    found.append(f"The win probability's expected calibration error is {calibration.ece:.3f}.")
    if "dmoerm" in results.length_bias:
        model, human = results.length_bias["dmoerm"], results.length_bias.get("human")
        beside = f" (people's grades: {human.spearman:+.2f})" if human else ""
        found.append(f"Rank correlation of reward and length within a prompt: {model.spearman:+.2f}{beside}.")
    return "\n".join(found)


def _training(results: Results) -> str:
    config = results.config
    if not config:
        return "The settings are not known."
    backbone, data = config["backbone"], config["data"]
    parts = [
        f"* Backbone `{_name(backbone['path'])}`, layers used: {backbone['num_layers'] or 'all'}, trunk below layer "
        f"{'four fifths of them' if backbone['branch_layer'] is None else backbone['branch_layer']}.",
        f"* Base `{config['base']}`: {_HOW[config['base']]}. "
        f"Warm start from the general model: {'yes' if config['warm_start'] else 'no'}.",
        f"* Experts: LoRA rank {config['phase2']['lora']['rank']} (0: a head alone). "
        f"Aggregator over: {config['phase3']['inputs']}.",
        f"* Data: {_data(data)}; {data['test_fraction']:.0%} of each task's prompts held out for this table.",
        f"* Seed {config['seed']}; all settings are in `run.yaml`.",
        f"* {', '.join(f'{name} {version}' for name, version in results.versions.items())}.",
    ]
    return "\n".join(parts)


def _data(data: dict[str, Any]) -> str:
    files = [_name(file) for file in data["files"]]
    if data["testbed_prompts"]:
        files.append(f"the testbed of `dmoerm.testbed` ({data['testbed_prompts']} prompts a task)")
    return ", ".join(files) or "not named"


def _name(path: str) -> str:
    """The last part of a path on this machine; a hub name as it is."""
    return Path(path).name if Path(path).is_absolute() else path
