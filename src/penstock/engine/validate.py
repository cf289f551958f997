"""What a request must be for the engine to run it, whatever its sampling: tokens of the model, and room for them."""

from __future__ import annotations

import numpy as np

from penstock.control.request import Request
from penstock.errors import InvalidRequest


def check_tokens(
    request: Request, *, vocab_size: int, max_sequence_tokens: int, recompute_beyond: int | None = None
) -> None:
    """Raises InvalidRequest. `recompute_beyond`: see Engine; a request may lie on one side of it only."""
    tokens = np.asarray([*request.prompt, *request.output], np.int64)
    if not len(request.prompt):
        raise InvalidRequest(
            field="prompt", value="", why="it has no tokens", remedy="at least one token", code="empty_prompt"
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise InvalidRequest(
            field="prompt",
            value=int(tokens[(tokens < 0) | (tokens >= vocab_size)][0]),
            why="it is no token id of this model",
            remedy=f"ids from 0 to {vocab_size - 1}",
        )
    if request.max_tokens <= len(request.output):
        raise InvalidRequest(
            field="max_tokens",
            value=request.max_tokens,
            why=f"{len(request.output)} output tokens are there already",
            remedy=f"{len(request.output) + 1} or more",
        )
    # The last token sampled is never an input, so it needs no position and no KV.
    needed = len(request.prompt) + request.max_tokens - 1
    if needed > max_sequence_tokens:
        raise InvalidRequest(
            field="max_tokens",
            value=request.max_tokens,
            why=f"with {len(request.prompt)} prompt tokens the sequence exceeds {max_sequence_tokens} tokens",
            remedy=f"a shorter prompt, or max_tokens up to {max_sequence_tokens + 1 - len(request.prompt)}",
            code="context_length_exceeded",
        )
    if recompute_beyond is not None and len(tokens) <= recompute_beyond < needed:
        raise InvalidRequest(
            field="max_tokens",
            value=request.max_tokens,
            why=f"beyond {recompute_beyond} tokens this model computes all of a sequence anew (LongRoPE)",
            remedy=f"max_tokens up to {recompute_beyond + 1 - len(request.prompt)}, and the rest as a second request",
        )


def check_kind(request: Request, *, embeds: bool, generates: bool) -> None:
    """Raises InvalidRequest: it asks for an embedding or for text, and the model has none."""
    if request.sampling.embed and not embeds:
        raise InvalidRequest(
            field="model", value="", why="this model has no embeddings", remedy="model.pooling, or an embedding model"
        )
    if not request.sampling.embed and not generates:
        raise InvalidRequest(
            field="model", value="", why="this model only makes embeddings", remedy="/v1/embeddings, or another model",
            code="unsupported_model",
        )  # fmt: skip
