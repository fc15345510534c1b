"""What each method of a panel takes: seconds of training, trained parameters, seconds of scoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..chat.encoding import Encoded
from ..evaluation.results import Cost
from ..model.batching import pack_ids
from ..model.heads import BranchScorer
from ..schema import Query
from .method_suite import Panel

_PHASES = ("router", "phase0", "phase1", "phase2", "phase3")
_REPEATS = 3


def costs(panel: Panel, queries: Sequence[Query]) -> dict[str, Cost]:
    """Method → its cost; scoring is timed on the queries from texts to rewards, nothing cached, the best of three.

    The trunk's activations of the training part, which all methods share, are in nobody's training time.
    """
    training, parameters, scoring = _training(panel), _parameters(panel), _scoring(panel, queries)
    return {
        method: Cost(
            training_seconds=training[_kind(method)],
            parameters=parameters[_kind(method)],
            scoring_seconds=scoring[_KINDS_OF_PASS.get(_kind(method), "single")],
        )
        for method in panel.methods
    }


_KINDS_OF_PASS = {"ensemble": "members", "bagged": "members", "dmoerm": "dmoerm"}


def _kind(method: str) -> str:
    """`ensemble_wco` → `ensemble`: what an ensemble is combined by costs nothing."""
    start = method.partition("_")[0]
    return start if start in ("ensemble", "bagged") else method


def _training(panel: Panel) -> dict[str, float]:
    steps = panel.run.metrics()

    def seconds(start: str) -> float:
        return sum(metrics["seconds"] for name, metrics in steps.items() if name.startswith(start))

    members = seconds("phase0") + seconds("baselines/member")
    return {
        "general": seconds("phase0"),
        "per_task": seconds("phase1"),
        "ensemble": members,
        "warm": members,
        "bagged": seconds("baselines/bagged"),
        "gated": seconds("baselines/gated"),
        "dmoerm": sum(map(seconds, _PHASES)),
    }


def _parameters(panel: Panel) -> dict[str, int]:
    model, tasks = panel.run.model, list(panel.data.taxonomy.tasks)
    single = _count(model.general.head) + (0 if panel.run.frozen else _count(model.general.branch))
    parts = [part for task in tasks for part in (model.task_model(task).experts, model.task_model(task).aggregator)]
    found = {"general": single, "warm": single, "per_task": single * len(tasks)}
    found["dmoerm"] = found["general"] + found["per_task"] + sum(map(_count, [model.router, *parts]))
    if panel.baselines is not None:
        found |= {name: single * len(e.members) for name, e in panel.baselines.ensembles.items()}
        found["gated"] = _count(panel.baselines.gated or nn.Module())
    return found


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _scoring(panel: Panel, queries: Sequence[Query]) -> dict[str, float]:
    model = panel.run.model
    members = panel.baselines.ensembles["ensemble"].members if panel.baselines else ()
    encoded = [model.encoder.encode(query) for query in queries]
    ways: dict[str, Callable[[], object]] = {
        "single": lambda: _score(panel, encoded, [model.general]),
        "members": lambda: _score(panel, encoded, members),
        "dmoerm": lambda: model.score_queries(queries),
    }
    found = dict.fromkeys(ways, float("inf"))
    for _ in range(_REPEATS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            found[name] = min(found[name], time.perf_counter() - start)
    return found


@torch.inference_mode()
def _score(panel: Panel, encoded: Sequence[Encoded], members: Sequence[BranchScorer]) -> None:
    """The members' rewards: one pass over the branch for all where they share it, else one each."""
    model = panel.run.model
    for rows in model.passes(encoded, 8192):
        hidden = model.hidden(pack_ids([encoded[i] for i in rows]).to(model.device))
        shared = model.general.embed(hidden) if panel.run.frozen else None
        for member in members:
            member.head(member.embed(hidden) if shared is None else shared)
