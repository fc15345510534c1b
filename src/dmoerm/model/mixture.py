"""The double-layer mixture of experts: the modules, and the pass from packed tokens to rewards.

    ids ──trunk──▶ hidden ──router──▶ shares of the task models and of the general model in the reward
                     ├──general branch──▶ embeddings (N, D) ──▶ r_general
                     └──task model t: branch, experts, aggregator──▶ r_t
    reward = Σ_t share_t · r_t + share_general · r_general

A pass has texts of several tasks. Each task model runs on the rows of its own texts only (`PassOutput.tasks`), and the
general branch on the rows whose reward depends on it. A task model is a dense mixture:

    base = pool(branch(x))                     r_phase1 = head(base)          r_all = all_labels(base)
    z    = experts(x)                          r_i      = head_i(z_i)
    r    = aggregator(z ⊕ (r_1 … r_k, r_phase1, r_general, r_all))
    reward = (r − center) / scale              P(a better than b) = σ((reward_a − reward_b) / temperature)
    uncertainty = posterior(base)              standard deviation of the reward

Shapes: Q prompts, N responses, T tasks, M of the N responses, k capabilities of a task, D embedding width, m embeddings
and s scores that an aggregator reads.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..chat.encoding import Encoder
from ..config import AggregatorConfig, EncodingConfig, LoRAConfig
from ..names import folder_name
from ..scores import check_task
from .configuration import DMoERMConfig
from .experts import Experts
from .heads import Aggregator, BranchScorer, Head, Normalizer, Posterior
from .layers import empty_part, run, split_layers
from .packing import Packed, Packing, pad, to_device
from .router import Choice, Router, Routing
from .training_prompts import PromptStatistics, TrainingPrompts


class Calibration(nn.Module):
    """Maps raw rewards (N,) to rewards that compare across tasks, and whose differences give probabilities.

    Tasks are trained separately, so their raw rewards differ in level and unit. `center` and `scale`, from a task's own
    responses, remove both; `temperature` then makes σ(difference / temperature) the probability of a preference.
    """

    center: Tensor
    scale: Tensor
    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("center", 0.0), ("scale", 1.0), ("temperature", 1.0)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, reward: Tensor) -> Tensor:
        return (reward - self.center) / self.scale


class TaskOutput(NamedTuple):
    """A task model's scores of N responses."""

    reward: Tensor  # (N,), calibrated
    capabilities: Tensor  # (N, k), each normalized over the training part's responses
    uncertainty: Tensor  # (N,), the reward's standard deviation under the heads' posterior; nan without a posterior
    per_task: Tensor  # (N,), the phase-1 model's raw score
    contributions: Tensor  # (N, s), of the aggregator's scores to the reward, up to a constant; see contributions.py


