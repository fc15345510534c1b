"""Overlap of evaluation data with a model's training prompts, on which accuracy is too high."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError
from ..model.training_prompts import TrainingPrompts
from ..schema import Group, prompt_key
from .results import Overlap


def split_overlap(
    groups: Sequence[Group], training_prompts: TrainingPrompts | None, include: bool = False
) -> tuple[list[Group], Overlap]:
    """Find the groups whose prompts the model was trained on, and leave them out.

    Args:
        training_prompts: those of the model; None if they are not known.
        include: keep those groups; they are counted in both cases.

    Returns:
        The groups to evaluate on, and the counts for the results.

    Raises:
        DataError: no group is left.
    """
    if training_prompts is None:
        return list(groups), Overlap(known=False, groups=0, prompts=0, included=True)
    trained = [group.prompt in training_prompts for group in groups]
    prompts = {prompt_key(group.prompt) for group, hit in zip(groups, trained, strict=True) if hit}
    overlap = Overlap(known=True, groups=sum(trained), prompts=len(prompts), included=include)
    kept = [group for group, hit in zip(groups, trained, strict=True) if include or not hit]
    if groups and not kept:
        raise DataError(
            f"the model was trained on the prompts of all {len(groups)} groups",
            field="prompt",
            hint="evaluate on other prompts, or keep them with --include-trained",
        )
    return kept, overlap
