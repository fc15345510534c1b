"""The settings of the server: batching, and limits on what a client can request."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ServingConfig(BaseModel):
    """Batching and limits. Sizes are checked before anything is scored, so that no request can take the server down."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    batch_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens of a pass (twice the prompt's tokens if that is more); a token counts once per expert. None: 8192
    on a CPU, up to 65,536 on an accelerator that has the memory."""
    deterministic: bool = False
    """Score each response in a pass of its own: scores do not depend on other requests; slower."""
    engines: int = Field(default=0, ge=0, le=64)
    """How many copies of the model score passes, each in a process of its own; 0: one per device, and without devices
    one in the server's process."""
    devices: tuple[str, ...] = ()
    """The engines' devices in turn, such as `cuda:0`; empty: the default device."""
    encoding_threads: int = Field(default=2, ge=1, le=64)
    """Threads that turn texts into token ids, each with its own copy of the tokenizer."""
    batch_wait: float = Field(default=0.002, ge=0, le=1)
    """Seconds that an idle engine waits for more requests to share a pass."""
    pass_seconds: float = Field(default=0.5, gt=0)
    """Longest expected duration of a pass that several requests share: an interactive request waits for one pass."""
    pass_timeout: float = Field(default=600.0, gt=0)
    """Seconds after which a pass is taken as stuck: the server is not ready any more, and its process ends."""
    queue_seconds: float = Field(default=45.0, gt=0)
    """Longest expected wait, from the measured rate. Keep it below the clients' own time-outs."""
    queue_tokens: int = Field(default=262_144, ge=1)
    """Maximum tokens in the queue; further requests are refused with `overload_status`."""
    queue_requests: int = Field(default=1024, ge=1)
    """Maximum requests in the queue; further requests are refused with `overload_status`."""
    queue_bytes: int = Field(default=2**24, ge=1)
    """Maximum bytes of requests that wait to be tokenized; further requests are refused with `overload_status`."""
    overload_status: Literal[429, 503] = 503
    """Status of a request that a full queue refuses. verl repeats it after 503 and ends at 429."""
    max_connections: int = Field(default=2048, ge=1)
    """Maximum open connections; further connections are answered with 503."""
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Maximum size of a request's body; a larger body is answered with 413."""
    max_responses: int = Field(default=256, ge=1)
    """Maximum responses of a request, over all its items; more are answered with 422."""
    max_request_tokens: int = Field(default=131_072, ge=1)
    """Maximum tokens of a request; more are answered with 422."""
    receive_timeout: float = Field(default=30.0, gt=0)
    """Seconds that a client has to send a request's headers, and again for its body."""
    score_cache: int = Field(default=0, ge=0)
    """How many scores are kept for responses that are sent again, about 1 kB each; 0: none."""
    judge_templates: Path | None = None
    """A YAML file with more templates of judges' prompts for /v1/chat/completions (see `judge_templates.yaml`)."""
    api_key: str | None = Field(default=None, min_length=1, repr=False)
    """The key that clients must send as `Authorization: Bearer KEY`; None: no key is required."""
    allow_hosts: tuple[str, ...] = ()
    """Further names of the server, in which `*` stands for any text. Without a key, and with one if names are given, a
    request's Host must be one of them, an IP address, or a name that public DNS does not have."""
    allow_origins: tuple[str, ...] = ()
    """Origins of web pages that browsers allow to send requests (CORS)."""
