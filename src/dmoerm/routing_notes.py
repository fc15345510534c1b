"""What the metrics of the training step `routing` say, in sentences."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .names import folder_name

_NAMED_PAIRS = 3


def routing_notes(metrics: Mapping[str, float | None], tasks: Collection[str]) -> list[str]:
    """Return which tasks the router confuses and what that costs, and which tasks the general model scores.

    Args:
        metrics: of the step; `confused/A/B`, `cost/A/B` and `pooled/A` name tasks as folders do.
        tasks: the model's.
    """
    names = {folder_name(task): task for task in tasks}
    known = {name: value for name, value in metrics.items() if value is not None}
    notes: list[str] = []
    pairs = sorted((name for name in known if name.startswith("confused/")), key=lambda name: -known[name])
    for name in pairs[:_NAMED_PAIRS]:
        _, *folders = name.split("/")
        cost = known["/".join(("cost", *folders))]
        a, b = (names.get(folder, folder) for folder in folders)
        notes.append(
            f"The router takes {known[name]:.0%} of the prompts of {a} and {b} for the other kind. With the task "
            f"given, accuracy on the two is {100 * abs(cost):.1f} points {'higher' if cost > 0 else 'lower'} "
            "(prompts of the training part, held out)."
        )
    pooled = {name.partition("/")[2]: value for name, value in known.items() if name.startswith("pooled/")}
    scored = [names.get(folder, folder) for folder, value in pooled.items() if value]
    if pooled and len(scored) == len(pooled) > 1:
        notes.append(
            "These kinds are alike, or have too few labels: held out, one model for all is as good. The general model "
            "scores all prompts."
        )
    elif scored:
        notes.append(f"The general model scores in place of {', '.join(scored)}: held out, their own heads are worse.")
    return notes
