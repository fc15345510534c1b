"""Reward models that were trained elsewhere, as methods: a Hugging Face sequence classifier, a running server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ..client import Client
from ..errors import BackboneError, ConfigError, DataError, ServerError, shorten
from ..io.weights import weights_digest
from ..model import DMoERM, DMoERMConfig
from ..model.memory import PASS_TOKENS
from ..model.training_prompts import TrainingPrompts
from ..schema import Message, Query, messages_of
from .judges import live, recorded
from .methods import Method, QueryScorer, TrainedMethod
from .methods.registry import EXTERNAL_COLOR

if TYPE_CHECKING:
    from ..labeling.client import Endpoint


def open_scorer(source: str) -> OtherDMoERM | SequenceClassifier | RewardServer:
    """Open the scorer at a URL, in a folder or under a hub name; see the classes for what they raise."""
    if source.startswith(("http://", "https://")):
        return RewardServer(source)
    try:
        kind = AutoConfig.from_pretrained(source).model_type
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{source!r} is not a model: {' '.join(str(error).split())[:300]}") from None
    return OtherDMoERM(source) if kind == DMoERMConfig.model_type else SequenceClassifier(source)


def external_method(name: str, scorer: QueryScorer, description: str, key: str = "") -> Method:
    """Make a method of a comparison from a scorer that was trained elsewhere.

    Args:
        key: tells models of the same description apart; see `Method`.
    """
    trained = TrainedMethod(score_all=scorer.score_all)
    return Method(name, description, "external", EXTERNAL_COLOR, lambda _: trained, key=key)


def external_methods(
    sources: Sequence[str],
    labels: Sequence[Path] = (),
    judge: tuple[Endpoint, int] | None = None,
    store: Path | None = None,
) -> tuple[list[Method], list[TrainingPrompts]]:
    """Open all methods of a comparison that are not trained in it.

    Args:
        sources: NAME=SOURCE, a URL, folder or hub name each; see `open_scorer`.
        labels: files with recorded labels of LLM judges.
        judge: endpoint and number of shots of a live LLM judge.
        store: the file that records the judge's answers.

    Returns:
        The methods, and the training prompts of those that list theirs.

    Raises:
        ConfigError: a source has no name, or a name occurs twice.
    """
    methods, training_prompts = recorded(labels), []
    if judge is not None and store is not None:
        methods += live(*judge, store)
    for text in sources:
        name, _, source = text.partition("=")
        if not source:
            raise ConfigError(f"--external {text}: write it as NAME=SOURCE")
        if name in {method.name for method in methods}:
            raise ConfigError(f"--external {text}: a method of that name exists; choose another")
        scorer = open_scorer(source)
        methods.append(external_method(name, scorer, f"trained elsewhere: {source}", weights_digest(source)))
        if (known := getattr(scorer, "training_prompts", None)) is not None:
            training_prompts.append(known)
    return methods, training_prompts


def conversation(query: Query, response: str) -> list[dict[str, str]]:
    """Return prompt and response as chat messages."""
    turns = messages_of(query.prompt)
    return [turn.model_dump() for turn in [*turns, Message(role="assistant", content=response)]]


def _without_tasks(queries: Sequence[Query]) -> list[Query]:
    """Remove the tasks, which the model may not know."""
    return [query.model_copy(update={"task": None}) for query in queries]


class OtherDMoERM:
    """A DMoERM that another run trained."""

    def __init__(self, path: str) -> None:
        self.model = DMoERM.from_pretrained(path)

    @property
    def training_prompts(self) -> TrainingPrompts | None:
        """The prompts that it was trained on; None if its checkpoint does not list them."""
        return self.model.training_prompts

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """See `QueryScorer`; the router chooses the task."""
        return [[score.reward for score in scores] for scores in self.model.score_queries(_without_tasks(queries))]


class SequenceClassifier:
    """A reward model with one logit, loaded by `AutoModelForSequenceClassification`.

    Args:
        path: a folder or hub name.
        batch_tokens: most tokens of a pass, including padding.

    Raises:
        BackboneError: it cannot be loaded, does not have exactly one logit, or its tokenizer has no chat template.
    """

    def __init__(self, path: str, batch_tokens: int = PASS_TOKENS) -> None:
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype="auto").eval()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise BackboneError(
                f"{path!r} cannot be loaded as a sequence classifier: {' '.join(str(error).split())[:300]}"
            ) from None
        if (labels := self.model.config.num_labels) != 1:
            raise BackboneError(f"{path!r} has {labels} labels; a reward model has one")
        if not self.tokenizer.chat_template:
            raise BackboneError(
                f"the tokenizer of {path!r} has no chat template; set one, so that turns can be distinguished"
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if getattr(self.model.config, "pad_token_id", 0) is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.tokenizer.padding_side, self.batch_tokens = "right", batch_tokens

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """See `QueryScorer`. Raises `DataError` for a text longer than the model reads."""
        texts = [self._rendered(query, response) for query in queries for response in query.responses]
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        limit = getattr(self.model.config, "max_position_embeddings", None) or float("inf")
        if (longest := max(map(len, encoded), default=0)) > limit:
            raise DataError(f"a text has {longest} tokens; the model reads {limit}", field="responses")
        rewards = [0.0] * len(texts)
        for rows in self._batches([len(ids) for ids in encoded]):
            for row, reward in zip(rows, self._rewards([encoded[i] for i in rows]), strict=True):
                rewards[row] = reward
        remaining = iter(rewards)
        return [[next(remaining) for _ in query.responses] for query in queries]

    def _rendered(self, query: Query, response: str) -> str:
        return self.tokenizer.apply_chat_template(conversation(query, response), tokenize=False)

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Group rows of similar length into batches within the budget."""
        batches: list[list[int]] = []
        for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= self.batch_tokens:
                batches[-1].append(row)
            else:
                batches.append([row])
        return batches

    @torch.inference_mode()
    def _rewards(self, rows: Sequence[list[int]]) -> list[float]:
        padded = self.tokenizer.pad({"input_ids": list(rows)}, return_tensors="pt").to(self.model.device)
        return self.model(**padded).logits.float().squeeze(-1).tolist()


