"""Choose how the router's probabilities mix the task models (model/routing.py), by held-out routed rewards.

    hard    each task's heads are fitted to the task's own prompts
    soft    each task's heads are fitted to all prompts, weighted by the task's probability, and pulled toward the
            general model; where the router is not sure, for exact heads on a shared branch, whose fit takes seconds

Both are compared at several temperatures and weights of the general model by the loss on the overall labels. The
router and the heads that give a prompt's routed reward have not seen the prompt. What is chosen:

1. the most probable task alone, with soft heads if there are any; or what has the lowest loss of all that is better
   than this by a standard error over prompts
2. in which the general model scores in place of each task's heads that are worse than it by a standard error
3. the general model for all prompts, if the result is not better than that by a standard error: the kinds are alike, or
   their labels too few (exact heads only: validation prompts are too few to tell)

Shapes: n pairs, T tasks, N responses of an example.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.router import Routing
from ..names import folder_name
from .calibration import calibrate, out_of_fold_scores
from .embedding import base_embeddings, map_rows, task_vectors
from .exact_solver import out_of_fold, pair_accuracy
from .examples import PreferenceExample, labeled
from .losses import preference_losses
from .phases import phase1, phase3
from .processes import broadcast, is_main
from .router import calibration_error, held_out_routes
from .steps import Progress, State, StepMetrics, Training, part_of

TEMPERATURES = (0.5, 1.0, 2.0, 4.0, 16.0)  # 16: nearly equal weights
GENERAL_WEIGHTS = (0.0, 0.25, 0.5, 0.75)
_CERTAIN = 0.98  # mean probability of the right task from which soft and hard heads are the same
_UNITS = torch.logspace(-1, 1, 41)  # temperatures at which a candidate's loss is taken
_MIN_GAIN = 1e-4  # of the loss; less is rounding
_CONFUSED = 0.1  # share of two tasks' prompts that are taken for the other's, from which they are named

Choice = tuple[bool, Routing]
"""Whether heads are soft, and the routing."""


class Held(NamedTuple):
    """Held-out rewards of the labeled pairs by every source, and the routes of their prompts.

    Attributes:
        margins: (n, T + 1), reward of the better response − that of the worse, in log-odds; the general model is last.
        target, weight: (n,), the label's probability and its weight.
        prompt: (n,), the index of the pair's prompt in `routes`.
        routes: (prompts, T).
        task: (prompts,), the index of the prompt's task, −1 if it is unknown.
        tasks, threshold, shared: as in `Routing.shares`.
    """

    margins: Tensor
    target: Tensor
    weight: Tensor
    prompt: Tensor
    routes: Tensor
    task: Tensor
    tasks: Sequence[str]
    threshold: float
    shared: bool

    def shares(self, routing: Routing) -> Tensor:
        """Return the weights (prompts, T + 1) of the sources' rewards."""
        return routing.shares(self.routes, self.tasks, self.threshold, shared=self.shared)

    def given(self) -> Tensor:
        """Return the weights with the task given; prompts without a task have those of the most probable task."""
        shares, known = self.shares(Routing()), self.task >= 0
        shares[known] = torch.eye(len(self.tasks) + 1)[self.task[known]]
        return shares

    def losses(self, shares: Tensor) -> Tensor:
        """Return the weighted losses (n,) of the rewards by shares (prompts, T + 1), at their best temperature."""
        margins = (self.margins * shares[self.prompt]).sum(1)
        losses = preference_losses(margins[:, None] * _UNITS, self.target[:, None]) * self.weight[:, None]
        return losses[:, int(losses.sum(0).argmin())]

    def accuracy(self, shares: Tensor, kept: Tensor | None = None) -> float:
        """Return the share of pairs in the labeled order, of all prompts or of those with `kept` (prompts,)."""
        weight = self.weight if kept is None else self.weight * kept[self.prompt]
        return pair_accuracy((self.margins * shares[self.prompt]).sum(1), self.target, weight)

    def better(self, before: Tensor, after: Tensor) -> bool:
        """Return whether losses `after` (n,) are lower than those `before` by a standard error over prompts."""
        gains = torch.zeros(len(self.routes)).index_add_(0, self.prompt, before - after)
        return float(gains.sum()) > max(float(gains.square().sum().sqrt()), _MIN_GAIN * float(before.sum()))


