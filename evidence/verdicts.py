"""Write gpt-4o's recorded verdicts on pairs as a label file: `python -m evidence.verdicts PAIRS VERDICTS LABELS`.

A row has a group's id, the order shown, how the judge was asked (`mode`), and capability → index of the better response
or `tie`. Two rows on one question are repeated answers to it.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from dmoerm.data.readers import read_groups
from dmoerm.labels import PROBABILITIES, CapabilityLabel, Outcome, content_digest, write_labels

OUTCOMES: dict[Any, Outcome] = {0: Outcome.FIRST, 1: Outcome.SECOND, "tie": Outcome.TIE}


def main() -> None:
    """Read both files, and write the labels."""
    pairs, verdicts, out = map(Path, sys.argv[1:])
    groups = {group.id: group for group in read_groups(pairs).groups}
    answers: dict[tuple[str, str, str], dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for row in map(json.loads, verdicts.read_text(encoding="utf-8").splitlines()):
        for capability, winner in row["preferred"].items() if row["id"] in groups else ():
            answers[row["mode"], row["id"], capability][row["order"]].append(OUTCOMES[winner])
    labels = []
    for (mode, name, capability), orders in answers.items():
        group, values = groups[name], {}
        for order, outcomes in orders.items():
            values[order] = outcomes[0] if len(set(outcomes)) == 1 else Outcome.TIE
            if len(outcomes) > 1:
                values[f"p_{order}"] = fmean(PROBABILITIES[outcome] for outcome in outcomes)
        digest = content_digest(group)
        labels.append(CapabilityLabel(f"gpt-4o/{mode}", name, digest, group.task or "", capability, 0, 1, **values))
    write_labels(out, labels)
    print(f"{len(labels)} labels: {out}")


if __name__ == "__main__":
    main()
