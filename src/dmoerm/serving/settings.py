"""The settings of the server: batching, limits on what a client can request, and the error beyond a limit."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import ServerError


class ServingConfig(BaseModel):
    """Batching and limits. Sizes are checked before anything is scored, so that no request can take the server down."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    batch_tokens: int | None = Field(default=None, ge=1)
    """Maximum tokens of a pass (twice the prompt's tokens if that is more); a token counts once per expert. By default
    8192 on a CPU, and up to 65,536 on an accelerator that has the memory."""
    deterministic: bool = False
    """Score each response in a pass of its own: scores do not depend on other requests; slower."""
    batch_wait: float = Field(default=0.002, ge=0, le=1)
    """Seconds that the idle server waits for more requests to share a pass."""
    pass_seconds: float = Field(default=0.5, gt=0)
    """Longest expected duration of a pass that several requests share: an interactive request waits for one pass."""
    pass_timeout: float = Field(default=600.0, gt=0)
    """Seconds after which a pass counts as stuck: the server is not ready any more, and its process ends."""
    queue_seconds: float = Field(default=45.0, gt=0)
    """Longest expected wait, from the measured rate. Keep it below the clients' own time-outs."""
    queue_tokens: int = Field(default=262_144, ge=1)
    """Queue limit in tokens; excess requests get `overload_status`."""
    queue_requests: int = Field(default=1024, ge=1)
    """Queue limit in requests; excess requests get `overload_status`."""
    queue_bytes: int = Field(default=2**24, ge=1)
    """Limit of the bytes that wait to be tokenized; excess requests get `overload_status`."""
    overload_status: Literal[429, 503] = 503
    """Status of a request that a full queue refuses. verl repeats it after 503 and ends at 429."""
    max_connections: int = Field(default=2048, ge=1)
    """Maximum open connections; excess connections get 503."""
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024)
    """Maximum size of a request's body; a larger body gets 413."""
    max_responses: int = Field(default=256, ge=1)
    """Maximum responses of a request, over all its items; more get 422."""
    max_request_tokens: int = Field(default=131_072, ge=1)
    """Maximum tokens of a request; more get 422."""
    receive_timeout: float = Field(default=30.0, gt=0)
    """Seconds that a client has to send a request's headers, and again for its body."""
    api_key: str | None = Field(default=None, min_length=1, repr=False)
    """The key that clients must send as `Authorization: Bearer KEY`. Without one, no key is required."""
    allow_hosts: tuple[str, ...] = ()
    """Further names of the server, in which `*` stands for any text. Without a key, and with one if names are given, a
    request's Host must be one of them, an IP address, or a name that public DNS does not have."""
    allow_origins: tuple[str, ...] = ()
    """Origins of web pages that browsers allow to send requests (CORS)."""


class Refusal(ServerError):
    """A request that is refused with a status of its own.

    Args:
        kind: the error's `type` in the answer, as in OpenAI's API.
        headers: of the answer.
    """

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, headers or {}
