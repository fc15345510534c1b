"""Train the model `human`, which comes with the package, and write it to src/dmoerm/models/human.

    python -m evidence.human_model        DMOERM_DATA: the folder of the human-labeled data (docs/data.md)

The config is `human_all`. To keep the package small, only the most important directions of posteriors and of prompt
statistics are kept. README.md of the folder, its card, gets the sources of the data with their licenses, and what the
model is for. A finished run is not trained again. Its cache is its own: with activations of other runs, batches differ,
and so do the last digits of bfloat16.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from dmoerm.config import load_config
from dmoerm.io.paths import SHIPPED
from dmoerm.model import DMoERM
from dmoerm.model.checkpoint import save
from dmoerm.model.heads import Posterior
from dmoerm.model.training_prompts import PromptStatistics, TaskPrompts

RUN = Path("runs/human-model")
POSTERIOR_RANK, STATISTICS_RANK = 16, 8
PURPOSE = """## What it is for

To see routes, contributions and rewards at once, and as a baseline. Its backbone has 135 million parameters: it is not
a replacement for a reward model of 8 billion. It does not know whether an answer is true, and it orders responses
hardly better than a coin where its accuracy above is near 50 %: in helpfulness, instruction following and translation.
Its prompts are in English, some with translations into German or from Chinese. Its uncertainty is about 7 % larger
than that of the run, because directions of the posterior were left out. Train on your own preferences before you rely
on rewards.

"""


def main() -> None:
    """Train, and replace the model in the package."""
    settings = ("--set", f"output={RUN}", "--set", f"cache={RUN}-cache")  # other activations change the batches
    subprocess.run([sys.executable, "-m", "dmoerm", "train", "human_all", *settings], check=True)
    target = SHIPPED / "human"
    shutil.rmtree(target, ignore_errors=True)
    model = DMoERM.from_pretrained(RUN)
    truncate(model)
    save(model, target, card=card((RUN / "model" / "README.md").read_text(encoding="utf-8")))
    size = sum(file.stat().st_size for file in target.rglob("*"))
    print(f"{target}: {size / 1e6:.1f} MB")


def truncate(model: DMoERM) -> None:
    """Leave out the less important directions of posteriors, and move those of prompt statistics to the diagonal."""
    for module in model.modules():
        if isinstance(module, Posterior):
            module.basis = module.basis[:, :POSTERIOR_RANK].clone()
    assert model.prompt_statistics is not None
    smaller = {}
    for task, part in model.prompt_statistics.tasks.items():
        rest = part.rest + part.basis[STATISTICS_RANK:].square().sum(0)
        smaller[task] = TaskPrompts(part.size, part.mean, rest, part.basis[:STATISTICS_RANK].clone())
    model.prompt_statistics = PromptStatistics(smaller)


def card(text: str) -> str:
    """Return the card of the run with what the model is for, and where its data comes from."""
    before, title, after = text.replace("path/to/this/folder", "human").partition("## Limits")
    return f"{before}{PURPOSE}{sources()}\n{title}{after}"


def sources() -> str:
    """Return the section of the data sets, their licenses and citations."""
    names = {Path(file).stem for file in load_config("human_all").data.files}
    listed = yaml.safe_load(Path(__file__).with_name("human_data").joinpath("sources.yaml").read_text(encoding="utf-8"))
    lines = ["## Data", "", "The training part of these sets; `python -m evidence.human_data FOLDER` builds them.", ""]
    for source in listed:
        if used := sorted(names & set(source["sets"])):
            citation = " ".join(source["citation"].split())
            lines.append(f"* {', '.join(used)}: {source['repository']}, {source['license']}. {citation}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
