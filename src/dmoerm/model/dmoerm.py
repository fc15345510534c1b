"""A DMoERM: scores of text, loading and saving. The modules themselves are in mixture.py."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack, cast, overload

import torch
from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from ..chat.encoding import Encoded
from ..chat.rendered import Transcript
from ..errors import CheckpointError, ConfigError, shorten
from ..schema import PromptInput, Query, ResponseLists
from ..scores import MIN_REWARD, Score, Weights, adjusted, as_queries, bound_reward, check_weights
from . import checkpoint
from .configuration import DMoERMConfig
from .contributions import Source, contributions
from .layers import Decoder
from .loading import load_options
from .memory import scoring_tokens
from .mixture import Mixture
from .packing import Packed, batches, chunks, pack_ids, transfer, windows
from .router import Choice, Known


class ScoreOptions(TypedDict, total=False):
    """How texts are scored."""

    batch_tokens: int | None
    """Maximum number of tokens of a pass, or twice the prompt's if that is more. Each token counts once per expert of a
    task. Default: 8192 on a CPU, up to 65,536 on an accelerator that has the memory."""
    deterministic: bool
    """Make scores independent of the batch to the last bit; see `DMoERM.score_separately`."""
    weights: Weights | None
    """Capability → weight, from −10 to 10; the default is 1. See `Score.reweighted`. Each capability must belong to a
    task of the model. If every prompt has a given task, it must belong to one of those tasks."""


_EMPTY: dict[str, Any] = {"reward": MIN_REWARD, "capabilities": {}, "uncertainty": None, "contributions": {}}


class DMoERM(Mixture):
    """A double-layer mixture-of-experts reward model.

    `DMoERM.from_pretrained(path).score(prompt, responses)` is all that most callers need.
    """

    def __init__(self, config: DMoERMConfig) -> None:
        super().__init__(config)
        _models.add(self)

    @property
    def capabilities(self) -> dict[str, list[str]]:
        """The capabilities of each task. `tasks` has the modules of the tasks under their names in a checkpoint."""
        return {task: list(names) for task, names in self.config.tasks.items()}

    @overload
    def score(
        self, prompt: PromptInput, responses: Sequence[str], task: str | None = None, **options: Unpack[ScoreOptions]
    ) -> list[Score]: ...
    @overload
    def score(
        self,
        prompt: Sequence[PromptInput],
        responses: ResponseLists,
        task: str | Sequence[str | None] | None = None,
        **options: Unpack[ScoreOptions],
    ) -> list[list[Score]]: ...
    def score(self, prompt: Any, responses: Any, task: Any = None, **options: Unpack[ScoreOptions]) -> Any:
        """Score the responses to one prompt, or to each of several prompts.

        Args:
            prompt: a text or a list of chat messages; or a list of those, one per entry of `responses`.
            responses: the responses to the prompt; or a list of such lists.
            task: overrides the router; one name, or one name (or None) per prompt.
            options: `batch_tokens`, `deterministic` and `weights`, see `ScoreOptions`.

        Returns:
            A list with one `Score` per response; for several prompts a list of such lists, in the order of the prompts.

        Raises:
            DataError: a prompt is empty, a task or a capability is unknown, a weight is out of range, or a text is
                longer than the model's maximum.
        """
        queries, is_single = as_queries(prompt, responses, task)
        scores = list(self.score_queries(queries, **options))
        return scores[0] if is_single else scores

    def score_queries(
        self,
        queries: Sequence[Query],
        batch_tokens: int | None = None,
        deterministic: bool = False,
        weights: Weights | None = None,
    ) -> Iterator[list[Score]]:
        """Score queries in batches of similar length; the scores have the order of the queries.

        A query that exceeds a pass is scored in chunks, so the number of responses is not limited. The options are
        `ScoreOptions`; raises the same errors as `score`.
        """
        for query in queries:
            if query.task is not None:
                self.task_model(query.task, query.position)
        check_weights(weights, self.config.tasks, [query.task for query in queries])
        encoded = [self.encoder.encode(query, one_prompt=False) for query in queries]
        if deterministic:
            return adjusted(self.score_separately(encoded, [query.task for query in queries]), weights)
        scores: dict[int, list[Score]] = {}
        for rows in self.passes(encoded, batch_tokens):
            if len(rows) > 1:
                batch_scores = self.score_encoded([encoded[i] for i in rows], [queries[i].task for i in rows])
                scores |= dict(zip(rows, batch_scores, strict=True))
                continue
            (row,) = rows
            task, known = queries[row].task, dict[str, Known]()  # a prompt's first route holds for all its chunks
            scores[row] = []
            for _, chunk in chunks(encoded[row], self.pass_tokens(batch_tokens)):
                (chunk_scores,) = self.score_encoded([chunk], [known.get(chunk.prompt_key, task)])
                known.setdefault(chunk.prompt_key, Known(task, tuple(chunk_scores[0].route.values())))
                scores[row] += chunk_scores
        return adjusted((scores[i] for i in range(len(queries))), weights)

    def score_separately(self, encoded: Sequence[Encoded], tasks: Sequence[str | Known | None]) -> list[list[Score]]:
        """Score each response of encoded queries in its own pass; its score then depends on no other text.

        Only prompt and response determine the shapes of a pass, and so the order of its floating-point additions. The
        router reads the prompt with an empty response, once for all responses. Scores are equal to the last bit on the
        same machine with the same number of threads. A prompt with n responses runs n + 1 times.
        """
        scores: list[list[Score]] = []
        with _deterministic_algorithms():
            for query, task in zip(encoded, tasks, strict=True):
                parts = [query.part(i, i + 1) for i in range(len(query.responses))]
                given = task.task if isinstance(task, Known) else task
                known: dict[str, Known] = {}
                for key, ids in {part.prompt_key: part.prompt for part in parts}.items():
                    ((score,),) = self.score_encoded([Encoded(ids, [self.encoder.empty_response])], [task])
                    known[key] = Known(given, tuple(score.route.values()))
                scores.append([self.score_encoded([part], [known[part.prompt_key]])[0][0] for part in parts])
        return scores

    def passes(self, encoded: Sequence[Encoded], batch_tokens: int | None = None) -> Iterator[list[int]]:
        """Yield the indices of the queries that share a pass."""
        return batches(encoded, self.pass_tokens(batch_tokens))

    def pass_tokens(self, batch_tokens: int | None = None) -> int:
        """Return the maximum number of tokens of a pass.

        With k LoRA experts, each token takes k times the memory, therefore `batch_tokens` is divided by k. Its default
        depends on the device; see memory.py.
        """
        if batch_tokens is None:
            batch_tokens = scoring_tokens(cast("Decoder", self.general.branch))
        return batch_tokens // max([1, *(self.task_model(task).experts.runs for task in self.config.tasks)])

    def score_stream(
        self,
        queries: Iterable[Query],
        batch_tokens: int | None = None,
        deterministic: bool = False,
        weights: Weights | None = None,
    ) -> Iterator[tuple[Query, list[Score]]]:
        """Yield each query of a stream with its scores, in order; only a window of the stream is in memory.

        A weight may belong to any task of the model, since the queries' tasks are not known in advance.
        """
        check_weights(weights, self.config.tasks)
        for window in windows(queries):
            scores = self.score_queries(window, batch_tokens, deterministic)
            yield from zip(window, adjusted(scores, weights), strict=True)

    @torch.inference_mode()
    def score_encoded(self, encoded: Sequence[Encoded], tasks: Sequence[str | Known | None]) -> list[list[Score]]:
        """Score encoded queries in one pass.

        Args:
            tasks: each query's given task, or an earlier pass's route; with None the router decides.
        """
        known = [each if isinstance(each, Known) else Known(each, ()) for each in tasks]
        with torch.autocast(self.device.type, enabled=False):  # a trainer may run `forward` in its own precision
            ids = pack_ids(encoded).to(self.device)
            hidden = self.hidden(ids)
            probabilities = [each.probabilities for each in known]
            if not all(probabilities):
                computed = self.route(ids, hidden).tolist()
                probabilities = [given or row for given, row in zip(probabilities, computed, strict=True)]
            routed = zip(known, self.choose(torch.tensor(probabilities)), strict=True)
            choices = [Choice.of(each.task) if each.task else choice for each, choice in routed]
            rewards = self.rewards(hidden, choices)
        routes = [dict(zip(self.router.tasks, row, strict=True)) for row in probabilities]
        scores: list[list[Score]] = [[] for _ in encoded]
        for n, owner in enumerate(ids.packing.owner):
            index = len(scores[owner])
            values = rewards[n] | (_EMPTY if index in encoded[owner].empty_at else {})
            truncated = index in encoded[owner].truncated_at
            scores[owner].append(Score(task=choices[owner].task, route=routes[owner], truncated=truncated, **values))
        return scores

    def rewards(self, hidden: Packed, choices: Sequence[Choice]) -> list[dict[str, Any]]:
        """Return reward, capabilities, uncertainty, temperature and contributions of each of the N responses."""
        output = self.outputs(hidden, choices)
        calibrations = [self.general_calibration, *map(self.calibration, output.tasks)]
        units = torch.stack([self.routed_calibration.scale, *(each.temperature for each in calibrations)])
        temperatures = torch.stack([self.temperature(choice) for choice in choices])
        general = self.general_calibration(output.general)
        tables = [torch.cat([s.reward[:, None], s.capabilities, s.contributions], 1) for _, s in output.tasks.values()]
        figures = [output.reward, output.uncertainty, general, temperatures, units, *tables]
        rewards, deviations, by_general, by_prompt, (scale, *by_model), *tables = (
            each.tolist() for each in transfer(figures, "cpu")
        )
        sources: list[dict[str | None, Source]] = [{None: Source(value, by_model[0], {})} for value in by_general]
        capabilities: list[dict[str, float]] = [{} for _ in rewards]
        for (task, (rows, _)), temperature, table in zip(output.tasks.items(), by_model[1:], tables, strict=True):
            names, terms = self.config.tasks[task], self.task_model(task).contribution_names
            for row, (value, *values) in zip(rows, table, strict=True):
                shown = zip(terms, values[len(names) :], strict=True)
                sources[row][task] = Source(value, temperature, {name: term for name, term in shown if name})
                if choices[output.owner[row]].task == task:
                    capabilities[row] = dict(zip(names, values[: len(names)], strict=True))
        return [
            {
                "reward": bound_reward(reward),
                "capabilities": capabilities[row],
                "uncertainty": None if math.isnan(deviations[row]) else deviations[row],
                "temperature": by_prompt[output.owner[row]],
                "contributions": contributions(reward, choices[output.owner[row]], sources[row], scale),
            }
            for row, reward in enumerate(rewards)
        ]

    # --- Hugging Face's interface --------------------------------------------------------------------------------

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool | None = None, **_: Any
    ) -> SequenceClassifierOutput | tuple[Tensor]:
        """Return the rewards of token sequences (B, T) as logits (B, 1).

        Args:
            input_ids: conversations in the tokenizer's chat template, tokenized.
            attention_mask: (B, T), 0 at padding.

        Raises:
            DataError: a sequence is not a conversation in the chat template; see `Transcript.split`.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = [ids[keep.bool()].tolist() for ids, keep in zip(input_ids, mask, strict=True)]
        encoded = list(map(Transcript(self.encoder).split, rows))
        scores = self.score_encoded(encoded, [None] * len(rows))
        logits = torch.tensor([[score.reward] for (score,) in scores], device=self.device)
        return (logits,) if return_dict is False else SequenceClassifierOutput(logits=logits)

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | Path,
        *,
        card: str | None = None,
        run_config: str | None = None,
        dtype: torch.dtype | str | None = None,
        backbone: bool = False,
        **_: Any,
    ) -> None:
        """Write the model folder by `checkpoint.save`; transformers' other options have no effect."""
        folder = Path(save_directory)
        checkpoint.save(self, folder, card=card, run_config=run_config, dtype=dtype, backbone=backbone)

    def push_to_hub(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, repo_id: str, *, commit_message: str | None = None, backbone: bool = False, **options: Any
    ) -> str:
        """Upload the model as one commit and return the commit's URL; its card then loads the model from there.

        The other options are `private`, `revision` and `token`, as for `checkpoint.upload`.

        Args:
            backbone: upload the backbone's weights too.

        Raises:
            CheckpointError: the backbone is a folder, which others lack; and as `checkpoint.upload`.
        """
        source = self.config.backbone_source
        if source is not None and os.path.isabs(source["name"]) and not backbone:
            reason = f"the model's backbone is a folder of this machine, {source['name']}"
            hint = "upload its weights too, with --full (in Python backbone=True)"
            raise CheckpointError(f"{repo_id}: {reason}; {hint}")
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory) / "model"
            card = self.texts.get("README.md")
            self.save_pretrained(folder, card=card and checkpoint.rename_card(card, repo_id), backbone=backbone)
            return checkpoint.upload(folder, repo_id, message=commit_message, **options)

    @classmethod
    def from_pretrained(cls, path: str | Path, *model_args: Any, **options: Any) -> Self:
        """Load a model folder, or a model on the hub.

        Args:
            path: a run's folder, the model's folder in it, or a name on the hub such as `me/my-reward-model`.
            options: `dtype` (or `torch_dtype`): precision of trunk and branches; default: as saved.
                `device_map`: the one device of the whole model; "auto" is the GPU if there is one.
                `quantization="4bit"` or `"8bit"`: hold the layers of a `base: frozen` model in 4 or 8 bits.
                `backbone=PATH`: the folder or hub name of the backbone, if it is not where the checkpoint names it;
                default: the environment variable DMOERM_BACKBONE. A self-contained checkpoint needs none.
                `check=False`: do not compare the files with their checksums, nor the backbone with its digest.
                `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`: as for any model on the hub.

        Raises:
            ConfigError: an option is unknown, or a DMoERM does not support it.
            CheckpointError: the model or its backbone does not exist, a file is missing, truncated, changed or foreign,
                or the backbone has other weights than in training.
        """
        if model_args:
            raise ConfigError(f"from_pretrained: takes options by name only (got {shorten(model_args[0])})")
        return cast("Self", checkpoint.load(path, cls, load_options(options)))


_models: weakref.WeakSet[DMoERM] = weakref.WeakSet()


def _prepare_child() -> None:
    """Make the models usable in a forked process, which has only the thread that forked.

    The threads of PyTorch's OpenMP do not survive a fork, and a pass would wait for them forever. At the fork,
    another thread may hold an encoder's lock, and the child gets a new one.
    """
    if _models:
        torch.set_num_threads(1)
    for model in list(_models):
        if "encoder" in vars(model):
            model.encoder.__setstate__(model.encoder.__getstate__())


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_prepare_child)


@contextlib.contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    """Select PyTorch's deterministic kernels: on a GPU, `index_add` otherwise adds in no fixed order."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
