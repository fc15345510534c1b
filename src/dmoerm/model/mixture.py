"""The double-layer mixture of experts: the modules, and the pass from packed tokens to rewards.

    ids ──trunk──▶ hidden ──router──▶ the weights of the task models and the general model (routing.py)
                     ├──general branch──▶ r_general
                     └──branch_t, experts_t──▶ aggregator_t ──▶ r_t ──▶ reward

Shapes: Q prompts, N responses, T tasks, k capabilities of a task, D embedding width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..chat.encoding import Encoder
from ..config import AggregatorConfig, EncodingConfig, HeadConfig, LoRAConfig
from ..names import folder_name
from ..scores import check_task
from .aggregator import Aggregator
from .batching import pad
from .configuration import DMoERMConfig
from .experts import Experts
from .heads import BranchScorer, Head
from .layers import empty_branch, empty_part, run, split_layers
from .output import PassOutput, TaskRows
from .packing import Packed, Packing, to_device
from .posterior import Posterior
from .router import Router
from .routing import Choice, Routing
from .task_model import Calibration, TaskModel, TaskOutput
from .training_prompts import PromptStatistics, TrainingPrompts


class Mixture(PreTrainedModel):
    """Trunk, router, general model and task models. `DMoERM` adds scoring of text, loading and saving.

    Attributes:
        tokenizer, encoder: set by `checkpoint.with_tokenizer`.
        texts: file name → text of the model card and the run's settings that were loaded with the model.
        training_prompts: the prompts that the model was trained on; None if they are unknown.
        prompt_statistics: statistics of these prompts by task; None if they are unknown.
    """

    config_class = DMoERMConfig
    base_model_prefix = "dmoerm"
    _supports_sdpa = True  # otherwise transformers writes "eager" into the configuration
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder

    def __init__(self, config: DMoERMConfig) -> None:
        super().__init__(config)
        self.texts: dict[str, str] = {}
        self.training_prompts: TrainingPrompts | None = None
        self.prompt_statistics: PromptStatistics | None = None
        backbone = config.backbone_config
        decoder = empty_part(backbone, backbone.num_hidden_layers)
        self.trunk, branch = split_layers(decoder, config.branch_layer)
        language_model = empty_part(backbone, backbone.num_hidden_layers) if config.router_kind == "own" else None
        width = backbone.hidden_size if language_model else 2 * backbone.hidden_size  # see `Packed.prompt_embeddings`
        self.router = Router(list(config.tasks), width, language_model)
        self.general = self._scorer(branch)
        self.general_calibration = Calibration()
        self.general_posterior = Posterior(config.width)
        self.routed_calibration = Calibration()
        self.tasks = nn.ModuleDict({_key(task): self.new_task_model(names) for task, names in config.tasks.items()})

    def _scorer(self, branch: Any) -> BranchScorer:
        head = Head(self.config.width, HeadConfig(**self.config.head))
        return BranchScorer(branch, head, EncodingConfig(**self.config.encoding).pooling)

    def new_task_model(self, capabilities: Sequence[str]) -> TaskModel:
        """Build an untrained task model; its branch has no weights yet, unless all tasks share the general one."""
        config = self.config
        branch: Any = self.general.branch
        if not config.shared_branch:
            branch = empty_branch(config.backbone_config, config.branch_layer)
        base, lora = self._scorer(branch), LoRAConfig(**config.lora)
        experts = Experts(branch, capabilities, config.width, lora, HeadConfig(**config.head), base.pooling)
        embeddings = 1 if experts.branch is None else len(capabilities)
        aggregator = Aggregator(embeddings, config.width, len(capabilities), AggregatorConfig(**config.aggregator))
        all_labels = Head(config.width, HeadConfig(**config.head)) if "all_labels" in aggregator.base_names else None
        return TaskModel(base, experts, aggregator, all_labels)

    def task_model(self, task: str, source: str = "") -> TaskModel:
        """Return the task's model.

        Args:
            source: what names the task, such as `rows.jsonl:7`; the error message begins with it.

        Raises:
            DataError: the model has no such task.
        """
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
        """Return what scores each of Q prompts.

        Args:
            probabilities: (Q, T), on the CPU.
        """
        routing, config, names = self.routing, self.config, [*self.router.tasks, None]
        rows = routing.shares(probabilities, self.router.tasks, config.threshold, shared=config.heads_only)
        mixed = routing.temperature > 0
        highest, best = probabilities.max(1)
        likeliest = [names[i] for i in best.tolist()]
        recognized = [mixed or value >= config.threshold for value in highest]
        shares = [{name: share for name, share in zip(names, row, strict=True) if share > 0} for row in rows.tolist()]
        return [Choice(likeliest[q] if recognized[q] else None, shares[q], mixed) for q in range(len(shares))]

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
        owner = hidden.packing.owner
        scored_by = [{choice.task, *choice.shares} for choice in choices]
        for names, tasks in zip(scored_by, extra_tasks or (), strict=extra_tasks is not None):
            names.update(tasks)
        rows = {
            task: [n for n, q in enumerate(owner) if task in scored_by[q]]
            for task in sorted(set().union(*scored_by), key=str)
        }
        complete = extra_tasks is not None
        experts_only = {task for task in rows if task and not complete and not self.task_model(task).reads_base}
        by_general = {task for task in rows if complete or self._reads_general_branch(task)} - experts_only
        read = sorted({n for task in by_general for n in rows[task]})
        if embeddings is None:
            embeddings = self._general_embeddings(hidden, read)
        general, deviation = hidden.tokens.new_full((2, len(owner)), torch.nan, dtype=torch.float32)
        if read:
            index = hidden.packing.index(read)
            known = embeddings[index]
            general[index] = self.general.head(known).float()
            deviation[index] = self.general_posterior.deviation(self.general.head.normalizer(known))
        parts = {
            task: TaskRows(numbers, self._task_scores(task, hidden, numbers, general, embeddings, task in experts_only))
            for task, numbers in rows.items()
            if task is not None
        }
        rewards = self._rewards(hidden.packing, choices, general, deviation, parts)
        return PassOutput(owner, choices, general, parts, *rewards)

    def _general_embeddings(self, hidden: Packed, rows: Sequence[int]) -> Tensor:
        """Return the responses' embeddings (N, D) under the general branch; 0 for responses not in `rows`."""
        embeddings = hidden.tokens.new_zeros(len(hidden.packing.owner), self.config.width, dtype=torch.float32)
        if rows:
            embeddings[hidden.packing.index(rows)] = self.general.embed(hidden.select(rows)).float()
        return embeddings

    def _task_scores(
        self, task: str, hidden: Packed, rows: list[int], general: Tensor, embeddings: Tensor, experts_only: bool
    ) -> TaskOutput:
        """Score some of the responses under one task; `experts_only`: without the general model and plain branch."""
        task_model = self.task_model(task)
        if experts_only:
            return task_model.forward_experts(hidden.select(rows))
        index = hidden.packing.index(rows)
        scores = general[index] if task_model.reads_general else general.new_zeros(len(rows))
        return task_model(hidden.select(rows), scores, embeddings[index] if self.config.shared_branch else None)

    def _reads_general_branch(self, task: str | None) -> bool:
        """Return whether rewards of a task (None: the general model's) depend on the general model's branch."""
        return task is None or self.config.shared_branch or self.task_model(task).reads_general

    def _rewards(
        self,
        packing: Packing,
        choices: Sequence[Choice],
        general: Tensor,
        deviation: Tensor,
        parts: Mapping[str, TaskRows],
    ) -> tuple[Tensor, Tensor]:
        """Return each response's reward (N,) and the rewards' standard deviations (N,).

        Args:
            general, deviation: (N,), the general model's raw score, and the standard deviation of its reward.
        """
        rewards, deviations = self.general_calibration(general), deviation.clone()
        for task, part in parts.items():
            kept = [i for i, n in enumerate(part.rows) if choices[packing.owner[n]].only == task]
            rows = packing.index([part.rows[i] for i in kept])
            among = packing.index(kept, len(part.rows))
            rewards[rows] = part.scores.reward[among].float()
            deviations[rows] = part.scores.uncertainty[among].float()
        if any(choice.mixed for choice in choices):
            mixed = self._mixed(packing, choices, general, deviation, parts)
            is_mixed = to_device(torch.tensor([choices[q].mixed for q in packing.owner]), general.device)
            rewards, deviations = (
                torch.where(is_mixed, *pair) for pair in zip(mixed, (rewards, deviations), strict=True)
            )
        return rewards, deviations

    def _mixed(
        self,
        packing: Packing,
        choices: Sequence[Choice],
        general: Tensor,
        deviation: Tensor,
        parts: Mapping[str, TaskRows],
    ) -> tuple[Tensor, Tensor]:
        """Return mixed rewards (N,) and their standard deviations (N,); without meaning where a choice is not mixed.

        Each model's rewards are divided by its temperature, so that all are log-odds. Deviations add up, as those of
        errors that are alike: the models share features and labels.
        """
        names = (None, *parts)
        shares = torch.tensor([[choices[q].shares.get(name, 0.0) for q in packing.owner] for name in names])
        totals = general.new_zeros(2, len(general))
        for name, share in zip(names, to_device(shares, general.device), strict=True):
            whole = torch.stack([self.general_calibration(general), deviation])
            if name is not None:
                scores, index = parts[name].scores, packing.index(parts[name].rows)
                whole = torch.zeros_like(totals)
                whole[:, index] = torch.stack([scores.reward.float(), scores.uncertainty.float()])
            totals += torch.where(share > 0, share * whole / self.calibration(name).temperature, 0.0)
        return self.routed_calibration(totals[0]), totals[1] / self.routed_calibration.scale

    def calibration(self, task: str | None) -> Calibration:
        """Return the calibration of a task's rewards; of the general model's for None."""
        return self.general_calibration if task is None else self.task_model(task).calibration

    def temperature(self, choice: Choice) -> Tensor:
        """Return the temperature (), at which differences of the choice's rewards are log-odds."""
        if choice.mixed:
            return self.routed_calibration.temperature
        (source,) = choice.shares
        return self.calibration(source).temperature


def _key(task: str) -> str:
    """Return a task's key in the module tree; the prefix avoids clashes with attributes such as `values`."""
    return f"task:{folder_name(task)}"
