"""Set prompts aside for a final comparison, which is run once and reported whatever it says; there are two.

The rules of the recipe (weights of scores, pulled heads, layers, pooling) were chosen on seeds 0 to 2 of `human` and on
seed 0 of `human_all`. The weights were also checked on all explanations, and kinds of experts were compared on humour,
which `CHOSEN_ON` does not list: prompts of these three tasks were seen before. The prompts of the files of `human_all`
that none of the runs of `CHOSEN_ON` has in its training, validation or test part are ordered by a hash; the first ones
of each task that has enough of them become the test part. All other groups of these tasks may be trained on.

The second one has six sets that no choice has touched (human_data/second.py). The first prompts by the same hash, four
of ten of each task and at most 120, become the test part.

python -m evidence.final_split --output runs/final      writes train.jsonl and test.jsonl
python -m evidence.final_split --second --output runs/final2
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

from dmoerm.config import load_config
from dmoerm.data.readers import read_groups
from dmoerm.data.splits import load_splits
from dmoerm.io.paths import write_file
from dmoerm.schema import Group, prompt_key

SECOND = ("squality", "wqrm", "haluquest", "webnlg", "simpeval", "feedbackqa")
SHARE = 0.4  # of the prompts of a task of the second set
CHOSEN_ON = (("human", (0, 1, 2)), ("human_all", (0,)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both parts and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=120, help="prompts of each task in the test part")
    parser.add_argument("--second", action="store_true", help="the six sets of the second final comparison")
    parser.add_argument("--output", type=Path, default=Path("runs/final"))
    options = parser.parse_args(arguments)
    data = load_config("human_all").data
    files = [f"{name}.jsonl" for name in SECOND] if options.second else data.files
    groups = [group for file in files for group in read_groups(data.located(file)).groups]
    seen: set[str] = set()  # the prompts of all runs on which something was chosen
    for name, seeds in () if options.second else CHOSEN_ON:
        for seed in seeds:
            splits = load_splits(load_config(name, [f"seed={seed}"]))
            seen |= {prompt_key(group.prompt) for group in (*splits.train, *splits.test)}
    train, test = split(groups, seen, options.prompts, SHARE if options.second else None)
    for name, part in (("train", train), ("test", test)):
        rows = "".join(group.model_dump_json(exclude_none=True, exclude_defaults=True) + "\n" for group in part)
        write_file(options.output / f"{name}.jsonl", rows)
        print(f"{name}: {len(part)} groups of {len({group.task for group in part})} tasks")


def split(
    groups: Sequence[Group], seen: set[str], count: int, share: float | None = None
) -> tuple[list[Group], list[Group]]:
    """Return training and test groups: `count` prompts that are not `seen` of each task that has so many are for test.

    With `share`, all tasks are kept, and `count` is at most this share of a task's prompts.
    """
    unseen: dict[str, set[str]] = {}
    for group in groups:
        labeled = group.pairs() or (share and group.capabilities)  # overall scores are derived from these
        if group.task and labeled and prompt_key(group.prompt) not in seen:
            unseen.setdefault(group.task, set()).add(prompt_key(group.prompt))
    held: dict[str, set[str]] = {
        task: set(sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())[:number])
        for task, keys in unseen.items()
        for number in [count if share is None else min(count, int(share * len(keys)))]
        if len(keys) >= count or share
    }
    tested = set().union(*held.values())
    return (
        [group for group in groups if group.task in held and prompt_key(group.prompt) not in tested],
        [group for group in groups if group.task in held and prompt_key(group.prompt) in held[group.task]],
    )


if __name__ == "__main__":
    main()