def choose_routing(training: Training) -> None:
    """Set the routing and its calibration, and the heads of the form that is chosen."""
    run = training.run
    finished = broadcast(is_main() and run.finished("routing"))
    state = run.step("routing", lambda _: _choose(training))
    model, tasks = run.model, run.model.router.tasks
    if finished and state["soft"]:
        _fit_heads(training, soft=True)
    pooled = [task for task, flag in zip(tasks, state["pooled"].tolist(), strict=True) if flag]
    values = {name: float(state[name]) for name in ("temperature", "general_weight")}
    model.config.routing = Routing(**values, pooled=pooled, soft=bool(state["soft"])).model_dump()
    model.routed_calibration.load_state_dict(part_of(state, "calibration."))


def _fit_heads(training: Training, *, soft: bool) -> None:
    """Fit the heads of all tasks in this form, or load them if their steps are finished."""
    run = replace(training.run, progress=Progress(quiet=True))  # these steps are parts of this one
    form = replace(training, run=run, soft=soft)  # shares the folds and posteriors, which the steps set
    for task in run.model.router.tasks:
        phase1(form, task)
        phase3(form, task)


def _choose(training: Training) -> tuple[State, StepMetrics]:
    model = training.run.model
    exact = bool(training.routes) and all(map(training.is_exact, model.config.tasks))
    examples = labeled(training.train if exact else training.validation)
    choice, metrics = (False, Routing()), StepMetrics(steps=0.0)
    if examples:
        hard = held_rewards(training, examples, exact)
        forms, known = {False: hard}, hard.task >= 0
        right = hard.routes[known, hard.task[known]]  # the mean of none is nan, which is not certain
        if exact and broadcast(not float(right.mean()) >= _CERTAIN):  # all processes take the same steps
            _fit_heads(training, soft=True)
            forms[True] = held_rewards(training, examples, exact)
        choice = broadcast(search(forms, exact))
        if len(forms) > 1 and not choice[0]:
            _fit_heads(training, soft=False)
        if choice[1].temperature > 0:
            _calibrate(training, choice[1], exact)
        metrics = _metrics(forms, choice)
    soft, routing = choice
    return {
        **{f"calibration.{name}": t.clone() for name, t in model.routed_calibration.state_dict().items()},
        "soft": torch.tensor(soft),
        "temperature": torch.tensor(routing.temperature),
        "general_weight": torch.tensor(routing.general_weight),
        "pooled": torch.tensor([task in routing.pooled for task in model.router.tasks]),
    }, metrics


def search(forms: Mapping[bool, Held], exact: bool) -> Choice:
    """Return what the module's description says.

    Args:
        forms: the held-out rewards with hard heads (False), and with soft heads (True) if they were fitted.
        exact: the rewards are out of fold, of all training prompts.
    """
    soft, routing = True in forms, Routing()
    top = forms[soft].losses(forms[soft].shares(routing))
    lowest = float(top.sum())
    mixtures = itertools.product(TEMPERATURES, GENERAL_WEIGHTS)
    candidates = [Routing(), *(Routing(temperature=t, general_weight=g) for t, g in mixtures)]
    for (form, held), candidate in itertools.product(forms.items(), candidates):
        losses = held.losses(held.shares(candidate))
        if float(losses.sum()) < lowest and held.better(top, losses):
            soft, routing, lowest = form, candidate, float(losses.sum())
    held = forms[soft]
    if len(held.tasks) == 1:
        return soft, routing
    for task in held.tasks:
        candidate = routing.model_copy(update={"pooled": [*routing.pooled, task]})
        if held.better(*(held.losses(held.shares(each)) for each in (routing, candidate))):
            routing = candidate
    one_model = Routing(pooled=list(held.tasks))  # a task that joins the model later has its own weight
    general, routed = (held.losses(held.shares(each)) for each in (one_model, routing))
    return (soft, routing) if not exact or held.better(general, routed) else (False, one_model)


def held_rewards(training: Training, examples: Sequence[PreferenceExample], exact: bool) -> Held:
    """Compute the held-out rewards of the examples' labeled pairs."""
    rewards = _rewards(training, examples, exact)
    config, tasks = training.run.model.config, training.run.model.router.tasks
    prompts = {e.prompt: e for e in examples}
    index = {prompt: i for i, prompt in enumerate(prompts)}
    rows = [
        (rewards[e.key][p.better] - rewards[e.key][p.worse], p.probability, p.weight / len(pairs), index[e.prompt])
        for e in examples
        if (pairs := e.pairs.get(None))
        for p in pairs
    ]
    margins, target, weight, prompt = zip(*rows, strict=True)
    routes = training.routes or held_out_routes(training.run, list(prompts.values()))
    return Held(
        torch.stack(margins),
        torch.tensor(target, dtype=torch.float32),
        torch.tensor(weight, dtype=torch.float32),
        torch.tensor(prompt),
        torch.stack([routes[name] for name in prompts]),
        torch.tensor([tasks.index(e.group.task) if e.group.task in tasks else -1 for e in prompts.values()]),
        tasks,
        config.threshold,
        config.heads_only,
    )