class TaskModel(nn.Module):
    """Branch, experts and aggregator of one task (the paper's inner layer).

    Args:
        all_labels: a head on the branch's embedding, fitted to overall and capability labels; with None, the
            aggregator reads no such score.
    """

    def __init__(
        self, base: BranchScorer, experts: Experts, aggregator: Aggregator, all_labels: Head | None = None
    ) -> None:
        super().__init__()
        self.base, self.experts, self.aggregator, self.all_labels = base, experts, aggregator, all_labels
        self.normalizer = Normalizer(len(experts))
        self.calibration = Calibration()
        self.posterior = Posterior(len(base.head.normalizer.mean))

    @property
    def reads_base(self) -> bool:
        """Whether the reward depends on the plain branch or the general model; the paper's does not."""
        return self.aggregator.linear is not None or self.experts.branch is None

    @property
    def reads_general(self) -> bool:
        """Whether the reward depends on the general model's score."""
        return "general" in self.aggregator.read_names

    @property
    def contribution_names(self) -> list[str | None]:
        """The names of `TaskOutput.contributions`; None for a score that the aggregator's form does not read."""
        aggregator = self.aggregator
        mixed = {"per_task"} if aggregator.mlp is not None and self.experts.branch is None else set[str]()
        read = {*self.experts.capabilities, *aggregator.read_names, *mixed}
        return [name if name in read else None for name in (*self.experts.capabilities, *aggregator.base_names)]

    def contributions(self, vectors: Tensor) -> Tensor:
        """Return how much the scores (N, s) contribute to the calibrated rewards, up to a constant.

        An expert's embedding counts for its capability, and the plain branch's, which heads share, for `per_task`.
        """
        by_score, by_embedding = self.aggregator.contributions(vectors)
        first = 0 if self.experts.branch is not None else len(self.experts)
        rest = by_score.shape[1] - first - by_embedding.shape[1]
        return (by_score + functional.pad(by_embedding, (first, rest))) / self.calibration.scale

    def vectors(self, base: Tensor, z: Tensor, general: Tensor) -> Tensor:
        """Return the aggregator's input (N, m·D + s).

        It is computed from the embeddings `base` (N, D) of the plain branch and `z` (k, N, D) of the experts, and from
        the general model's scores (N,).
        """
        scores = [self.experts.score(z), self.base.head(base)[:, None], general[:, None]]
        if self.all_labels is not None:
            scores.append(self.all_labels(base)[:, None])
        embeddings = () if self.aggregator.mlp is None else base[None] if self.experts.branch is None else z
        return torch.cat([*embeddings, *scores], dim=-1)

    def forward(self, inputs: Packed, general: Tensor | None = None, base: Tensor | None = None) -> TaskOutput:
        """Score N responses.

        Args:
            general: (N,), the general model's scores; unused values if `reads_general` is false. None runs the experts
                alone, if `reads_base` is false: `per_task` is then 0, and the uncertainty nan.
            base: (N, D), the plain branch's embeddings if they are known, as with a shared branch; saves a pass.
        """
        if general is None:
            z = self.experts.embed(inputs, None)
            unread = z.new_zeros(z.shape[1], len(self.aggregator.base_names))
            vectors = torch.cat([*z, self.experts.score(z), unread], -1)
        else:
            base = self.base.embed(inputs) if base is None else base
            vectors = self.vectors(base, self.experts.embed(inputs, base), general)
        count, scores = len(self.experts), self.aggregator.scores(vectors)
        per_task = scores[:, count]
        return TaskOutput(
            self.calibration(self.aggregator(vectors)),
            self.normalizer(scores[:, :count]),
            torch.full_like(per_task, torch.nan)
            if base is None
            else self.posterior.deviation(self.base.head.normalizer(base.float())),
            per_task,
            self.contributions(vectors),
        )


@dataclass(frozen=True)
class PassOutput:
    """All scores of the N responses to Q prompts."""

    owner: Sequence[int]  # (N,), each response's prompt
    choices: Sequence[Choice]  # (Q,), what gives the reward
    general: Tensor  # (N,), the general model's raw score; nan for a response whose reward does not depend on it
    tasks: Mapping[str, tuple[Sequence[int], TaskOutput]]  # task → ascending indices of M responses, and their scores
    reward: Tensor  # (N,), calibrated; not bounded, and without the rule for empty responses
    uncertainty: Tensor  # (N,), the rewards' standard deviations; nan without a posterior

    def of(self, prompt: int, task: str) -> TaskOutput:
        """Return a task's scores of the responses to one prompt."""
        rows, scores = self.tasks[task]
        kept = [i for i, row in enumerate(rows) if self.owner[row] == prompt]
        return TaskOutput(*(part[kept] for part in scores))


