"""Compare the scoring speed of this checkout with that of another one, such as an earlier commit.

    git worktree add /tmp/before COMMIT
    python benchmarks/before.py /tmp/before

Each round starts one process per checkout, in turns. It builds the models of that checkout's own scoring.py and times
them in turns with one plain reward model, so a figure is a ratio to the plain model in the same process.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SHAPES, KINDS, RUNS = ((128, 4, 128), (32, 2, 64)), ("experts", "frozen"), 5


def main() -> None:
    """Measure both checkouts, or one of them for the process that measures both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--worker", action="store_true", help="measure this checkout alone")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(ratios(options.checkout)))
        return
    found: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    for _ in range(options.rounds):
        for name, checkout in (("before", options.checkout.resolve()), ("now", HERE)):
            found[name].append(measured(checkout))
            print(name, found[name][-1], flush=True)
    for work in found["now"][0]:
        before, now = (statistics.median(each[work] for each in found[name]) for name in ("before", "now"))
        print(f"{work}: {before:.2f} before, {now:.2f} now")


def measured(checkout: Path) -> dict[str, float]:
    """Return the ratios of a checkout, from a process of its own."""
    command = [sys.executable, __file__, str(checkout), "--worker"]
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def ratios(checkout: Path) -> dict[str, float]:
    """Return work → seconds of its model / seconds of one plain reward model."""
    sys.path.insert(0, str(checkout / "benchmarks"))
    import scoring
    import torch
    from measure import interleaved

    result: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        each = scoring.contest(str(scoring.bundled_backbone()), dtype, scoring.BRANCH_LAYER)
        for shape in SHAPES:
            query = scoring.drawn(*shape)
            works = [functools.partial(scoring.score, each.kinds[kind], [query]) for kind in KINDS]
            *seconds, plain = interleaved([*works, scoring.plainly([each.plain], scoring.sequences([query]))], RUNS)
            result |= {
                "p{}_n{}_r{}_{}_{}".format(*shape, each.short, kind): round(value / plain, 3)
                for kind, value in zip(KINDS, seconds, strict=True)
            }
    return result


if __name__ == "__main__":
    main()
