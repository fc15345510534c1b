"""Does labeling the pairs first about which a model is least sure train better experts than labeling random ones?

The training part of the testbed has overall preferences of all pairs. Capability labels are bought: those of the
simulated annotators, of one pair on all capabilities of its task at a time. Both orders start from the same random
pairs. `random` adds further random pairs. `uncertain` adds those that come first by `dmoerm label --sample uncertain`
under the model of the step before. After each step, the experts are trained on the labels bought so far; their accuracy
is measured on gold labels of held-out prompts, averaged over all capabilities.

python benchmarks/active_labels.py --seed 0 1 2    writes results/active_labels.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import write

from dmoerm.cli.labeling import least_certain_first
from dmoerm.config import Config, load_config
from dmoerm.data.splits import load_splits
from dmoerm.evaluation import evaluate
from dmoerm.labeling.questions import ResponsePair, all_pairs, shuffled
from dmoerm.labels import CapabilityLabel, Outcome, content_digest, write_labels
from dmoerm.model import DMoERM
from dmoerm.training import train

ORDERS = ("random", "uncertain")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both orders with each seed, and write the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo", help="settings of the runs, on the testbed")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[60, 120, 240, 480], help="labeled pairs of each step")
    options = parser.parse_args(arguments)
    accuracies: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seed:
            config = load_config(options.config, [*options.set, f"seed={seed}"])
            for order in ORDERS:
                for pairs, accuracy in curve(config, order, options.pairs, Path(folder) / f"{seed}-{order}").items():
                    accuracies.setdefault((order, pairs), []).append(accuracy)
                    print(seed, order, pairs, round(accuracy, 4), flush=True)
    rows = [_row(pairs, accuracies) for pairs in options.pairs]
    command = f"python benchmarks/active_labels.py --config {options.config} --seed {' '.join(map(str, options.seed))}"
    command += "".join(f" --set {change}" for change in options.set) + f" --pairs {' '.join(map(str, options.pairs))}"
    write("active_labels", command, [], tables={"Accuracy of experts by labeled pairs": rows})


def _row(pairs: int, accuracies: dict[tuple[str, int], list[float]]) -> dict[str, Any]:
    first, second = (accuracies[order, pairs] for order in ORDERS)
    gains = [b - a for a, b in zip(first, second, strict=True)]
    figures = {"random": statistics.fmean(first), "uncertain": statistics.fmean(second)}
    figures |= {"gain": statistics.fmean(gains), "least gain": min(gains), "largest gain": max(gains)}
    return {"pairs": pairs} | {name: round(value, 4) for name, value in figures.items()}


def curve(config: Config, order: str, steps: Sequence[int], folder: Path) -> dict[int, float]:
    """Return labeled pairs → accuracy of the experts trained on their labels."""
    splits = load_splits(config)
    rest = shuffled(all_pairs(splits.train), config.seed)
    if len(rest) < steps[-1]:
        raise SystemExit(f"the training part has {len(rest)} pairs; give fewer than that to --pairs")
    bought: list[ResponsePair] = []
    accuracies: dict[int, float] = {}
    model: DMoERM | None = None
    for count in steps:
        if model is not None and order == "uncertain":
            rest = least_certain_first(rest, model)
        new = count - len(bought)
        bought, rest = bought + rest[:new], rest[new:]
        model, accuracies[count] = experts(config, bought, folder / str(count))
    return accuracies


def experts(config: Config, bought: Sequence[ResponsePair], folder: Path) -> tuple[DMoERM, float]:
    """Train on the capability labels of these pairs; return the model and the mean accuracy of its experts on gold."""
    folder.mkdir(parents=True)
    file = folder / "labels.parquet"
    write_labels(file, [label for pair in bought for label in labels_of(pair)])
    data = config.data.model_copy(update={"capability_labels": (str(file),), "human_labels": False})
    run = train(config.model_copy(update={"output": str(folder / "run"), "data": data}))
    results = evaluate(run.model, load_splits(config).test, config, command="active labels", cache=run.cache)
    return run.model, statistics.fmean(e.value for task in results.capabilities.values() for e in task.values())


def labels_of(pair: ResponsePair) -> list[CapabilityLabel]:
    """Return the annotators' labels of a pair as labels of a judge who agrees with itself in both orders."""
    group: Any = pair.group
    labels = []
    for name, grades in group.capabilities.items():
        first, second = grades[pair.first], grades[pair.second]
        if first is None or second is None:
            continue
        outcome = Outcome.TIE if first == second else Outcome.FIRST if first > second else Outcome.SECOND
        place = {"task": group.task, "capability": name, "first": pair.first, "second": pair.second}
        content = content_digest(group)
        labels.append(CapabilityLabel("annotators", group.id, content, **place, given=outcome, swapped=outcome))
    return labels


if __name__ == "__main__":
    main()