@torch.no_grad()
def _rewards(training: Training, examples: Sequence[PreferenceExample], exact: bool) -> dict[str, Tensor]:
    """Return key → the responses' rewards by every source in log-odds (N, T + 1), held out if the heads are exact."""
    run, model = training.run, training.run.model
    columns: list[Mapping[str, Tensor]] = []
    for task in (*model.router.tasks, None):
        if task is None and exact:
            vectors, folds = base_embeddings(run, model.general, examples), training.folds[None, "general"]
            raw = out_of_fold(model.general.head, folds, examples, vectors, run.config.seed)
        elif task is None:
            raw = map_rows(model.general.head, base_embeddings(run, model.general, examples), run)
        elif exact:
            linear: Any = model.task_model(task).aggregator.linear
            raw = map_rows(linear, out_of_fold_scores(training, task, examples), run)
        else:
            raw = map_rows(model.task_model(task).aggregator, task_vectors(run, task, examples), run)
        calibration = model.calibration(task)
        center, unit = float(calibration.center), float(calibration.scale * calibration.temperature)
        columns.append({key: (row - center) / unit for key, row in raw.items()})
    return {e.key: torch.stack([column[e.key] for column in columns], 1) for e in examples}


@torch.no_grad()
def _calibrate(training: Training, routing: Routing, exact: bool) -> None:
    """Set the calibration of mixed rewards from held-out ones."""
    examples, model = training.train if exact else training.validation, training.run.model
    rewards = _rewards(training, examples, exact)
    routes = training.routes or held_out_routes(training.run, examples)
    probabilities, config = torch.stack([routes[e.prompt] for e in examples]), model.config
    shares = routing.shares(probabilities, model.router.tasks, config.threshold, shared=config.heads_only)
    mixed = {e.key: rewards[e.key] @ row for e, row in zip(examples, shares, strict=True)}
    calibrate(model.routed_calibration, mixed, [], examples)


def _metrics(forms: Mapping[bool, Held], choice: Choice) -> StepMetrics:
    """Return losses and accuracies of the choice and of what else there is, and what the router confuses.

    `/top1`, `/general` and `/given`: the most probable task alone, the general model, the task given, each with hard
    heads. Tasks are named as their folders.
    """
    (soft, routing), hard, tasks = choice, forms[False], forms[False].tasks
    chosen = forms[soft], forms[soft].shares(routing)
    one_model = Routing(pooled=list(tasks))
    others = {"/top1": hard.shares(Routing()), "/general": hard.shares(one_model), "/given": hard.given()}
    metrics: StepMetrics = {"steps": 0.0, "prompts": float(len(hard.routes)), "soft": float(soft)}
    metrics |= {"temperature": routing.temperature, "general_weight": routing.general_weight}
    metrics |= {f"pooled/{folder_name(task)}": float(task in routing.pooled) for task in tasks}
    total = float(hard.weight.sum().clamp(min=1e-12))
    for name, (held, shares) in {"": chosen, **{name: (hard, shares) for name, shares in others.items()}}.items():
        metrics |= {f"loss{name}": float(held.losses(shares).sum()) / total, f"accuracy{name}": held.accuracy(shares)}
    known = hard.task >= 0
    confidence, likeliest = hard.routes.max(1)
    if known.any():
        right = (likeliest == hard.task)[known].float()
        metrics |= {"router/accuracy": float(right.mean()), "router/ece": calibration_error(confidence[known], right)}
    for a, b in itertools.combinations(range(len(tasks)), 2):
        ours = (hard.task == a) | (hard.task == b)
        crossed = ((hard.task == a) & (likeliest == b)) | ((hard.task == b) & (likeliest == a))
        if (share := float(crossed.sum() / ours.sum().clamp(min=1))) >= _CONFUSED:
            pair = "/".join(folder_name(tasks[i]) for i in (a, b))
            cost = hard.accuracy(hard.given(), ours) - chosen[0].accuracy(chosen[1], ours)
            metrics |= {f"confused/{pair}": share, f"cost/{pair}": cost}
    return metrics
