"""The cost of each method of a suite: seconds of training, trained parameters, seconds of scoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from ..evaluation.results import Cost
from ..evaluation.scored_groups import ScoringBatch
from ..schema import Query
from .method_suite import MethodSuite

_REPEATS = 3


def costs(suite: MethodSuite, queries: Sequence[Query]) -> dict[str, Cost]:
    """Measure the cost of each method; scoring is timed from texts to rewards without a cache, the best of three.

    Training time does not include the trunk's activations of the training part, which all methods share.
    """
    metrics = suite.run.metrics()
    timed = {name: suite.trained[name].timed or suite.trained[name].score for name in suite.in_pass}
    seconds = {scorer: _seconds(suite, scorer, queries) for scorer in dict.fromkeys(timed.values()) if scorer}
    return {
        name: Cost(
            training_seconds=_training_seconds(metrics, suite.trained[name].steps),
            parameters=suite.trained[name].parameters,
            scoring_seconds=seconds[scorer],
        )
        for name, scorer in timed.items()
        if scorer
    }


def _training_seconds(metrics: Mapping[str, Mapping[str, float]], steps: Sequence[str]) -> float:
    return sum(result["seconds"] for name, result in metrics.items() if name.startswith(tuple(steps)))


@torch.inference_mode()
def _seconds(suite: MethodSuite, scorer: Callable[[ScoringBatch], object], queries: Sequence[Query]) -> float:
    model, fastest = suite.run.model, float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        encoded = [model.encoder.encode(query) for query in queries]
        for rows in model.passes(encoded):
            scorer(ScoringBatch(model, [queries[i] for i in rows], [encoded[i] for i in rows]))
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