class RewardServer:
    """A server that rewards conversations. The last part of its URL selects the protocol.

        …/classify, …/pooling    vLLM's: one conversation per request, `data[0].probs` or `data[0].data`
        …/v1/score               that of `dmoerm serve`, by its `Client`

    Args:
        url: the full URL.
        model: the model's name, if the server has several.
        settings: arguments of the `Client`: timeout, retries, transport.

    Raises:
        ServerError: the URL does not end with one of these protocols.
    """

    def __init__(self, url: str, model: str = "", **settings: Any) -> None:
        self.url, self.model = url.rstrip("/"), model
        root, _, self._end = self.url.rpartition("/")
        if self._end == "score" and root.endswith("/v1"):
            self._client = Client(root.removesuffix("/v1"), model=model or None, **settings)
        elif self._end in ("classify", "pooling"):
            self._client = Client(root, api_key="", **settings)  # our server's key must not reach other servers
        else:
            raise ServerError(f"{url}: its last part must be a protocol: one of /classify, /pooling, /v1/score")

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """See `QueryScorer`; the router chooses the task. Raises what `Client.score` does."""
        if self._end == "score":
            return [
                [score.reward for score in scores] for scores in self._client.score_queries(_without_tasks(queries))
            ]
        return [[self._reward(query, response) for response in query.responses] for query in queries]

    def _reward(self, query: Query, response: str) -> float:
        body = {"model": self.model, "messages": conversation(query, response), "use_activation": False}
        answer = self._client.post(f"/{self._end}", body)
        try:
            (reward,) = answer["data"][0]["probs" if self._end == "classify" else "data"]
            return float(reward)
        except (KeyError, IndexError, TypeError, ValueError):
            raise ServerError(f"{self.url}: the response has no reward (got {shorten(answer)})") from None
