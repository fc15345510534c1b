"""Reward models that were trained elsewhere, as methods: a Hugging Face sequence classifier, a running server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx2
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ..errors import BackboneError, DataError, ServerError
from ..model import DMoERM, DMoERMConfig
from ..schema import Message, Query

_BATCH_TOKENS = 8192
_ITEMS = 16  # queries of one request to /v1/score


def method_of(place: str) -> OtherDMoERM | SequenceClassifier | RewardServer:
    """The method behind a URL, a folder or a hub name; see the classes for what they raise."""
    if place.startswith(("http://", "https://")):
        return RewardServer(place)
    try:
        kind = AutoConfig.from_pretrained(place).model_type
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(f"{place!r} is no model: {' '.join(str(error).split())[:300]}") from None
    return OtherDMoERM(place) if kind == DMoERMConfig.model_type else SequenceClassifier(place)


def conversation(query: Query, response: str) -> list[dict[str, str]]:
    """Prompt and response as chat messages."""
    turns = [Message(role="user", content=query.prompt)] if isinstance(query.prompt, str) else list(query.prompt)
    return [turn.model_dump() for turn in [*turns, Message(role="assistant", content=response)]]


class OtherDMoERM:
    """A DMoERM that another run has trained."""

    def __init__(self, path: str) -> None:
        self.model = DMoERM.from_pretrained(path)

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """See `Method`; the router decides."""
        untold = [query.model_copy(update={"task": None}) for query in queries]
        return [[score.reward for score in scores] for scores in self.model.score_queries(untold)]


class SequenceClassifier:
    """A reward model with one logit, by `AutoModelForSequenceClassification`.

    Args:
        path: a folder or hub name.
        batch_tokens: most tokens of a pass, padding included.

    Raises:
        BackboneError: it cannot be loaded, has not exactly one logit, or its tokenizer has no chat template.
    """

    def __init__(self, path: str, batch_tokens: int = _BATCH_TOKENS) -> None:
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            self.model: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype="auto").eval()
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise BackboneError(
                f"{path!r} is no sequence classifier that can be loaded: {' '.join(str(error).split())[:300]}"
            ) from None
        if (labels := self.model.config.num_labels) != 1:
            raise BackboneError(f"{path!r} has {labels} labels; a reward model has one")
        if not self.tokenizer.chat_template:
            raise BackboneError(
                f"the tokenizer of {path!r} has no chat template; set one, so that turns are told apart"
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if getattr(self.model.config, "pad_token_id", 0) is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.tokenizer.padding_side, self.batch_tokens = "right", batch_tokens

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """See `Method`. Raises `DataError` for a text longer than the model takes."""
        texts = [self._rendered(query, response) for query in queries for response in query.responses]
        encoded = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        limit = getattr(self.model.config, "max_position_embeddings", None) or float("inf")
        if (longest := max(map(len, encoded), default=0)) > limit:
            raise DataError(f"a text has {longest} tokens; the model takes {limit}", field="responses")
        rewards = [0.0] * len(texts)
        for rows in self._batches([len(ids) for ids in encoded]):
            for row, reward in zip(rows, self._rewards([encoded[i] for i in rows]), strict=True):
                rewards[row] = reward
        found = iter(rewards)
        return [[next(found) for _ in query.responses] for query in queries]

    def _rendered(self, query: Query, response: str) -> str:
        return self.tokenizer.apply_chat_template(conversation(query, response), tokenize=False)

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows of like length, each batch within the budget."""
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


def _only(values: Sequence[float]) -> float:
    """The one value; a classifier of several labels is no reward model."""
    (value,) = values
    return float(value)


class RewardServer:
    """A server that rewards conversations: the URL's last part says how it is asked.

        …/classify, …/pooling    vLLM's: a conversation a request, `data[0].probs` or `data[0].data`
        …/v1/score               `{"items": [{"prompt", "responses"}]}` → `items[i].scores[j].reward`

    Args:
        url: in full.
        model: the model's name, where the server has several.
        timeout: seconds a request may take.
        transport: in place of the network.

    Raises:
        ServerError: the URL names none of these protocols.
    """

    def __init__(self, url: str, model: str = "", timeout: float = 60.0, transport: Any = None) -> None:
        self.url, self.model = url, model
        self._client = httpx2.Client(timeout=timeout, transport=transport or httpx2.HTTPTransport(retries=3))
        end = url.rstrip("/").rpartition("/")[2]
        if end not in ("classify", "pooling", "score"):
            raise ServerError(f"{url}: its last part names no protocol; use one of /classify, /pooling, /v1/score")
        self._end = end

    def score_all(self, queries: Sequence[Query]) -> list[list[float]]:
        """See `Method`. Raises `ServerError` where the server does not answer, or with no rewards."""
        if self._end == "score":
            items = [{"prompt": conversation(q, "")[:-1], "responses": list(q.responses)} for q in queries]
            answer = self._ask({"items": items})
            return self._read(
                answer, lambda: [[float(s["reward"]) for s in item["scores"]] for item in answer["items"]]
            )
        return [[self._one(query, response) for response in query.responses] for query in queries]

    def _some(self, queries: Sequence[Query]) -> list[list[float]]:
        items = [{"prompt": conversation(q, "")[:-1], "responses": list(q.responses)} for q in queries]
        answer = self._ask({"items": items})
        return self._read(answer, lambda: [[float(s["reward"]) for s in item["scores"]] for item in answer["items"]])

    def _one(self, query: Query, response: str) -> float:
        answer = self._ask({"model": self.model, "messages": conversation(query, response), "use_activation": False})
        field = "probs" if self._end == "classify" else "data"
        return self._read(answer, lambda: _only(answer["data"][0][field]))

    def _ask(self, body: dict[str, Any]) -> Any:
        try:
            found = self._client.post(self.url, json=body)
            found.raise_for_status()
            return found.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise ServerError(f"{self.url}: {' '.join(str(error).split())[:300]}; is the server running?") from None

    def _read(self, answer: Any, read: Any) -> Any:
        try:
            return read()
        except (KeyError, IndexError, TypeError, ValueError):
            raise ServerError(f"{self.url}: the answer holds no rewards (got {str(answer)[:120]!r})") from None
