"""The double-layer mixture of experts: route a prompt to its task, score the response with the task's experts.

    ids ──trunk──▶ hidden ──router──▶ task t (or none: the general model)
                     ├──general branch──▶ r_general
                     └──branch_t, experts_t──▶ aggregator_t ──▶ reward

Shapes: Q prompts, N responses, T tasks, k capabilities of a task.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from ..chat.encoding import Encoded, Encoder
from ..config import AggregatorConfig, EncodingConfig, HeadConfig, LoRAConfig
from ..errors import ConfigError, DataError, shorten
from ..names import folder_name
from ..schema import Prompt, Query
from ..scores import MIN_REWARD, Score, as_queries, bound_reward
from .aggregator import Aggregator
from .backbone import empty_part, split_layers
from .batching import batches, chunks, pack_ids, pad, windows
from .configuration import DMoERMConfig
from .experts import Experts
from .heads import BranchScorer, Head
from .output import PassOutput, TaskRows
from .packed_attention import run
from .packing import Packed
from .router import Router
from .task_model import Calibration, TaskModel, TaskOutput
from .training_prompts import TrainingPrompts

_EMPTY: dict[str, Any] = {"reward": MIN_REWARD, "capabilities": {}, "uncertainty": None}  # of an empty response


class DMoERM(PreTrainedModel):
    """A double-layer mixture-of-experts reward model.

    `DMoERM.from_pretrained(path).score(prompt, responses)` is what most people need.
    """

    config_class = DMoERMConfig
    base_model_prefix = "dmoerm"
    _supports_sdpa = True  # else transformers would note "eager" in the configuration
    tokenizer: PreTrainedTokenizerBase
    encoder: Encoder

    def __init__(self, config: DMoERMConfig) -> None:
        super().__init__(config)
        self.texts: dict[str, str] = {}
        """What else lay in the folder that the model was loaded from: its card, its run's settings."""
        self.training_prompts: TrainingPrompts | None = None
        """The prompts that the model was trained on; None if they are not known."""
        backbone = config.backbone_config
        whole = empty_part(backbone, backbone.num_hidden_layers)
        self.trunk, branch = split_layers(whole, config.branch_layer)
        own = empty_part(backbone, backbone.num_hidden_layers) if config.router_kind == "own" else None
        self.router = Router(list(config.tasks), backbone.hidden_size, own)
        self.general = self._scorer(branch)
        self.general_calibration = Calibration()
        self.tasks = nn.ModuleDict({_key(task): self._new_task_model(names) for task, names in config.tasks.items()})

    def _scorer(self, branch: Any) -> BranchScorer:
        head = Head(self.config.width, HeadConfig(**self.config.head))
        return BranchScorer(branch, head, EncodingConfig(**self.config.encoding).pooling)

    def _new_task_model(self, capabilities: Sequence[str]) -> TaskModel:
        config = self.config
        branch: Any = self.general.branch
        if not config.shared_branch:
            backbone = config.backbone_config
            branch = split_layers(empty_part(backbone, backbone.num_hidden_layers), config.branch_layer)[1]
        base, lora = self._scorer(branch), LoRAConfig(**config.lora)
        experts = Experts(branch, capabilities, config.width, lora, HeadConfig(**config.head), base.pooling)
        embeddings = 1 if experts.branch is None else len(capabilities)
        settings = AggregatorConfig(**config.aggregator)
        return TaskModel(base, experts, Aggregator(embeddings, config.width, len(capabilities) + 2, settings))

    def task_model(self, task: str, asked_by: str = "") -> TaskModel:
        """A task's model. Raises `DataError`, which names `asked_by`, if there is none of that name."""
        if task not in self.config.tasks:
            problem = f"{asked_by}: the model has no such task" if asked_by else "the model has no such task"
            known = ", ".join(self.config.tasks)
            raise DataError(problem, field="task", value=task, hint=f"use one of {known}, or null to route")
        return self.tasks[_key(task)]  # pyright: ignore[reportReturnType]

    # --- scoring -----------------------------------------------------------------------------------------------

    def score(
        self,
        prompt: Prompt | Sequence[Mapping[str, str]] | Sequence[Any],
        responses: Sequence[str] | Sequence[Sequence[str]],
        task: str | Sequence[str | None] | None = None,
        batch_tokens: int = 8192,
        deterministic: bool = False,
    ) -> Any:
        """Scores the responses to one prompt, or to each of several prompts.

        Args:
            prompt: a text or a list of chat messages; or a list of those, one for each entry of `responses`.
            responses: the responses to the prompt; or a list of such lists.
            task: skips the router; one name, or one (or None) for each prompt.
            batch_tokens: most tokens of one pass (twice a prompt's, where that is more); a token counts once for each
                of a task's experts.
            deterministic: makes scores independent of the batch to the last bit; see `score_separately`.

        Returns:
            A list of `Score`, one a response; for several prompts a list of such lists, in the caller's order.

        Raises:
            DataError: an empty prompt, an unknown task, a text longer than the model takes.
        """
        queries, one = as_queries(prompt, responses, task)
        scores = list(self.score_queries(queries, batch_tokens, deterministic))
        return scores[0] if one else scores

    def score_queries(
        self, queries: Sequence[Query], batch_tokens: int = 8192, deterministic: bool = False
    ) -> Iterator[list[Score]]:
        """Scores queries in batches of similar length; the result comes in the order of the queries.

        A query that is more than a pass is scored in chunks, so that it may have any number of responses.
        """
        for query in queries:
            if query.task is not None:
                self.task_model(query.task, f"query {query.id}" if query.id else "")
        encoded = [self.encoder.encode(query) for query in queries]
        if deterministic:
            return iter(self.score_separately(encoded, [query.task for query in queries]))
        scores: dict[int, list[Score]] = {}
        for rows in self.passes(encoded, batch_tokens):
            tasks = [queries[i].task for i in rows]
            if len(rows) == 1:
                found = [self._in_chunks(encoded[rows[0]], tasks[0], batch_tokens)]
            else:
                found = self.score_encoded([encoded[i] for i in rows], tasks)
            scores |= dict(zip(rows, found, strict=True))
        return (scores[i] for i in range(len(queries)))

    def _in_chunks(self, encoded: Encoded, task: str | None, batch_tokens: int) -> list[Score]:
        """One query's scores, a pass a chunk: the first one's route is that of all, however close the decision is."""
        scores: list[Score] = []
        for _, chunk in chunks(encoded, self.pass_tokens(batch_tokens)):
            scores += self.score_encoded([chunk], [task], scores[0] if scores else None)[0]
        return scores

    def score_separately(self, encoded: Sequence[Encoded], tasks: Sequence[str | None]) -> list[list[Score]]:
        """Score each response of encoded queries in a pass of its own, so that its score depends on no other text.

        The shapes of a pass, and so the order in which numbers are added, follow from prompt and response alone. The
        router runs on the prompt with an empty response, for all responses alike. Scores are the same to the last bit
        on the same machine with the same number of threads. The prompt runs once per response and once more.
        """
        scores: list[list[Score]] = []
        with _deterministic_algorithms():
            for query, task in zip(encoded, tasks, strict=True):
                ((route,),) = self.score_encoded([Encoded(query.prompt, [self.encoder.empty_response])], [task])
                parts = [query.part(i, i + 1) for i in range(len(query.responses))]
                scores.append([self.score_encoded([part], [task], route)[0][0] for part in parts])
        return scores

    def passes(self, encoded: Sequence[Encoded], batch_tokens: int) -> Iterator[list[int]]:
        """Indices of the queries that share a pass."""
        return batches(encoded, self.pass_tokens(batch_tokens))

    def pass_tokens(self, batch_tokens: int) -> int:
        """Most tokens of a pass, where a token counts once for each expert, as it does in memory."""
        task_experts = [self.task_model(task).experts for task in self.config.tasks]
        return batch_tokens // max([1, *(len(experts) for experts in task_experts if experts.branch is not None)])

    def score_stream(
        self, queries: Iterable[Query], batch_tokens: int = 8192, deterministic: bool = False
    ) -> Iterator[tuple[Query, list[Score]]]:
        """Scores a stream of any length in its order, holding little of it at once: each query with its scores."""
        for window in windows(queries):
            yield from zip(window, self.score_queries(window, batch_tokens, deterministic), strict=True)

    @torch.inference_mode()
    def score_encoded(
        self, encoded: Sequence[Encoded], tasks: Sequence[str | None], like: Score | None = None
    ) -> list[list[Score]]:
        """Scores encoded queries in one pass.

        Args:
            tasks: each one's task; None: the router decides.
            like: of the one query's prompt, what was scored before: the router is not asked again.
        """
        ids = pack_ids(encoded).to(self.device)
        hidden = self.hidden(ids)
        if like is None:
            found = self.route(ids, hidden)
            chosen = [task or self.choose(row) for task, row in zip(tasks, found, strict=True)]
            routes = [dict(zip(self.router.tasks, row, strict=True)) for row in found.tolist()]
        else:
            chosen, routes = [like.task], [like.route]
        rewards = self.rewards(hidden, chosen)
        scores: list[list[Score]] = [[] for _ in encoded]
        for n, owner in enumerate(ids.packing.owner):
            index = len(scores[owner])
            values = rewards[n] | (_EMPTY if index in encoded[owner].empty_at else {})
            truncated = index in encoded[owner].truncated_at
            scores[owner].append(Score(task=chosen[owner], route=routes[owner], truncated=truncated, **values))
        return scores

    def hidden(self, ids: Packed) -> Packed:
        """The trunk's hidden states of token ids; the ids themselves where there is no trunk."""
        return ids if self.trunk is None else ids._replace(tokens=run(self.trunk, ids)[0])

    def route(self, ids: Packed, hidden: Packed) -> Tensor:
        """Task probabilities (Q, T)."""
        if self.router.language_model is None:
            return self.router.probabilities(hidden.prompt_means())
        prompts, mask = pad([prompt for prompt, _ in ids.split()])
        return self.router.probabilities(self.router.read(prompts, mask.to(prompts.device)))

    def choose(self, probabilities: Tensor) -> str | None:
        """The likeliest task, or None (the general model) below the threshold."""
        best = int(probabilities.argmax())
        return self.router.tasks[best] if probabilities[best] >= self.config.threshold else None

    def rewards(self, hidden: Packed, tasks: Sequence[str | None]) -> list[dict[str, Any]]:
        """Reward, capabilities, uncertainty and temperature of each of the N responses.

        Args:
            tasks: each prompt's task; None: the general model scores.
        """
        output = self.outputs(hidden, tasks)
        fields: list[dict[str, Any]] = [
            {
                "reward": bound_reward(reward),
                "capabilities": {},
                "uncertainty": None,
                "temperature": float(self.calibration(tasks[owner]).temperature),
            }
            for owner, reward in zip(output.owner, output.reward.tolist(), strict=True)
        ]
        for task, part in output.tasks.items():
            names = self.task_model(task).experts.capabilities
            columns = zip(part.rows, part.scores.capabilities.tolist(), part.scores.uncertainty.tolist(), strict=True)
            for row, scores, uncertainty in columns:
                fields[row]["capabilities"] = dict(zip(names, scores, strict=True))
                fields[row]["uncertainty"] = uncertainty if names else None
        return fields

    def outputs(
        self,
        hidden: Packed,
        tasks: Sequence[str | None],
        also: Sequence[str] | None = None,
        embeddings: Tensor | None = None,
    ) -> PassOutput:
        """Compute the rewards of a pass and the scores that lead to them.

        Args:
            hidden: the trunk's states of Q prompts and N responses.
            tasks: each prompt's task; None: the general model scores.
            also: for each prompt one more task whose scores are computed. With it all intermediate scores are; without
                it, those that the rewards depend on.
            embeddings: (N, D), the responses under the general branch, where they are known.
        """
        owner = hidden.packing.owner
        scored_by = [{task} if also is None else {task, also[q]} for q, task in enumerate(tasks)]
        rows = {
            task: [n for n, q in enumerate(owner) if task in scored_by[q]]
            for task in sorted(set().union(*scored_by), key=str)
        }
        alone = {task for task in rows if task and also is None and not self.task_model(task).reads_base}
        read = sorted({n for task, numbers in rows.items() if task not in alone for n in numbers})
        if embeddings is None:
            embeddings = self._general_embeddings(hidden, read)
        general = hidden.tokens.new_full((len(owner),), torch.nan, dtype=torch.float32)
        if read:
            general[read] = self.general.head(embeddings[read]).float()
        parts = {
            task: TaskRows(numbers, self._task_scores(task, hidden, numbers, general, embeddings, task in alone))
            for task, numbers in rows.items()
            if task is not None
        }
        return PassOutput(owner, tasks, general, parts, self._chosen_rewards(owner, tasks, general, parts))

    def _general_embeddings(self, hidden: Packed, rows: Sequence[int]) -> Tensor:
        """(N, D): the responses under the general branch; those of other rows are not computed."""
        embeddings = hidden.tokens.new_zeros(len(hidden.packing.owner), self.config.width, dtype=torch.float32)
        if rows:
            embeddings[rows] = self.general.embed(hidden.select(rows)).float()
        return embeddings

    def _task_scores(
        self, task: str, hidden: Packed, rows: list[int], general: Tensor, embeddings: Tensor, alone: bool
    ) -> TaskOutput:
        task_model = self.task_model(task)
        if alone:
            return task_model.forward_experts(hidden.select(rows))
        return task_model(hidden.select(rows), general[rows], embeddings[rows] if self.config.shared_branch else None)

    def _chosen_rewards(
        self,
        owner: Sequence[int],
        tasks: Sequence[str | None],
        general: Tensor,
        parts: Mapping[str, TaskRows],
    ) -> Tensor:
        """(N,): each response's reward by its prompt's task."""
        rewards = self.general_calibration(general)
        for task, part in parts.items():
            kept = [i for i, n in enumerate(part.rows) if tasks[owner[n]] == task]
            rewards[[part.rows[i] for i in kept]] = part.scores.reward[kept].float()
        return rewards

    def calibration(self, task: str | None) -> Calibration:
        """The calibration of a task's rewards; None: of the general model's."""
        return self.general_calibration if task is None else self.task_model(task).calibration

    # --- what Hugging Face code expects -------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor]:
        """Rewards of whole token sequences (B, T) as logits (B, 1): of conversations in the tokenizer's chat template.

        Raises `DataError` for a sequence that is none. See `Encoder.split`.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = [ids[keep.bool()].tolist() for ids, keep in zip(input_ids, mask, strict=True)]
        encoded = [self.encoder.split(row) for row in rows]
        rewards = torch.tensor(
            [s.reward for (s,) in self.score_encoded(encoded, [None] * len(rows))], device=self.device
        )
        return (rewards[:, None],) if return_dict is False else SequenceClassifierOutput(logits=rewards[:, None])

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | Path,
        *,
        card: str | None = None,
        run_config: str | None = None,
        dtype: torch.dtype | str | None = None,
        **_: Any,
    ) -> None:
        """Writes the model's folder, completely or not at all; transformers' own options change nothing.

        See `dmoerm.model.checkpoint.save`.
        """
        from .checkpoint import save

        save(self, Path(save_directory), card=card, run_config=run_config, dtype=dtype)

    def push_to_hub(self, repo_id: str, *, commit_message: str | None = None, **options: Any) -> str:  # pyright: ignore
        """Uploads the model as one commit, returns its URL; `private`, `revision`, `token`: see `hub.push`."""
        from .hub import push

        return push(self, repo_id, message=commit_message, **options)

    @classmethod
    def from_pretrained(cls, path: str | Path, *model_args: Any, **options: Any) -> Self:
        """Read a model's folder, or a model on the hub.

        Args:
            path: the folder that `train` wrote, or a name such as `me/my-reward-model`.
            options: `dtype` (or `torch_dtype`): precision of trunk and branches, as saved if it is not given.
                `device_map`: the one device of the whole model; "auto" is the GPU if there is one.
                `check=False`: do not compare the files with their checksums.
                `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`: as for any model on the hub.

        Raises:
            ConfigError: an option that is unknown, or that a DMoERM does not support.
            CheckpointError: no such model; a missing, truncated, changed or foreign file.
        """
        from .checkpoint import load
        from .loading import load_options

        if model_args:
            raise ConfigError(f"from_pretrained: takes options by name only (got {shorten(model_args[0])})")
        return load(path, load_options(options))  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    """PyTorch's own deterministic kernels: on an accelerator, sums by `index_add` otherwise have no fixed order."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _key(task: str) -> str:
    """A task's name in the module tree, where names such as `values` are taken."""
    return f"task:{folder_name(task)}"