class Mixture(PreTrainedModel):
    """Trunk, router, general model and task models. `DMoERM` adds scoring of text, loading and saving.

    `checkpoint.with_tokenizer` sets the tokenizer and the encoder.
    """

    config_class = DMoERMConfig
    base_model_prefix = "dmoerm"
    _supports_sdpa = True  # otherwise transformers writes "eager" into the configuration
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder

    def __init__(self, config: DMoERMConfig) -> None:
        super().__init__(config)
        self.texts: dict[str, str] = {}  # file name → text of the model card and the run's settings
        self.training_prompts: TrainingPrompts | None = None  # None if they are unknown
        self.prompt_statistics: PromptStatistics | None = None  # by task
        self.backbone_name: str | None = None  # where a checkpoint's backbone was loaded from, or would be
        backbone = config.backbone_config
        self.trunk, branch = split_layers(empty_part(backbone, backbone.num_hidden_layers), config.branch_layer)
        language_model = empty_part(backbone, backbone.num_hidden_layers) if config.router_kind == "own" else None
        width = backbone.hidden_size if language_model else 2 * backbone.hidden_size  # see `Packed.prompt_embeddings`
        self.router = Router(list(config.tasks), width, language_model)
        self.general = self._scorer(branch)
        self.general_calibration = Calibration()
        self.general_posterior = Posterior(config.width)
        self.routed_calibration = Calibration()
        self.tasks = nn.ModuleDict({_key(task): self.new_task_model(names) for task, names in config.tasks.items()})

    def _scorer(self, branch: Any) -> BranchScorer:
        return BranchScorer(branch, Head(self.config.width), EncodingConfig(**self.config.encoding).pooling)

    def new_task_model(self, capabilities: Sequence[str]) -> TaskModel:
        """Build an untrained task model; its branch has no weights yet, unless all tasks share the general one."""
        config = self.config
        branch: Any = self.general.branch
        if not config.shared_branch:
            backbone = config.backbone_config
            _, branch = split_layers(empty_part(backbone, backbone.num_hidden_layers), config.branch_layer)
        base, lora = self._scorer(branch), LoRAConfig(**config.lora)
        experts = Experts(branch, capabilities, config.width, lora, base.pooling)
        embeddings = 1 if experts.branch is None else len(capabilities)
        aggregator = Aggregator(embeddings, config.width, len(capabilities), AggregatorConfig(**config.aggregator))
        all_labels = Head(config.width) if "all_labels" in aggregator.base_names else None
        return TaskModel(base, experts, aggregator, all_labels)

    def task_model(self, task: str, source: str = "") -> TaskModel:
        """Return the task's model. Raise `DataError`, with the `source` of the name, if there is no such task."""
        check_task(self.config.tasks, task, source)
        return cast("TaskModel", self.tasks[_key(task)])

    def set_task(self, task: str, task_model: TaskModel) -> None:
        """Add a task, or replace its model. The router's row of a new task is 0; all other weights stay as they are."""
        self.config.tasks = dict(sorted({**self.config.tasks, task: list(task_model.experts.capabilities)}.items()))
        self.tasks[_key(task)] = task_model
        self.router = self.router.with_tasks(list(self.config.tasks))

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Remove all other tasks, with their rows of the router and the statistics of their prompts."""
        for task in [task for task in self.config.tasks if task not in tasks]:
            del self.config.tasks[task], self.tasks[_key(task)]
        self.router = self.router.with_tasks(list(self.config.tasks))
        pooled = [task for task in self.routing.pooled if task in tasks]
        self.config.routing = self.routing.model_copy(update={"pooled": pooled}).model_dump()
        if self.prompt_statistics is not None:
            self.prompt_statistics = self.prompt_statistics.only(tasks)

    def hidden(self, ids: Packed) -> Packed:
        """Run the trunk on token ids; return the ids themselves if the model has no trunk."""
        return ids if self.trunk is None else ids._replace(tokens=run(self.trunk, ids)[0])

    def route(self, ids: Packed, hidden: Packed) -> Tensor:
        """Return the task probabilities (Q, T) of the prompts."""
        if self.router.language_model is None:
            return self.router.probabilities(hidden.prompt_embeddings())
        prompts, mask = pad([prompt for prompt, _ in ids.split()])
        return self.router.probabilities(self.router.read(prompts, mask.to(prompts.device)))

    @property
    def routing(self) -> Routing:
        """How rewards follow from the router's probabilities."""
        return Routing(**self.config.routing)

    def choose(self, probabilities: Tensor) -> list[Choice]:
        """Return what scores each of Q prompts, from the router's probabilities (Q, T) on the CPU."""
        routing, config, names = self.routing, self.config, [*self.router.tasks, None]
        rows = routing.shares(probabilities, self.router.tasks, config.threshold, shared=config.heads_only)
        mixed = routing.temperature > 0
        highest, best = probabilities.max(1)
        recognized = [mixed or value >= config.threshold for value in highest]
        likeliest = [names[i] if known else None for i, known in zip(best.tolist(), recognized, strict=True)]
        shares = [{name: share for name, share in zip(names, row, strict=True) if share > 0} for row in rows.tolist()]
        return [Choice(task, row, mixed) for task, row in zip(likeliest, shares, strict=True)]

    def outputs(
        self,
        hidden: Packed,
        choices: Sequence[Choice],
        extra_tasks: Sequence[Iterable[str]] | None = None,
        embeddings: Tensor | None = None,
    ) -> PassOutput:
        """Compute the rewards of a pass and the scores on which they depend.

        Args:
            hidden: the trunk's states of Q prompts and N responses.
            choices: what scores the responses to each prompt.
            extra_tasks: more tasks per prompt whose scores are computed. If given, all intermediate scores are
                computed; otherwise only those on which the rewards depend.
            embeddings: (N, D), the responses' embeddings under the general branch, if they are known.
        """
        packing, complete, shared = hidden.packing, extra_tasks is not None, self.config.shared_branch
        scored_by = [{choice.task, *choice.shares} for choice in choices]
        for names, tasks in zip(scored_by, extra_tasks or (), strict=complete):
            names.update(tasks)
        rows = {
            task: [n for n, q in enumerate(packing.owner) if task in scored_by[q]]
            for task in sorted(set().union(*scored_by), key=str)
        }
        models = {task: self.task_model(task) for task in rows if task is not None}
        alone = {task for task, model in models.items() if not complete and not model.reads_base}
        # without extra tasks, only some rewards depend on the general branch
        by_general = {task for task, model in models.items() if task not in alone and (shared or model.reads_general)}
        read = sorted({n for task in rows if complete or task in {None, *by_general} for n in rows[task]})
        if embeddings is None:  # 0 for the responses that are not read
            embeddings = hidden.tokens.new_zeros(len(packing.owner), self.config.width, dtype=torch.float32)
            if read:
                embeddings[packing.index(read)] = self.general.embed(hidden.select(read)).float()
        general, deviation = hidden.tokens.new_full((2, len(packing.owner)), torch.nan, dtype=torch.float32)
        if read:
            index = packing.index(read)
            known = embeddings[index]
            general[index] = self.general.head(known).float()
            deviation[index] = self.general_posterior.deviation(self.general.head.normalizer(known))
        parts: dict[str, tuple[Sequence[int], TaskOutput]] = {}
        for task, model in models.items():
            numbers, chosen = rows[task], hidden.select(rows[task])
            if task in alone:
                parts[task] = numbers, model(chosen)
                continue
            index = packing.index(numbers)
            scores = general[index] if model.reads_general else general.new_zeros(len(numbers))
            parts[task] = numbers, model(chosen, scores, embeddings[index] if shared else None)
        rewards = self._rewards(packing, choices, general, deviation, parts)
        return PassOutput(packing.owner, choices, general, parts, *rewards)

    def _rewards(
        self, packing: Packing, choices: Sequence[Choice], general: Tensor, deviation: Tensor, parts: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Return each response's reward (N,) and the rewards' standard deviations (N,).

        A mixed reward is a sum of log-odds: each model's rewards are divided by its temperature. Deviations add up too,
        since the models share features and labels and so their errors are alike.

        Args:
            general, deviation: (N,), the general model's raw score, and the standard deviation of its reward.
            parts: see `PassOutput.tasks`.
        """
        rewards, deviations = self.general_calibration(general), deviation.clone()
        general_rows = torch.stack([rewards, deviation])
        whole: dict[str | None, Tensor] = {None: general_rows}  # source → rewards and deviations (2, N)
        mixed = any(choice.mixed for choice in choices)
        for task, (rows, output) in parts.items():
            kept = [i for i, n in enumerate(rows) if choices[packing.owner[n]].only == task]
            index, among = packing.index([rows[i] for i in kept]), packing.index(kept, len(rows))
            scores = torch.stack([output.reward.float(), output.uncertainty.float()])
            rewards[index], deviations[index] = scores[:, among]
            if mixed:
                whole[task] = torch.zeros_like(general_rows)
                whole[task][:, packing.index(rows)] = scores
        if not mixed:
            return rewards, deviations
        shares = torch.tensor([[choices[q].shares.get(name, 0.0) for q in packing.owner] for name in whole])
        totals = torch.zeros_like(general_rows)
        for name, share in zip(whole, to_device(shares, general.device), strict=True):
            totals += torch.where(share > 0, share * whole[name] / self.calibration(name).temperature, 0.0)
        is_mixed = to_device(torch.tensor([choices[q].mixed for q in packing.owner]), general.device)
        reward, spread = self.routed_calibration(totals[0]), totals[1] / self.routed_calibration.scale
        return torch.where(is_mixed, reward, rewards), torch.where(is_mixed, spread, deviations)

    def calibration(self, task: str | None) -> Calibration:
        """Return the calibration of a task's rewards; None stands for the general model."""
        return self.general_calibration if task is None else self.task_model(task).calibration

    def temperature(self, choice: Choice) -> Tensor:
        """Return the temperature (), at which differences of the choice's rewards are log-odds."""
        if choice.mixed:
            return self.routed_calibration.temperature
        (source,) = choice.shares
        return self.calibration(source).temperature


def _key(task: str) -> str:
    return f"task:{folder_name(task)}"  # the prefix avoids clashes with attributes such as `values`
