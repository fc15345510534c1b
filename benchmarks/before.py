"""Compare the scoring speed of this checkout with that of another one, such as an earlier commit.

    git worktree add /tmp/before COMMIT
    python benchmarks/before.py /tmp/before

Each round starts one process per checkout, every other round in the opposite order. A process builds the models of that
checkout's own scoring.py and times them in turns with one plain reward model, so a figure is a ratio to the plain model
in the same process. Printed are the median over rounds and the range: processes of one checkout differ by several
percent, so a difference within the range says nothing. `--operations` compares, in place of time, how often a pass
calls each operation of PyTorch, by name and shapes of its tensors, views and calls within others included.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
SHAPES, KINDS, RUNS = ((128, 4, 128), (32, 2, 64)), ("experts", "frozen"), 5


def main() -> None:
    """Measure both checkouts, or one of them for the process that measures both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--operations", action="store_true", help="compare tensor operations, not time")
    parser.add_argument("--worker", action="store_true", help="measure this checkout alone")
    options = parser.parse_args()
    if options.worker:
        sys.path.insert(0, str(options.checkout / "benchmarks"))
        print(json.dumps(operations() if options.operations else ratios()))
        return
    checkouts = {"before": options.checkout.resolve(), "now": HERE}
    if options.operations:
        compare_operations(*(worker(checkout, "--operations") for checkout in checkouts.values()))
        return
    found: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    for index in range(options.rounds):
        for name in list(checkouts)[:: -1 if index % 2 else 1]:
            found[name].append(worker(checkouts[name]))
            print(name, found[name][-1], flush=True)
    for work in found["now"][0]:
        print(f"{work}: {middle(found['before'], work)} before, {middle(found['now'], work)} now")


def worker(checkout: Path, *options: str) -> dict[str, Any]:
    """Return what a process of its own measures of a checkout."""
    command = [sys.executable, __file__, str(checkout), "--worker", *options]
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def middle(rounds: list[dict[str, float]], work: str) -> str:
    """Return the median and the range over rounds."""
    values = [each[work] for each in rounds]
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def compare_operations(before: dict[str, dict[str, int]], now: dict[str, dict[str, int]]) -> None:
    """Print, for each work, the number of calls and the operations whose number has changed, the largest first."""
    for work, counts in now.items():
        earlier = before[work]
        print(f"{work}: {sum(earlier.values())} operations before, {sum(counts.values())} now")
        changed = {each for each in earlier | counts if earlier.get(each, 0) != counts.get(each, 0)}
        for operation in sorted(changed, key=largest, reverse=True):
            print(f"    {operation}: {earlier.get(operation, 0)} before, {counts.get(operation, 0)} now")


def largest(operation: str) -> int:
    """Return the entries of an operation's largest tensor; the shapes of lists of tensors are not known."""
    return max(math.prod(shape) for shape in json.loads(operation.partition(" ")[2]) or [[]])


def works() -> Iterator[tuple[str, Sequence[Callable[[], Any]], Callable[[], Any]]]:
    """Give for each precision and shape its name, the scoring of the `KINDS`, and that of one plain reward model."""
    import scoring
    import torch

    for dtype in (torch.float32, torch.bfloat16):
        each = scoring.contest(str(scoring.bundled_backbone()), dtype, scoring.BRANCH_LAYER)
        for shape in SHAPES:
            query = scoring.drawn(*shape)
            ours = [functools.partial(scoring.score, each.kinds[kind], [query]) for kind in KINDS]
            name = "p{}_n{}_r{}_{}".format(*shape, each.short)
            yield name, ours, scoring.plainly([each.plain], scoring.sequences([query]))


def ratios() -> dict[str, float]:
    """Return work → seconds of its model / seconds of one plain reward model."""
    from measure import interleaved

    result: dict[str, float] = {}
    for name, ours, plain in works():
        *seconds, unit = interleaved([*ours, plain], RUNS)
        result |= {f"{name}_{kind}": round(value / unit, 4) for kind, value in zip(KINDS, seconds, strict=True)}
    return result


def operations() -> dict[str, dict[str, int]]:
    """Return work → operation with the shapes of its tensors → how often a pass runs it."""
    from torch.profiler import ProfilerActivity, profile

    result: dict[str, dict[str, int]] = {}
    for name, ours, _ in works():
        for kind, score in zip(KINDS, ours, strict=True):
            score()
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
                score()
            events = recorded.key_averages(group_by_input_shape=True)
            result[f"{name}_{kind}"] = {
                f"{each.key} {json.dumps(each.input_shapes)}": each.count for each in events if "::" in each.key
            }
    return result


if __name__ == "__main__":
    main()
