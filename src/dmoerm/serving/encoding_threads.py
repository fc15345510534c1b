"""Encode requests in threads, beside the passes. A tokenizer is not thread-safe, so each thread uses one of its own."""

from __future__ import annotations

import asyncio
import copy
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..chat.encoding import Encoded, Encoder
from ..errors import DataError
from ..schema import Message, Query
from ..scores import check_task
from .limits import ServingConfig


class EncodingThreads:
    """Encodes queries for one model.

    Args:
        tasks: those of the model, with their capabilities.
    """

    def __init__(self, encoder: Encoder, tasks: Mapping[str, Sequence[str]], settings: ServingConfig) -> None:
        self._tasks, self._limit = tasks, settings.max_request_tokens
        self._encoders: queue.SimpleQueue[Encoder] = queue.SimpleQueue()  # those that no thread uses
        for each in [encoder, *(copy.deepcopy(encoder) for _ in range(settings.encoding_threads - 1))]:
            self._encoders.put(each)
        self._threads = ThreadPoolExecutor(settings.encoding_threads, "encode")
        self._whole, self._whole_thread = copy.deepcopy(encoder), ThreadPoolExecutor(1, "tokenize")

    async def encode(self, queries: Sequence[Query]) -> list[Encoded]:
        """Encode the queries of one request.

        Raises:
            DataError: a task is unknown, or a text or the request is too long.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._encode, queries)

    async def tokens(self, content: str | Sequence[Message], add_special: bool) -> list[int]:
        """Return the token ids as `Encoder.tokens` does. Whole texts take long, so requests to score do not wait."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._whole_thread, self._whole.tokens, content, add_special)

    def close(self) -> None:
        """End the threads once their current work is done."""
        for threads in self._threads, self._whole_thread:
            threads.shutdown(wait=False, cancel_futures=True)

    def _encode(self, queries: Sequence[Query]) -> list[Encoded]:
        encoded, tokens = [], 0
        encoder = self._encoders.get()
        try:
            for query in queries:
                if query.task is not None:
                    check_task(self._tasks, query.task)
                encoded.append(encoder.encode(query, one_prompt=False))
                tokens += encoded[-1].tokens
                if tokens > self._limit:
                    raise DataError(
                        f"the request has more than {self._limit} tokens", hint="send it in several requests"
                    )
            return encoded
        finally:
            self._encoders.put(encoder)
